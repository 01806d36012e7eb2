// Caches in pages compacted.
#include "paged.h"

namespace vtkernels {
namespace {

void compact_kv_paged_out(const std::vector<Tensor>& kv, const Tensor& block_table, const Tensor& seq_lens,
                          const Tensor& indices, const OptionalTensor& counts, const OptionalTensor& dst_block_table,
                          const std::string& kv_layout, bool allow_shared, const Tensor& out_seq_lens,
                          const Tensor& out_slot_mapping, const Tensor& out_freed_blocks,
                          const OptionalTensor& status) {
  const Device device(block_table);
  const Checker check{"compact_kv_paged.out", device.index};
  const View table(block_table);
  check_rank(check.op, "block_table", table, 2, "[B, max_blocks]");
  const int64_t batch = table.sizes[0];
  Pages pages = check_pages(check, {kv, block_table, seq_lens, dst_block_table, kv_layout, allow_shared}, batch);
  cuda::PagedCompaction& p = pages.problem;
  const View i = check_indices(check, indices, {batch, 0});
  p.kept = i.sizes[1];
  p.indices = index_view(i);
  if (counts) {
    check.vector("counts", *counts, batch, aoti_torch_dtype_int32(), "B");
    p.counts = int_view(View(*counts));
  }
  set_outputs(check, pages, {out_seq_lens, out_slot_mapping, out_freed_blocks}, {batch, p.kept});
  p.status = check.status(status);
  run_pages(pages, device);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("compact_kv_paged.out", VTK_BOX(compact_kv_paged_out));
}

}  // namespace vtkernels
