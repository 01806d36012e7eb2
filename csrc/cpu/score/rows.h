// Ops that read every element once: comparison of frames, statistics of rows, residuals outside a subspace.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

enum class TemporalMetric : int32_t { kCosine, kL1, kL2 };

struct TemporalProblem {
  DType dtype;
  TemporalMetric metric;
  float first;         // score of frame 0
  const char* tokens;  // [batch, frames, n, width], strides in elements
  int64_t batch_stride, frame_stride, token_stride, dim_stride;
  int64_t batch, frames, n, width;
  float* out;  // [batch, frames, n], the last dimension dense
  int64_t out_batch, out_frame;
};

// By the rules of vtkernels.temporal_scores.
void temporal_scores(const Parallel& parallel, const TemporalProblem& problem);

// A row or an element of a tensor of any number of leading dimensions.
struct Leading {
  const int64_t* sizes;
  const int64_t* strides;
  int64_t dims;

  int64_t count() const {
    int64_t rows = 1;
    for (int64_t i = 0; i < dims; ++i) rows *= sizes[i];
    return rows;
  }
  int64_t offset(int64_t row) const {
    int64_t at = 0;
    for (int64_t i = dims; i-- > 0; row /= sizes[i]) at += row % sizes[i] * strides[i];
    return at;
  }
};

struct StatisticsProblem {
  DType dtype;
  const char* rows;
  Leading row;
  int64_t width, dim_stride;
  float* out[3];  // l1, l2, entropy
  Leading at[3];
};

// By the rules of vtkernels.row_statistics.
void row_statistics(const Parallel& parallel, const StatisticsProblem& problem);

struct ResidualProblem {
  DType dtype;
  const char* tokens;  // [batch, n, width], strides in elements
  int64_t batch_stride, token_stride, dim_stride;
  const char* basis;  // [batch, rank, width]
  int64_t basis_batch, basis_stride, basis_dim_stride;
  int64_t batch, n, width, rank;
  float* out;  // [batch, n], rows dense
  int64_t out_batch;
};

// By the rules of vtkernels.subspace_residual.
void subspace_residual(const Parallel& parallel, const ResidualProblem& problem);

}  // namespace vtkernels::cpu
