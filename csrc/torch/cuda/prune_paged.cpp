// Scores, selection, gather and the compaction of the pages in one call.
#include "paged.h"
#include "prune.h"

namespace vtkernels {
namespace {

void prune_topk_paged_out(const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k,
                          int64_t total_out, const std::vector<Tensor>& kv, const Tensor& block_table,
                          const Tensor& seq_lens, bool keep_similar, const OptionalTensor& context_lens,
                          const OptionalTensor& span_starts, const OptionalTensor& span_lens,
                          const OptionalTensor& prototype_rnorm, const OptionalTensor& dst_block_table,
                          const std::string& kv_layout, bool allow_shared, const Tensor& out_hidden,
                          const Tensor& out_indices, const Tensor& out_scores, const Tensor& out_cu_seqlens,
                          const Tensor& out_seq_lens, const Tensor& out_slot_mapping, const Tensor& out_freed_blocks,
                          const OptionalTensor& workspace, const OptionalTensor& status) {
  const Device device(hidden);
  const Checker check{"prune_topk_paged.out", device.index};
  cuda::PruneVarlen tokens =
      check_varlen(check, {hidden, prototypes, cu_seqlens, k, total_out, span_starts, span_lens, prototype_rnorm},
                   keep_similar, {out_indices, out_scores, out_cu_seqlens});
  std::vector<cuda::GatherTensor> rows;
  add_rows(check, hidden, "out_hidden", out_hidden, -1, 0, total_out, rows);
  Pages pages = check_pages(check, {kv, block_table, seq_lens, dst_block_table, kv_layout, allow_shared}, tokens.batch);
  cuda::PagedCompaction& p = pages.problem;
  p.kept = total_out;
  p.indices = tokens.indices;
  p.packed = {tokens.tokens, tokens.cu_seqlens, {tokens.out_cu_seqlens, tokens.out_cu_seqlens_stride}, {}};
  if (context_lens) {
    check.vector("context_lens", *context_lens, tokens.batch, aoti_torch_dtype_int32(), "B");
    p.packed.context = int_view(View(*context_lens));
  }
  set_outputs(check, pages, {out_seq_lens, out_slot_mapping, out_freed_blocks}, {total_out});
  tokens.status = p.status = check.status(status);
  const Tensor scratch = workspace_for(check, workspace, tokens.batch, device);
  tokens.workspace = reinterpret_cast<int*>(View(scratch).mutable_data());
  cuda::prune_topk_varlen(tokens, device.stream);
  cuda::gather(rows, tokens.indices, 1, tokens.tokens, total_out, nullptr, device.stream);
  run_pages(pages, device);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("prune_topk_paged.out", VTK_BOX(prune_topk_paged_out));
}

}  // namespace vtkernels
