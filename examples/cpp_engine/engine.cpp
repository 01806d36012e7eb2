#include "engine.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <set>

namespace engine {
namespace {

using at::Tensor;
using Optional = const std::optional<Tensor>&;

// The schemas of the ops, as C++ types.
using PrunePagedOut = void(const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k,
                           c10::SymInt total_out, at::TensorList kv, const Tensor& block_table, const Tensor& seq_lens,
                           bool keep_similar, Optional context_lens, Optional span_starts, Optional span_lens,
                           Optional prototype_rnorm, Optional dst_block_table, c10::string_view kv_layout,
                           bool allow_shared, Tensor& out_hidden, Tensor& out_indices, Tensor& out_scores,
                           Tensor& out_cu_seqlens, Tensor& out_seq_lens, Tensor& out_slot_mapping,
                           Tensor& out_freed_blocks, Optional workspace, Optional status);
using CompactPagedOut = void(at::TensorList kv, const Tensor& block_table, const Tensor& seq_lens,
                             const Tensor& indices, Optional counts, Optional dst_block_table,
                             c10::string_view kv_layout, bool allow_shared, Tensor& out_seq_lens,
                             Tensor& out_slot_mapping, Tensor& out_freed_blocks, Optional status);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "out").typed<Signature>();
}

void check_shape(const char* call, const char* arg, const Tensor& t, at::IntArrayRef shape, const Tensor& like) {
  if (t.sizes() != shape) {
    std::ostringstream allowed;
    allowed << shape;
    refuse(call, arg, t.sizes(), allowed.str());
  }
  if (t.scalar_type() != like.scalar_type()) refuse(call, arg, t.scalar_type(), like.scalar_type());
  if (t.device() != like.device()) refuse(call, arg, t.device(), like.device());
}

int32_t* ints(const Tensor& t) { return t.mutable_data_ptr<int32_t>(); }

}  // namespace

Engine::Engine(const Sizes& sizes, Tensor prototypes)
    : sizes_(sizes), table_(sizes.pages, sizes.page_size), prototypes_(std::move(prototypes)) {
  for (const int64_t size : {sizes.layers, sizes.pages, sizes.page_size, sizes.heads, sizes.head_dim,
                             sizes.max_requests, sizes.max_tokens}) {
    check(size >= 1, "Engine", "sizes", size, "at least 1");
  }
  if (prototypes_.dim() != 2) refuse("Engine", "prototypes", prototypes_.sizes(), "a 2-D tensor [P, D]");
  if (!prototypes_.is_cpu()) refuse("Engine", "prototypes", prototypes_.device(), "a tensor on the CPU");
  const auto real = prototypes_.options();
  const auto int32 = real.dtype(at::kInt);
  const int64_t rows = sizes.max_requests, tokens = sizes.max_tokens;
  pool_ = at::zeros({sizes.layers, 2, sizes.pages, sizes.page_size, sizes.heads, sizes.head_dim}, real);
  for (const Tensor& layer : pool_.unbind(0)) {
    for (const Tensor& part : layer.unbind(0)) kv_.push_back(part);
  }
  tables_ = at::zeros({rows, sizes.pages}, int32);
  seq_lens_ = at::zeros({rows}, int32);
  cu_seqlens_ = at::zeros({rows + 1}, int32);
  k_ = at::zeros({rows}, int32);
  span_starts_ = at::zeros({rows}, int32);
  span_lens_ = at::zeros({rows}, int32);
  hidden_ = at::empty({tokens, prototypes_.size(1)}, real);
  indices_ = at::empty({tokens}, real.dtype(at::kLong));
  scores_ = at::empty({tokens}, real.dtype(at::kFloat));
  out_cu_seqlens_ = at::empty({rows + 1}, int32);
  out_seq_lens_ = at::empty({rows}, int32);
  slots_ = at::empty({tokens}, real.dtype(at::kLong));
  freed_ = at::empty({rows, sizes.pages}, int32);
  workspace_ = at::zeros({64 + 8 * rows}, int32);  // vtkernels.workspace_size
  status_ = at::zeros({1}, int32);
}

void Engine::write(const Request& request, int64_t first, const Tensor& keys, const Tensor& values) {
  std::vector<int64_t> slots;
  for (int64_t i = first; i < request.length; ++i) slots.push_back(table_.slot(request, i));
  const Tensor at_slots = at::from_blob(slots.data(), {static_cast<int64_t>(slots.size())}, at::kLong);
  for (int64_t layer = 0; layer < sizes_.layers; ++layer) {
    kv_[2 * layer].flatten(0, 1).index_copy_(0, at_slots, keys[layer]);
    kv_[2 * layer + 1].flatten(0, 1).index_copy_(0, at_slots, values[layer]);
  }
}

// One row of the metadata that the ops read.
void Engine::describe(int64_t row, const Request& request) {
  std::copy(request.pages.begin(), request.pages.end(), ints(tables_) + row * sizes_.pages);
  ints(seq_lens_)[row] = static_cast<int32_t>(request.length);
  ints(span_starts_)[row] = static_cast<int32_t>(request.span_start);
  ints(span_lens_)[row] = static_cast<int32_t>(request.span_len);
}

// The ops never stop on bad metadata: they leave that sequence as it was and say so here.
void Engine::check_status(const char* call) const {
  const int32_t status = *ints(status_);
  *ints(status_) = 0;
  if (status != 0) throw std::runtime_error(std::string(call) + ": the op's status is " + std::to_string(status));
}

int64_t Engine::admit(const Tensor& keys, const Tensor& values, int64_t span_start, int64_t span_len) {
  const int64_t tokens = keys.dim() == 4 ? keys.size(1) : 0;
  const std::vector<int64_t> shape{sizes_.layers, tokens, sizes_.heads, sizes_.head_dim};
  check_shape("admit", "keys", keys, shape, pool_);
  check_shape("admit", "values", values, shape, pool_);
  check(tokens >= 1, "admit", "keys", tokens, "at least 1 token");
  check(span_start >= 0 && span_start <= tokens, "admit", "span_start", span_start, range(0, tokens));
  check(span_len >= 0 && span_len <= tokens - span_start, "admit", "span_len", span_len, range(0, tokens - span_start));
  const int64_t id = table_.admit(tokens, span_start, span_len);
  write(table_.at("admit", id), 0, keys, values);
  return id;
}

std::tuple<Tensor, Tensor> Engine::prune(const std::vector<int64_t>& requests, const Tensor& hidden,
                                         const std::vector<int64_t>& keep) {
  const int64_t rows = static_cast<int64_t>(requests.size());
  check(rows >= 1 && rows <= sizes_.max_requests, "prune", "requests", rows, range(1, sizes_.max_requests));
  check(static_cast<int64_t>(keep.size()) == rows, "prune", "keep", keep.size(), "as many as requests");
  if (static_cast<int64_t>(std::set(requests.begin(), requests.end()).size()) != rows) {
    refuse("prune", "requests", "a list that names one twice", "each request once");
  }
  int64_t tokens = 0, kept = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const Request& request = table_.at("prune", requests[i]);
    check(keep[i] >= 0 && keep[i] <= request.span_len, "prune", "keep", keep[i], range(0, request.span_len));
    tokens += request.length;
    kept += request.length - request.span_len + keep[i];
  }
  check_shape("prune", "hidden", hidden, {tokens, prototypes_.size(1)}, prototypes_);
  check(tokens <= sizes_.max_tokens, "prune", "hidden", tokens, range(1, sizes_.max_tokens));

  for (int64_t i = 0; i < rows; ++i) {
    const Request& request = table_.at("prune", requests[i]);
    describe(i, request);
    ints(k_)[i] = static_cast<int32_t>(keep[i]);
    ints(cu_seqlens_)[i + 1] = ints(cu_seqlens_)[i] + static_cast<int32_t>(request.length);
  }
  Tensor out_hidden = hidden_.narrow(0, 0, kept), indices = indices_.narrow(0, 0, kept);
  Tensor scores = scores_.narrow(0, 0, tokens), out_cu = out_cu_seqlens_.narrow(0, 0, rows + 1);
  Tensor lengths = out_seq_lens_.narrow(0, 0, rows), slots = slots_.narrow(0, 0, kept);
  Tensor freed = freed_.narrow(0, 0, rows);
  static const auto op = find_op<PrunePagedOut>("vtkernels::prune_topk_paged");
  op.call(hidden, prototypes_, cu_seqlens_.narrow(0, 0, rows + 1), k_.narrow(0, 0, rows), kept, kv_,
          tables_.narrow(0, 0, rows), seq_lens_.narrow(0, 0, rows), false, std::nullopt,
          span_starts_.narrow(0, 0, rows), span_lens_.narrow(0, 0, rows), std::nullopt, std::nullopt, "NHD", false,
          out_hidden, indices, scores, out_cu, lengths, slots, freed, workspace_, status_);

  const int64_t* row_of = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    Request& request = table_.at("prune", requests[i]);
    if (ints(lengths)[i] != request.length - request.span_len + keep[i]) continue;  // left as it was
    table_.compacted(request, ints(lengths)[i], keep[i], ints(freed) + i * sizes_.pages, sizes_.pages);
    const int64_t* visual = row_of + ints(out_cu)[i] + request.span_start;
    request.scores.assign(keep[i], 0.0f);
    for (int64_t j = 0; j < keep[i]; ++j) request.scores[j] = scores.const_data_ptr<float>()[visual[j]];
  }
  check_status("prune");
  return {out_hidden, indices};
}

void Engine::shrink(int64_t id, int64_t keep) {
  Request& request = table_.at("shrink", id);
  if (static_cast<int64_t>(request.scores.size()) != request.span_len) {
    refuse("shrink", "request", "one without scores", "a request that was pruned before");
  }
  check(keep >= 0 && keep <= request.span_len, "shrink", "keep", keep, range(0, request.span_len));
  std::vector<int64_t> positions = PageTable::best(request, keep);
  const int64_t kept = static_cast<int64_t>(positions.size());
  describe(0, request);
  // Scores of what stays, for the next time.
  std::vector<float> scores;
  for (int64_t i = 0; i < keep; ++i) {
    scores.push_back(request.scores[positions[request.span_start + i] - request.span_start]);
  }
  const Tensor indices = at::from_blob(positions.data(), {1, kept}, at::kLong);
  std::vector<int64_t> slot_row(kept);
  Tensor slots = at::from_blob(slot_row.data(), {1, kept}, at::kLong);
  Tensor lengths = out_seq_lens_.narrow(0, 0, 1), freed = freed_.narrow(0, 0, 1);
  static const auto op = find_op<CompactPagedOut>("vtkernels::compact_kv_paged");
  op.call(kv_, tables_.narrow(0, 0, 1), seq_lens_.narrow(0, 0, 1), indices, std::nullopt, std::nullopt, "NHD", false,
          lengths, slots, freed, status_);
  check_status("shrink");
  table_.compacted(request, *ints(lengths), keep, ints(freed), sizes_.pages);
  request.scores = std::move(scores);
}

Tensor Engine::decode(int64_t id, const Tensor& queries, const Tensor& keys, const Tensor& values) {
  Request& request = table_.at("decode", id);
  const std::vector<int64_t> shape{sizes_.layers, sizes_.heads, sizes_.head_dim};
  check_shape("decode", "keys", keys, shape, pool_);
  check_shape("decode", "values", values, shape, pool_);
  const int64_t query_heads = queries.dim() == 3 ? queries.size(1) : 0;
  check_shape("decode", "queries", queries, {sizes_.layers, query_heads, sizes_.head_dim}, pool_);
  check(query_heads >= 1 && query_heads % sizes_.heads == 0, "decode", "queries", query_heads,
        "a multiple of the " + std::to_string(sizes_.heads) + " heads");
  const int64_t position = request.length;
  table_.grow("decode", request, 1);
  write(request, position, keys.unsqueeze(1), values.unsqueeze(1));

  std::vector<int64_t> pages(request.pages.begin(), request.pages.end());
  const Tensor which = at::from_blob(pages.data(), {static_cast<int64_t>(pages.size())}, at::kLong);
  Tensor out = at::empty_like(queries);
  for (int64_t layer = 0; layer < sizes_.layers; ++layer) {
    Tensor held[2];  // [1, heads, length, head_dim]
    for (int64_t part = 0; part < 2; ++part) {
      const Tensor rows = kv_[2 * layer + part].index_select(0, which).flatten(0, 1).narrow(0, 0, request.length);
      held[part] = rows.transpose(0, 1).unsqueeze(0);
    }
    const Tensor query = queries[layer].unsqueeze(0).unsqueeze(2);
    out[layer].copy_(at::scaled_dot_product_attention(query, held[0], held[1], {}, 0.0, false, std::nullopt,
                                                      /*enable_gqa=*/true)
                         .view({query_heads, sizes_.head_dim}));
  }
  return out;
}

}  // namespace engine
