// Weighted means and sums of groups of tokens.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct MergeProblem {
  DType dtype;
  const char* tokens;  // [batch, n, width], strides in elements
  int64_t batch_stride, token_stride, dim_stride;
  int64_t batch, n, width, groups;
  Indices assignment;    // [batch, n]
  const float* weights;  // [batch, n], or null: 1
  int64_t weight_batch, weight_token;
  bool mean;
  char* out;  // [batch, groups, width], rows dense
  int64_t out_batch, out_row;
  float* sizes;  // [batch, groups]
  int64_t size_batch;
};

// By the rules of vtkernels.merge_tokens. Returns whether a group number was out of range.
bool merge_tokens(const Parallel& parallel, const MergeProblem& problem);

}  // namespace vtkernels::cpu
