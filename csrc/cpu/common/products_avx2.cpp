// Products of rows for AVX2 with FMA and F16C.
#include "products.h"
#include "score_common.h"
#include "target.h"
#if defined(__x86_64__)
#include <immintrin.h>
VTK_TARGET("avx2,fma,f16c")

namespace vtkernels::cpu {
namespace {

#include "score_avx2.h"
#include "score_kernel.inl"
// after the kernel whose pieces it takes
#include "products_kernel.inl"

}  // namespace

const ProductKernels products_avx2 = kernels<V, V>();

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
