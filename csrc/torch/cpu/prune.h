// The packed prune, for the ops that move more than its own caches.
#pragma once

#include "common.h"

namespace vtkernels {

// One row of the batch, or one packed sequence, in tokens. `begin` counts from the start of its batch row.
struct Row {
  int64_t begin, length, span_start, span_length, keep, out;
};

struct PruneOutputs {
  const Tensor& hidden;
  const Tensors& kv;
  const Tensor& indices;
  const Tensor& scores;
};

struct PackedPrune {
  ScoreProblem problem;
  std::vector<Row> rows;
  std::vector<int32_t> cu_out;
  int64_t tokens, dim;
  int32_t status;
};

PackedPrune check_varlen(const char* op, const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens,
                         const Tensor& k, int64_t total_out, const Tensors& kv,
                         const std::optional<Tensor>& span_starts, const std::optional<Tensor>& span_lens,
                         const std::optional<Tensor>& rnorm, const std::string& layout);

void run_varlen(const PackedPrune& p, const Tensor& hidden, int64_t total_out, const Tensors& kv, bool keep_similar,
                bool heads_first, const PruneOutputs& out, const Tensor& cu_out);

void check_workspace(const char* op, const std::optional<Tensor>& workspace, int64_t batch);

}  // namespace vtkernels
