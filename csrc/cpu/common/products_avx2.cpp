// Products of rows for AVX2 with FMA and F16C.
#include "kernel.h"
#include "products.h"
#include "target.h"
#if defined(__x86_64__)
VTK_TARGET_AVX2

namespace vtkernels::cpu {
namespace {

#include "isa_avx2.h"
// after the vector type
#include "tile.inl"
// after the register tile
#include "products_kernel.inl"

}  // namespace

const ProductKernels avx2::kProducts = kernels<Float, Float>();

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
