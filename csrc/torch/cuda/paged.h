// Pools of pages and the tables of their rows, as the ops on paged caches take them.
#pragma once

#include "gather.h"

namespace [[gnu::visibility("hidden")]] vtkernels {  // as tensors are

// A pool of pages, each of whose elements has its own memory.
inline cuda::PagePool page_pool(const Checker& check, const std::string& arg, const Tensor& t, const View& first,
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

inline cuda::PageTable page_table(const Checker& check, const char* arg, const Tensor& table, int64_t batch) {
  check.place(arg, table);
  const View t(table);
  VTK_CHECK(t.dtype == aoti_torch_dtype_int32(), check.op, arg, dtype_name(t.dtype), "int32");
  check_rank(check.op, arg, t, 2, "[B, max_blocks]");
  check_size(check.op, arg, t.sizes[0], batch, "B");
  // A table without pages has no memory, and still is a table.
  static const int no_pages = 0;
  const int* data = reinterpret_cast<const int*>(t.data());
  return {data == nullptr ? &no_pages : data, t.sizes[1], t.strides[0], t.strides[1]};
}

// A compaction, with the memory that it needs for itself.
struct Pages {
  cuda::PagedCompaction problem{};
  std::vector<cuda::PagePool> pools;
  std::vector<Tensor> scratch;
};

struct PageArgs {
  const std::vector<Tensor>& kv;
  const Tensor &block_table, &seq_lens;
  const OptionalTensor& dst_block_table;
  const std::string& kv_layout;
  bool allow_shared;
};

// Pools, tables and lengths; without what says which tokens are kept.
inline Pages check_pages(const Checker& check, const PageArgs& args, int64_t batch) {
  VTK_CHECK(!args.kv.empty(), check.op, "kv", "empty", "at least one tensor");
  VTK_CHECK(args.kv_layout == "HND" || args.kv_layout == "NHD", check.op, "kv_layout", args.kv_layout, "HND or NHD");
  VTK_CHECK(args.dst_block_table || !args.allow_shared, check.op, "allow_shared", "True",
            "False, unless `dst_block_table` is given");
  const int token_dim = args.kv_layout == "HND" ? 2 : 1;
  const char* dims = token_dim == 2 ? "[blocks, H, block_size, d]" : "[blocks, block_size, H, d]";
  const View first(args.kv[0]);
  check_rank(check.op, "kv[0]", first, 4, dims);
  Pages pages;
  for (size_t n = 0; n < args.kv.size(); ++n) {
    const std::string arg = "kv[" + std::to_string(n) + "]";
    pages.pools.push_back(page_pool(check, arg, args.kv[n], first, token_dim, dims));
    const bool empty = pages.pools[n].heads * pages.pools[n].width * first.sizes[0] == 0;
    for (size_t other = 0; other < n && !empty; ++other) {
      VTK_CHECK(pages.pools[other].data != pages.pools[n].data, check.op, arg,
                "the same memory as kv[" + std::to_string(other) + "]", "each pool once");
    }
  }
  cuda::PagedCompaction& p = pages.problem;
  p.batch = batch;
  p.blocks = first.sizes[0];
  p.block_size = first.sizes[token_dim];
  p.table = page_table(check, "block_table", args.block_table, batch);
  if (args.dst_block_table) p.target = page_table(check, "dst_block_table", *args.dst_block_table, batch);
  check.vector("seq_lens", args.seq_lens, batch, aoti_torch_dtype_int32(), "B");
  p.lengths = int_view(View(args.seq_lens));
  p.allow_shared = args.allow_shared;
  return pages;
}

struct PageOutputs {
  const Tensor &lengths, &slots, &freed;
};

inline void set_outputs(const Checker& check, Pages& pages, const PageOutputs& out, const std::vector<int64_t>& slots) {
  cuda::PagedCompaction& p = pages.problem;
  const int32_t int32 = aoti_torch_dtype_int32();
  check.output("out_seq_lens", out.lengths, {p.batch}, int32);
  check.output("out_slot_mapping", out.slots, slots, aoti_torch_dtype_int64(), true);
  check.output("out_freed_blocks", out.freed, {p.batch, p.table.width}, int32);
  const View freed(out.freed);
  p.out_lengths = reinterpret_cast<int*>(View(out.lengths).mutable_data());
  p.slots = index_view(View(out.slots));
  p.freed = reinterpret_cast<int*>(freed.mutable_data());
  p.freed_batch_stride = freed.strides[0];
}

inline void run_pages(Pages& pages, const Device& device) {
  cuda::PagedCompaction& p = pages.problem;
  const int64_t claims = cuda::page_claims(p.blocks, p.target.data == nullptr);
  pages.scratch = {empty({claims}, aoti_torch_dtype_int32(), device_type(), device.index),
                   empty({cuda::page_plans(p.batch)}, aoti_torch_dtype_int64(), device_type(), device.index)};
  p.claims = reinterpret_cast<int*>(View(pages.scratch[0]).mutable_data());
  p.row_plans = reinterpret_cast<int64_t*>(View(pages.scratch[1]).mutable_data());
  cuda::clear_words(p.claims, claims, device.stream);
  cuda::compact_pages(p, pages.pools, device.stream);
}

}  // namespace vtkernels
