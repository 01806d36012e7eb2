// Products of rows for any processor: four lanes through the compiler's vector extension.
#include "products.h"
#include "score_common.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace vtkernels::cpu {
namespace {

#include "score_baseline.h"
#include "score_kernel.inl"
// after the kernel whose pieces it takes
#include "products_kernel.inl"

}  // namespace

const ProductKernels products_baseline = kernels<V, V>();

}  // namespace vtkernels::cpu
