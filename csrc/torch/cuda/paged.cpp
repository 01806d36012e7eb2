// Caches in pages compacted in place.
#include "gather.h"

namespace vtkernels {
namespace {

// A pool of pages, each of whose elements has its own memory.
cuda::PagePool page_pool(const Checker& check, const std::string& arg, const Tensor& t, const View& first,
                         int token_dim, const char* dims) {
  check.place(arg, t);
  const View v(t);
  check_rank(check.op, arg, v, 4, dims);
  check_size(check.op, arg, v.sizes[0], first.sizes[0], "blocks");
  check_size(check.op, arg, v.sizes[token_dim], first.sizes[token_dim], "block_size");
  VTK_CHECK(v.sizes[token_dim] >= 1, check.op, arg, "of shape " + text(v.shape()), "a block_size of at least 1");
  check_own_memory(check, arg, v);
  const int head_dim = 3 - token_dim;
  return {v.mutable_data(), v.element(),          v.sizes[head_dim],   v.sizes[3],
          v.strides[0],     v.strides[token_dim], v.strides[head_dim], v.strides[3]};
}

cuda::PageTable page_table(const Checker& check, const char* arg, const Tensor& table, int64_t batch) {
  check.place(arg, table);
  const View t(table);
  VTK_CHECK(t.dtype == aoti_torch_dtype_int32(), check.op, arg, dtype_name(t.dtype), "int32");
  check_rank(check.op, arg, t, 2, "[B, max_blocks]");
  check_size(check.op, arg, t.sizes[0], batch, "B");
  return {reinterpret_cast<const int*>(t.data()), t.sizes[1], t.strides[0], t.strides[1]};
}

void compact_kv_paged_out(const std::vector<Tensor>& kv, const Tensor& block_table, const Tensor& seq_lens,
                          const Tensor& indices, const OptionalTensor& counts, const OptionalTensor& dst_block_table,
                          const std::string& kv_layout, bool allow_shared, const Tensor& out_seq_lens,
                          const Tensor& out_slot_mapping, const Tensor& out_freed_blocks,
                          const OptionalTensor& status) {
  const Device device(block_table);
  const Checker check{"compact_kv_paged.out", device.index};
  VTK_CHECK(!kv.empty(), check.op, "kv", "empty", "at least one tensor");
  VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
  VTK_CHECK(dst_block_table || !allow_shared, check.op, "allow_shared", "True",
            "False, unless `dst_block_table` is given");
  const int token_dim = kv_layout == "HND" ? 2 : 1;
  const char* dims = token_dim == 2 ? "[blocks, H, block_size, d]" : "[blocks, block_size, H, d]";
  const View first(kv[0]), table(block_table), i(indices);
  check_rank(check.op, "kv[0]", first, 4, dims);
  check_rank(check.op, "block_table", table, 2, "[B, max_blocks]");
  std::vector<cuda::PagePool> pools;
  for (size_t n = 0; n < kv.size(); ++n) {
    const std::string arg = "kv[" + std::to_string(n) + "]";
    pools.push_back(page_pool(check, arg, kv[n], first, token_dim, dims));
    for (size_t other = 0; other < n && pools[n].heads * pools[n].width > 0; ++other) {
      VTK_CHECK(pools[other].data != pools[n].data, check.op, arg,
                "the same memory as kv[" + std::to_string(other) + "]", "each pool once");
    }
  }
  cuda::PagedCompaction p{};
  p.batch = table.sizes[0];
  p.blocks = first.sizes[0];
  p.block_size = first.sizes[token_dim];
  p.table = page_table(check, "block_table", block_table, p.batch);
  if (dst_block_table) p.target = page_table(check, "dst_block_table", *dst_block_table, p.batch);
  // A table without pages has no memory, and still is a table.
  static const int no_pages = 0;
  if (dst_block_table && p.target.data == nullptr) p.target.data = &no_pages;
  const int32_t int32 = aoti_torch_dtype_int32();
  check.vector("seq_lens", seq_lens, p.batch, int32, "B");
  p.lengths = int_view(View(seq_lens));
  p.kept = check_indices(check, indices, {p.batch, 0}).sizes[1];
  p.indices = index_view(i);
  if (counts) {
    check.vector("counts", *counts, p.batch, int32, "B");
    p.counts = int_view(View(*counts));
  }
  p.allow_shared = allow_shared;
  check.output("out_seq_lens", out_seq_lens, {p.batch}, int32);
  check.output("out_slot_mapping", out_slot_mapping, {p.batch, p.kept}, aoti_torch_dtype_int64(), true);
  check.output("out_freed_blocks", out_freed_blocks, {p.batch, p.table.width}, int32);
  const View freed(out_freed_blocks);
  p.out_lengths = reinterpret_cast<int*>(View(out_seq_lens).mutable_data());
  p.slots = index_view(View(out_slot_mapping));
  p.freed = reinterpret_cast<int*>(freed.mutable_data());
  p.freed_batch_stride = freed.strides[0];
  p.status = check.status(status);
  const int64_t claims = cuda::page_claims(p.blocks, !dst_block_table);
  const Tensor counters = empty({claims}, int32, device_type(), device.index);
  const Tensor plans = empty({2 * p.batch}, aoti_torch_dtype_int64(), device_type(), device.index);
  p.claims = reinterpret_cast<int*>(View(counters).mutable_data());
  p.row_plans = reinterpret_cast<int64_t*>(View(plans).mutable_data());
  cuda::clear_words(p.claims, claims, device.stream);
  cuda::compact_pages(p, pools, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("compact_kv_paged.out", VTK_BOX(compact_kv_paged_out));
}

}  // namespace vtkernels
