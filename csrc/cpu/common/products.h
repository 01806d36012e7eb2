// Products of all rows of one matrix with all rows of another, exact per product and added in float32: the building
// block of every op that compares tokens with each other.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct ProductProblem {
  DType dtype;
  Matrix a;              // [rows, width], any strides
  Matrix b;              // [columns, width]
  int64_t rows;          // M
  int64_t columns;       // N
  int64_t width;         // D
  bool symmetric;        // b is a: half the products, out is symmetric bit for bit
  const float* a_scale;  // [rows], or both null; with reciprocal norms out is the cosine
  const float* b_scale;  // [columns]
  float* out;            // [rows][out_stride]
  int64_t out_stride;
  const int64_t* a_rows = nullptr;  // when given, row i of the product is row a_rows[i] of `a` (and of a_scale)
  const int64_t* b_rows = nullptr;  // and column j is row b_rows[j] of `b`
};

// out[i][j] = <a_i, b_j>, times (a_scale[i] * b_scale[j]). Sums of 256 products (512 of bf16 pairs) are added in order,
// so an entry depends neither on the number of threads nor on other rows, and <a_i, b_j> equals <b_j, a_i> bit for bit.
void products(const Parallel& parallel, const ProductProblem& problem);

// out[i] = <m_i, m_i>; `reciprocal`: 1 / norm, by the rule of reciprocal_norm (kernel.h).
void row_norms(const Parallel& parallel, DType dtype, const Matrix& m, int64_t rows, int64_t width, bool reciprocal,
               float* out);

// Rows in the form that `dots` reads: units of 32 bits (one float, or a pair of bf16), padded with zeros.
inline int64_t unit_stride(int64_t width) { return (width + 15) / 16 * 16; }
inline bool rows_are_units(DType dtype, const Matrix& m, int64_t width) {
  return dtype == DType::kFloat32 && m.col_stride == 1 && unit_stride(width) == width;
}

// out[i * count + j] = a sum over the units of row a_i and row b_j, for kDotRows rows of a and `count` <= kDotColumns
// rows of b.
constexpr int64_t kDotRows = 8, kDotColumns = 32;
using RowSums = void (*)(const uint32_t* const* a, const uint32_t* const* b, int64_t count, int64_t width, float* out);

// Entry points, one per instruction set.
struct ProductKernels {
  void (*products)(const Parallel&, const ProductProblem&);
  void (*row_norms)(const Parallel&, DType, const Matrix&, int64_t rows, int64_t width, bool reciprocal, float* out);
  void (*load_row)(DType, const Matrix&, int64_t row, int64_t width, uint32_t* units);
  RowSums dots;           // <a_i, b_j>
  RowSums squared_diffs;  // |a_i - b_j|^2, of floats only
  // Raises best[j] to the largest of column j of values[rows][columns]: at[j] is its row, -1 where none is larger.
  void (*column_argmax)(const float* values, int64_t rows, int64_t columns, float* best, int32_t* at);
  // out[i] = sum over t < count of rows[t][j] * rows[t][i] for i < n; rows and out are padded to n rounded up to 64.
  void (*combine)(const float* rows, int64_t stride, int64_t count, int64_t j, int64_t n, float* out);
  int64_t (*argmax)(const float* values, int64_t n);  // by max_key, the lowest index among equals
};
const ProductKernels& product_kernels(DType dtype);
namespace baseline {
extern const ProductKernels kProducts;
}
namespace avx2 {
extern const ProductKernels kProducts;
}
namespace avx512 {
extern const ProductKernels kProducts;
}
namespace avx512bf16 {
extern const ProductKernels kProducts;
}
namespace avx512bf16_emulated {
extern const ProductKernels kProducts;
}

}  // namespace vtkernels::cpu
