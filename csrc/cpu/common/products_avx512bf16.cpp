// Products of rows for bf16 inputs on processors with AVX512_BF16: exact products of pairs, added in float32.
#include "kernel.h"
#include "products.h"
#include "target.h"
#if defined(__x86_64__)
VTK_TARGET_AVX512BF16

namespace vtkernels::cpu {
namespace {

#include "isa_avx512bf16.h"
// after the vector type
#include "tile.inl"
// after the register tile
#include "products_kernel.inl"

}  // namespace

const ProductKernels avx512bf16::kProducts = kernels<Pairs, Float>();

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
