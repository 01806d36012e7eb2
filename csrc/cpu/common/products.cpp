// Products of rows: the choice of the instruction set.
#include "products.h"

#include "target.h"

namespace vtkernels::cpu {

const ProductKernels& product_kernels(DType dtype) { return VTK_PICK_PAIRS(kProducts, dtype); }

void products(const Parallel& parallel, const ProductProblem& problem) {
  if (problem.rows > 0 && problem.columns > 0) product_kernels(problem.dtype).products(parallel, problem);
}

void row_norms(const Parallel& parallel, DType dtype, const Matrix& m, int64_t rows, int64_t width, bool reciprocal,
               float* out) {
  if (rows > 0) product_kernels(dtype).row_norms(parallel, dtype, m, rows, width, reciprocal, out);
}

}  // namespace vtkernels::cpu
