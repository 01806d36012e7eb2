// Products of rows: the choice of the instruction set.
#include "products.h"

namespace vtkernels::cpu {

const ProductKernels& product_kernels(DType dtype) {
  const bool bf16 = dtype == DType::kBFloat16;
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16:
      return bf16 ? products_avx512bf16 : products_avx512;
    case Isa::kAvx512Bf16Emulated:
      return bf16 ? products_avx512bf16_emulated : products_avx512;
    case Isa::kAvx512:
      return products_avx512;
    case Isa::kAvx2:
      return products_avx2;
#endif
    default:
      return products_baseline;
  }
}

void products(const Parallel& parallel, const ProductProblem& problem) {
  if (problem.rows > 0 && problem.columns > 0) product_kernels(problem.dtype).products(parallel, problem);
}

void row_norms(const Parallel& parallel, DType dtype, const Matrix& m, int64_t rows, int64_t width, bool reciprocal,
               float* out) {
  if (rows > 0) product_kernels(dtype).row_norms(parallel, dtype, m, rows, width, reciprocal, out);
}

}  // namespace vtkernels::cpu
