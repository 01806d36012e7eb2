// Windows of a grid of tokens: their means, and their tokens side by side.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct PoolProblem {
  DType dtype;
  const char* tokens;  // [batch, n, width], strides in elements
  int64_t batch_stride, token_stride, dim_stride;
  int64_t batch, n, width;
  int64_t start, rows, columns;         // the span, a grid of tokens
  int64_t window_rows, window_columns;  // of one window
  int64_t grid_rows, grid_columns;      // of windows
  char* out;                            // [batch, n - rows * columns + grid_rows * grid_columns, width], rows dense
  int64_t out_batch, out_row;
};

// By the rules of vtkernels.pool_span.
void pool_span(const Parallel& parallel, const PoolProblem& problem);

// A copy between two orders of [batch, window rows, window columns, rows in a window, columns in a window, channels].
struct ShuffleProblem {
  const char* from;
  char* to;
  int64_t element;  // bytes
  int64_t sizes[6];
  int64_t from_strides[6], to_strides[6];  // in elements
};

void shuffle_tokens(const Parallel& parallel, const ShuffleProblem& problem);

}  // namespace vtkernels::cpu
