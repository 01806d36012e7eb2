// Scores, selection and gather in one call.
#include "prune.h"

namespace vtkernels {
namespace {

void prune_topk_out(const Tensor& hidden, const Tensor& prototypes, int64_t k, const OptionalTensors& kv,
                    bool keep_similar, int64_t span_start, int64_t span_len, const OptionalTensor& span_starts,
                    const OptionalTensor& prototype_rnorm, const std::string& kv_layout, const Tensor& out_hidden,
                    const std::vector<Tensor>& out_kv, const Tensor& out_indices, const Tensor& out_scores,
                    const OptionalTensor& workspace, const OptionalTensor& status) {
  const Device device(hidden);
  const Checker check{"prune_topk.out", device.index};
  const View h(hidden);
  check.place("hidden", hidden);
  check_rank(check.op, "hidden", h, 3, "[B, N, D]");
  const GatherShape shape{h.sizes[0], h.sizes[1]};
  cuda::PruneDense problem{};
  problem.score = score_problem(check, "hidden", hidden, prototypes, prototype_rnorm);
  problem.batch = shape.batch;
  problem.tokens = shape.tokens;
  if (span_starts) {
    check.vector("span_starts", *span_starts, shape.batch, aoti_torch_dtype_int32(), "B");
    check.range("span_len", span_len, 0, shape.tokens);
    const View s(*span_starts);
    problem.span_starts = reinterpret_cast<const int*>(s.data());
    problem.span_starts_stride = s.strides[0];
  } else {
    check.range("span_start", span_start, 0, shape.tokens);
    if (span_len == -1) span_len = shape.tokens - span_start;
    check.range("span_len", span_len, 0, shape.tokens - span_start);
    problem.span_start = span_start;
  }
  check.range("k", k, 0, span_len);
  problem.span_len = span_len;
  problem.k = k;
  problem.keep_similar = keep_similar;
  const int64_t kept = shape.tokens - span_len + k;
  check.output("out_scores", out_scores, {shape.batch, span_len}, aoti_torch_dtype_float32());
  check.output("out_indices", out_indices, {shape.batch, kept}, aoti_torch_dtype_int64(), true);
  std::vector<cuda::GatherTensor> rows;
  add_rows(check, hidden, "out_hidden", out_hidden, 0, 1, kept, rows);
  add_caches(check, kv.value_or(std::vector<Tensor>{}), kv_layout, false, shape, "out_kv", out_kv, kept, rows);
  problem.scores = score_view(View(out_scores));
  problem.indices = index_view(View(out_indices));
  problem.status = check.status(status);
  const Tensor scratch = workspace_for(check, workspace, shape.batch, device);
  problem.workspace = reinterpret_cast<int*>(View(scratch).mutable_data());
  cuda::prune_topk(problem, device.stream);
  cuda::gather(rows, problem.indices, shape.batch, shape.tokens, kept, nullptr, device.stream);
}

void prune_topk_varlen_out(const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k,
                           int64_t total_out, const OptionalTensors& kv, bool keep_similar,
                           const OptionalTensor& span_starts, const OptionalTensor& span_lens,
                           const OptionalTensor& prototype_rnorm, const std::string& kv_layout,
                           const Tensor& out_hidden, const std::vector<Tensor>& out_kv, const Tensor& out_indices,
                           const Tensor& out_scores, const Tensor& out_cu_seqlens, const OptionalTensor& workspace,
                           const OptionalTensor& status) {
  const Device device(hidden);
  const Checker check{"prune_topk_varlen.out", device.index};
  cuda::PruneVarlen problem =
      check_varlen(check, {hidden, prototypes, cu_seqlens, k, total_out, span_starts, span_lens, prototype_rnorm},
                   keep_similar, {out_indices, out_scores, out_cu_seqlens});
  const GatherShape shape{1, problem.tokens};
  std::vector<cuda::GatherTensor> rows;
  add_rows(check, hidden, "out_hidden", out_hidden, -1, 0, total_out, rows);
  add_caches(check, kv.value_or(std::vector<Tensor>{}), kv_layout, true, shape, "out_kv", out_kv, total_out, rows);
  problem.status = check.status(status);
  const Tensor scratch = workspace_for(check, workspace, problem.batch, device);
  problem.workspace = reinterpret_cast<int*>(View(scratch).mutable_data());
  cuda::prune_topk_varlen(problem, device.stream);
  cuda::gather(rows, problem.indices, 1, shape.tokens, total_out, nullptr, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("prune_topk.out", VTK_BOX(prune_topk_out));
  m.impl("prune_topk_varlen.out", VTK_BOX(prune_topk_varlen_out));
}

}  // namespace vtkernels
