// Products of rows for AVX-512 (F, BW, DQ, VL), and the bf16-pair layout of the AVX512_BF16 kernel in plain AVX-512.
#include "kernel.h"
#include "products.h"
#include "target.h"
#if defined(__x86_64__)
VTK_TARGET_AVX512

namespace vtkernels::cpu {
namespace {

#include "isa_avx512.h"
// after the vector type
#include "tile.inl"
// after the register tile
#include "products_kernel.inl"

}  // namespace

const ProductKernels avx512::kProducts = kernels<Float, Float>();
const ProductKernels avx512bf16_emulated::kProducts = kernels<EmulatedPairs, Float>();

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
