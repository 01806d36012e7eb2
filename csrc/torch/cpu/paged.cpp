// compact_kv_paged and prune_topk_paged as torch ops on the CPU.
#include "../../cpu/compact/paged.h"

#include "../box.h"
#include "common.h"
#include "prune.h"

namespace vtkernels {
namespace {

using cpu::KeptSpan;
using cpu::PagedProblem;
using cpu::Pool;

struct Pages {
  PagedProblem problem;
  std::vector<Pool> pools;
};

// A 1-D optional or given int32 tensor.
cpu::Ints ints(const Tensor& t) {
  const View v(t);
  return {reinterpret_cast<const int32_t*>(v.data()), v.strides[0]};
}

cpu::PageTable page_table(const char* op, const char* arg, const Tensor& table, int64_t rows) {
  check_device(op, arg, table, cpu_type());
  const View t(table);
  VTK_CHECK(t.dtype == aoti_torch_dtype_int32(), op, arg, dtype_name(t.dtype), "int32");
  check_rank(op, arg, t, 2, "a 2-D tensor [B, max_blocks]");
  check_size(op, arg, t.sizes[0], rows, "B");
  return {reinterpret_cast<const int32_t*>(t.data()), t.sizes[1], t.strides[0], t.strides[1]};
}

Pool pool_of(const View& v, int64_t token_dim) {
  const int64_t head_dim = token_dim == 1 ? 2 : 1, size = v.element();
  Pool pool{v.mutable_data(),
            v.sizes[head_dim],
            v.sizes[3],
            size,
            v.sizes[3] > 1 ? v.strides[3] * size : size,
            v.strides[0] * size,
            v.strides[token_dim] * size,
            v.strides[head_dim] * size};
  if (pool.step == size && (pool.outer == 1 || pool.outer_stride == pool.width * size)) {  // all heads lie together
    pool.width *= pool.outer;
    pool.outer = 1;
  }
  return pool;
}

Pages check_pages(const char* op, const Tensors& kv, const Tensor& block_table, const Tensor& seq_lens,
                  const std::optional<Tensor>& dst_block_table, const std::string& layout, bool allow_shared,
                  int64_t rows) {
  VTK_CHECK(!kv.empty(), op, "kv", "empty", "at least one tensor");
  const int64_t dim = token_dim(op, layout);
  Pages pages{};
  const View first(kv[0]);
  for (size_t i = 0; i < kv.size(); ++i) {
    const Arg arg("kv", static_cast<int64_t>(i));
    check_device(op, arg, kv[i], cpu_type());
    const View v(kv[i]);
    check_rank(op, arg, v, 4, "[blocks, block_size, H, d] or [blocks, H, block_size, d], as kv_layout says");
    check_size(op, arg, v.sizes[0], first.sizes[0], "blocks");
    check_size(op, arg, v.sizes[dim], first.sizes[dim], "block_size");
    VTK_CHECK(v.sizes[dim] >= 1, op, arg, "of shape " + text(v.shape()), "a block_size of at least 1");
    for (int64_t d = 0; d < 4; ++d) {
      VTK_CHECK(v.sizes[d] <= 1 || v.strides[d] != 0, op, arg, "expanded",
                "a tensor whose elements each have their own memory");
    }
    pages.pools.push_back(pool_of(v, dim));
    const Pool& pool = pages.pools.back();
    for (size_t j = 0; j < i && pool.width * pool.outer * v.sizes[0] > 0; ++j) {
      VTK_CHECK(pages.pools[j].data != pool.data, op, arg, "the same memory as kv[" + std::to_string(j) + "]",
                "each pool once");
    }
  }
  PagedProblem& p = pages.problem;
  p.rows = rows;
  p.blocks = first.sizes[0];
  p.block_size = first.sizes[dim];
  p.table = page_table(op, "block_table", block_table, rows);
  check_vector(op, "seq_lens", seq_lens, rows, aoti_torch_dtype_int32(), "B", cpu_type());
  p.lengths = ints(seq_lens);
  if (dst_block_table.has_value()) {
    static const int32_t no_pages = 0;  // a table without pages has no memory, and still is a table
    p.target = page_table(op, "dst_block_table", *dst_block_table, rows);
    if (p.target.data == nullptr) p.target.data = &no_pages;
  }
  VTK_CHECK(dst_block_table.has_value() || !allow_shared, op, "allow_shared", "True",
            "False, unless `dst_block_table` is given");
  p.allow_shared = allow_shared;
  return pages;
}

// The counted, or else the leading real indices of each row.
void keep_indices(const char* op, PagedProblem& p, const Tensor& indices, const std::optional<Tensor>& counts) {
  check_device(op, "indices", indices, cpu_type());
  const View v(indices);
  VTK_CHECK(is_index(v.dtype), op, "indices", dtype_name(v.dtype), "int32, int64");
  check_rank(op, "indices", v, 2, "a 2-D tensor [B, k]");
  check_size(op, "indices", v.sizes[0], p.rows, "B");
  p.indices = {v.data(), v.dtype == aoti_torch_dtype_int64(), v.strides[0], v.strides[1]};
  if (counts.has_value()) check_vector(op, "counts", *counts, p.rows, aoti_torch_dtype_int32(), "B", cpu_type());
  for (int64_t b = 0; b < p.rows; ++b) {
    int64_t given = 0;
    if (counts.has_value()) {
      given = ints(*counts)[b];
    } else {
      for (int64_t j = 0; j < v.sizes[1]; ++j) given += p.indices.at(b, j) != -1;
    }
    const int64_t listed = std::clamp<int64_t>(given, 0, v.sizes[1]);
    p.kept.push_back({b, 0, listed, 0, 0, held_tokens(p, b), listed == given ? 0 : kBadIndex});
  }
}

struct PageOutputs {
  const Tensor &lengths, &slots, &freed;
};

int32_t run_pages(const Pages& pages, const PageOutputs& out, std::vector<int64_t> slot_row) {
  const View lengths(out.lengths), freed(out.freed);
  const cpu::PagedPlan plan = cpu::plan_pages(
      pages.problem, {reinterpret_cast<int32_t*>(lengths.mutable_data()), index_out(out.slots), std::move(slot_row),
                      reinterpret_cast<int32_t*>(freed.mutable_data()), freed.strides[0]});
  cpu::move_pages(torch_pool(), plan, pages.pools, pages.problem.block_size);
  return plan.flags;
}

int32_t run_compact(const Pages& pages, int64_t kept, const PageOutputs& out) {
  const View slots(out.slots);
  const IndexOut all = index_out(out.slots);
  std::vector<int64_t> slot_row(pages.problem.rows);
  for (int64_t b = 0; b < pages.problem.rows; ++b) {
    slot_row[b] = b * slots.strides[0];
    for (int64_t j = pages.problem.kept[b].listed; j < kept; ++j) all.store(slot_row[b] + j, -1);
  }
  return run_pages(pages, out, std::move(slot_row));
}

Pages check_compact(const char* op, const Tensors& kv, const Tensor& block_table, const Tensor& seq_lens,
                    const Tensor& indices, const std::optional<Tensor>& counts,
                    const std::optional<Tensor>& dst_block_table, const std::string& layout, bool allow_shared) {
  check_device(op, "block_table", block_table, cpu_type());
  const View table(block_table);
  check_rank(op, "block_table", table, 2, "a 2-D tensor [B, max_blocks]");
  Pages pages = check_pages(op, kv, block_table, seq_lens, dst_block_table, layout, allow_shared, table.sizes[0]);
  keep_indices(op, pages.problem, indices, counts);
  return pages;
}

std::tuple<Tensor, Tensor, Tensor> compact_kv_paged(const Tensors& kv, const Tensor& block_table,
                                                    const Tensor& seq_lens, const Tensor& indices,
                                                    const std::optional<Tensor>& counts,
                                                    const std::optional<Tensor>& dst_block_table,
                                                    const std::string& layout, bool allow_shared) {
  const Pages pages = check_compact("compact_kv_paged", kv, block_table, seq_lens, indices, counts, dst_block_table,
                                    layout, allow_shared);
  const int64_t rows = pages.problem.rows, kept = View(indices).sizes[1];
  Tensor lengths = empty_cpu({rows}, aoti_torch_dtype_int32());
  Tensor slots = empty_cpu({rows, kept}, aoti_torch_dtype_int64());
  Tensor freed = empty_cpu({rows, pages.problem.table.width}, aoti_torch_dtype_int32());
  run_compact(pages, kept, {lengths, slots, freed});
  return {std::move(lengths), std::move(slots), std::move(freed)};
}

void check_page_outputs(const char* op, const Pages& pages, const PageOutputs& out, Shape slots) {
  const int64_t rows = pages.problem.rows;
  check_output(op, "out_seq_lens", out.lengths, {rows}, aoti_torch_dtype_int32(), false, cpu_type());
  check_output(op, "out_slot_mapping", out.slots, slots, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_freed_blocks", out.freed, {rows, pages.problem.table.width}, aoti_torch_dtype_int32(), false,
               cpu_type());
}

void compact_kv_paged_out(const Tensors& kv, const Tensor& block_table, const Tensor& seq_lens, const Tensor& indices,
                          const std::optional<Tensor>& counts, const std::optional<Tensor>& dst_block_table,
                          const std::string& layout, bool allow_shared, const Tensor& out_seq_lens,
                          const Tensor& out_slot_mapping, const Tensor& out_freed_blocks,
                          const std::optional<Tensor>& status) {
  const char* op = "compact_kv_paged.out";
  const Pages pages =
      check_compact(op, kv, block_table, seq_lens, indices, counts, dst_block_table, layout, allow_shared);
  const PageOutputs out{out_seq_lens, out_slot_mapping, out_freed_blocks};
  const int64_t kept = View(indices).sizes[1];
  check_page_outputs(op, pages, out, {pages.problem.rows, kept});
  check_status(op, status);
  set_status(status, run_compact(pages, kept, out));
}

struct PagedPrune {
  PackedPrune tokens;
  Pages pages;
};

PagedPrune check_paged(const char* op, const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens,
                       const Tensor& k, int64_t total_out, const Tensors& kv, const Tensor& block_table,
                       const Tensor& seq_lens, const std::optional<Tensor>& context_lens,
                       const std::optional<Tensor>& span_starts, const std::optional<Tensor>& span_lens,
                       const std::optional<Tensor>& rnorm, const std::optional<Tensor>& dst_block_table,
                       const std::string& layout, bool allow_shared) {
  PagedPrune p{check_varlen(op, hidden, prototypes, cu_seqlens, k, total_out, {}, span_starts, span_lens, rnorm, "NHD"),
               {}};
  const int64_t rows = static_cast<int64_t>(p.tokens.rows.size());
  p.pages = check_pages(op, kv, block_table, seq_lens, dst_block_table, layout, allow_shared, rows);
  if (context_lens.has_value()) {
    check_vector(op, "context_lens", *context_lens, rows, aoti_torch_dtype_int32(), "B", cpu_type());
  }
  PagedProblem& problem = p.pages.problem;
  for (int64_t b = 0; b < rows; ++b) {
    const Row& row = p.tokens.rows[b];
    const int64_t first = p.tokens.cu_out[b], held = held_tokens(problem, b);
    const int64_t context = context_lens.has_value() ? ints(*context_lens)[b] : problem.lengths[b] - row.length;
    const int64_t prefix = std::clamp<int64_t>(context, 0, held);
    const int64_t suffix = std::clamp<int64_t>(context + row.length, prefix, held);
    const bool fits = prefix == context && suffix == context + row.length;
    problem.kept.push_back(
        {0, first, p.tokens.cu_out[b + 1] - first, context - row.begin, prefix, suffix, fits ? 0 : kBadSeqlens});
  }
  return p;
}

struct PrunedOutputs {
  const Tensor &hidden, &indices, &scores, &cu_seqlens;
};

int32_t run_paged(PagedPrune& p, const Tensor& hidden, int64_t total_out, bool keep_similar, const PrunedOutputs& out,
                  const PageOutputs& page_out) {
  const Tensors none;
  run_varlen(p.tokens, hidden, total_out, none, keep_similar, false, {out.hidden, none, out.indices, out.scores},
             out.cu_seqlens);
  const View indices(out.indices);
  p.pages.problem.indices = {indices.data(), indices.dtype == aoti_torch_dtype_int64(), 0, 1};
  const IndexOut slots = index_out(page_out.slots);
  for (int64_t i = 0; i < total_out; ++i) slots.store(i, -1);
  return run_pages(p.pages, page_out, {p.tokens.cu_out.begin(), p.tokens.cu_out.end()});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> prune_topk_paged(
    const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k, int64_t total_out,
    const Tensors& kv, const Tensor& block_table, const Tensor& seq_lens, bool keep_similar,
    const std::optional<Tensor>& context_lens, const std::optional<Tensor>& span_starts,
    const std::optional<Tensor>& span_lens, const std::optional<Tensor>& rnorm,
    const std::optional<Tensor>& dst_block_table, const std::string& layout, bool allow_shared) {
  PagedPrune p =
      check_paged("prune_topk_paged", hidden, prototypes, cu_seqlens, k, total_out, kv, block_table, seq_lens,
                  context_lens, span_starts, span_lens, rnorm, dst_block_table, layout, allow_shared);
  const View x(hidden);
  const int32_t int32 = aoti_torch_dtype_int32(), int64 = aoti_torch_dtype_int64();
  const int64_t rows = p.pages.problem.rows;
  Tensor out_hidden = empty_cpu({total_out, x.sizes[1]}, x.dtype);
  Tensor indices = empty_cpu({total_out}, int64), scores = empty_cpu({x.sizes[0]}, aoti_torch_dtype_float32());
  Tensor cu_out = empty_cpu({rows + 1}, int32), lengths = empty_cpu({rows}, int32);
  Tensor slots = empty_cpu({total_out}, int64), freed = empty_cpu({rows, p.pages.problem.table.width}, int32);
  run_paged(p, hidden, total_out, keep_similar, {out_hidden, indices, scores, cu_out}, {lengths, slots, freed});
  return {std::move(out_hidden), std::move(indices), std::move(scores), std::move(cu_out),
          std::move(lengths),    std::move(slots),   std::move(freed)};
}

void prune_topk_paged_out(const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k,
                          int64_t total_out, const Tensors& kv, const Tensor& block_table, const Tensor& seq_lens,
                          bool keep_similar, const std::optional<Tensor>& context_lens,
                          const std::optional<Tensor>& span_starts, const std::optional<Tensor>& span_lens,
                          const std::optional<Tensor>& rnorm, const std::optional<Tensor>& dst_block_table,
                          const std::string& layout, bool allow_shared, const Tensor& out_hidden,
                          const Tensor& out_indices, const Tensor& out_scores, const Tensor& out_cu_seqlens,
                          const Tensor& out_seq_lens, const Tensor& out_slot_mapping, const Tensor& out_freed_blocks,
                          const std::optional<Tensor>& workspace, const std::optional<Tensor>& status) {
  const char* op = "prune_topk_paged.out";
  PagedPrune p = check_paged(op, hidden, prototypes, cu_seqlens, k, total_out, kv, block_table, seq_lens, context_lens,
                             span_starts, span_lens, rnorm, dst_block_table, layout, allow_shared);
  const View x(hidden);
  const int64_t rows = p.pages.problem.rows;
  const PageOutputs page_out{out_seq_lens, out_slot_mapping, out_freed_blocks};
  check_output(op, "out_hidden", out_hidden, {total_out, x.sizes[1]}, x.dtype, false, cpu_type());
  check_output(op, "out_indices", out_indices, {total_out}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_scores", out_scores, {x.sizes[0]}, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "out_cu_seqlens", out_cu_seqlens, {rows + 1}, aoti_torch_dtype_int32(), false, cpu_type());
  check_page_outputs(op, p.pages, page_out, {total_out});
  check_workspace(op, workspace, rows);
  check_status(op, status);
  const int32_t flags =
      run_paged(p, hidden, total_out, keep_similar, {out_hidden, out_indices, out_scores, out_cu_seqlens}, page_out);
  set_status(status, p.tokens.status | flags);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("compact_kv_paged", VTK_BOX(compact_kv_paged));
  m.impl("compact_kv_paged.out", VTK_BOX(compact_kv_paged_out));
  m.impl("prune_topk_paged", VTK_BOX(prune_topk_paged));
  m.impl("prune_topk_paged.out", VTK_BOX(prune_topk_paged_out));
}
