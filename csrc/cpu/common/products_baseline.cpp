// Products of rows for any processor: four lanes through the compiler's vector extension.
#include "kernel.h"
#include "products.h"
#include "target.h"

namespace vtkernels::cpu {
namespace {

#include "isa_baseline.h"
// after the vector type
#include "tile.inl"
// after the register tile
#include "products_kernel.inl"

}  // namespace

const ProductKernels baseline::kProducts = kernels<Float, Float>();

}  // namespace vtkernels::cpu
