// Bipartite matching of tokens.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct MatchProblem {
  DType dtype;
  const char* tokens;  // [batch, n, width], strides in elements
  int64_t batch_stride, token_stride, dim_stride;
  int64_t batch, n, width;
  int64_t merged;           // r
  int64_t stride, guarded;  // every stride-th token is a target, but none of the first `guarded`
  const float* bias;        // [batch, n], or null
  int64_t bias_batch, bias_token;
  IndexOut sources, targets, kept;  // [batch, r], [batch, r], [batch, n - r]
  int64_t source_batch, target_batch, kept_batch;
  float* scores;  // [batch, r]
  int64_t score_batch;

  int64_t target_count() const { return n / stride - guarded / stride; }
  int64_t source_count() const { return target_count() > 0 ? n - guarded - target_count() : 0; }
};

// By the rules of vtkernels.match_bipartite.
void match_bipartite(const Parallel& parallel, const MatchProblem& problem);

}  // namespace vtkernels::cpu
