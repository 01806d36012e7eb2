// Products of rows for bf16 inputs on processors with AVX512_BF16: exact products of pairs, added in float32.
#include "products.h"
#include "score_common.h"
#include "target.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own AVX-512 header
#endif
VTK_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

namespace vtkernels::cpu {
namespace {

#include "score_avx512.h"

struct Pairs : Float {
  static constexpr bool kPairs = true;

  static Reg dot(Reg a, Reg b, Reg acc) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

#include "score_kernel.inl"
// after the kernel whose pieces it takes
#include "products_kernel.inl"

}  // namespace

const ProductKernels products_avx512bf16 = kernels<Pairs, Float>();

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
