// The CUDA kernels that score keys by the attention that they receive, as a host function. See launch.h.
#pragma once

#include <vtkernels/cuda/launch.h>

namespace vtkernels::cuda {

enum class Reduce { kMean, kSum, kMax, kNone };

struct HeadsView {  // [batch, heads, tokens, width]
  const void* data;
  int64_t batch_stride, head_stride, token_stride, dim_stride;
};

struct AttentionProblem {
  Dtype dtype;
  int64_t batch, heads, key_heads, rows, keys, width;
  HeadsView query, key;
  const float* lse;  // [batch, heads, rows], or null: computed
  int64_t lse_batch, lse_head, lse_row;
  const float* weights;  // [batch, rows], or null
  int64_t weight_batch, weight_row;
  double scale;
  bool logits, causal;
  int64_t offset;            // where causal, row i sees the keys up to offset + i; -rows to keys
  int64_t key_start, count;  // of the keys that are scored
  Reduce reduce_rows, reduce_heads;
  float* out;  // [batch, count], or [batch, heads, count] with Reduce::kNone; last stride 1
  int64_t out_batch, out_head;
  float* scratch;  // attention_scratch(..) words
};

// Words of scratch of `attention_scores`, of any content.
int64_t attention_scratch(const AttentionProblem& problem);

void attention_scores(const AttentionProblem& problem, Stream stream);

}  // namespace vtkernels::cuda
