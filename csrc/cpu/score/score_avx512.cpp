// Score kernel for AVX-512 (F, BW, DQ, VL), and the bf16-pair layout of the AVX512_BF16 kernel in plain AVX-512.
#include "score_common.h"
#include "target.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own AVX-512 header
#endif
VTK_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

namespace vtkernels::cpu {
namespace {

#include "score_avx512.h"

struct EmulatedPairs : Float {
  static constexpr bool kPairs = true;

  static Reg dot(Reg a, Reg b, Reg acc) {
    const __m512i x = _mm512_castps_si512(a), y = _mm512_castps_si512(b), high = _mm512_set1_epi32(-65536);
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)),
                          acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, high)),
                           _mm512_castsi512_ps(_mm512_and_si512(y, high)), acc);
  }
};

#include "score_kernel.inl"

}  // namespace

void score_avx512(const ScoreWork& work, int64_t begin, int64_t end) { score<Float>(work, begin, end); }

void score_avx512bf16_emulated(const ScoreWork& work, int64_t begin, int64_t end) {
  score<EmulatedPairs>(work, begin, end);
}

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
