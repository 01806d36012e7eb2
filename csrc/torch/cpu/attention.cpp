// attention_scores and attention_scores_varlen as torch ops on the CPU.
#include <cmath>

#include "common.h"
#include "vtkernels/cpu_attention.h"

namespace vtkernels {
namespace {

using cpu::AttentionProblem;
using cpu::AttentionSequence;
using cpu::Reduce;

struct Attention {
  AttentionProblem problem{};
  std::vector<AttentionSequence> sequences;
  std::vector<int64_t> shape;  // of the output
  int32_t status = 0;
};

Reduce reduction(const char* op, const char* arg, const std::string& name, bool heads) {
  if (name == "mean") return Reduce::kMean;
  if (name == "sum") return Reduce::kSum;
  if (name == "max") return Reduce::kMax;
  VTK_CHECK(heads && name == "none", op, arg, "'" + name + "'",
            heads ? "'mean' or 'sum' or 'max' or 'none'" : "'mean' or 'sum' or 'max'");
  return Reduce::kNone;
}

struct Options {
  const std::optional<Tensor>& lse;
  const std::optional<Tensor>& weights;
  const std::optional<double>& scale;
  bool causal;
  const std::string& reduce_rows;
  const std::string& reduce_heads;
  bool logits;
};

// What both ops have in common. The head dimension of the views is `query_head` or `key_head`.
AttentionProblem check_attention(const char* op, const Tensor& query, const Tensor& key, const View& q, const View& k,
                                 int64_t query_head, int64_t key_head, const Options& options) {
  AttentionProblem p{};
  check_device(op, "query", query, cpu_type());
  check_device(op, "key", key, cpu_type());
  p.dtype = float_dtype(op, "query", q.dtype);
  VTK_CHECK(k.dtype == q.dtype, op, "key", dtype_name(k.dtype), dtype_name(q.dtype));
  p.width = q.sizes[q.dims - 1];
  VTK_CHECK(p.width >= 1, op, "query", p.width, "at least 1 (d, its last dimension)");
  check_size(op, "key", k.sizes[k.dims - 1], p.width, "d");
  p.reduce_rows = reduction(op, "reduce_rows", options.reduce_rows, false);
  p.reduce_heads = reduction(op, "reduce_heads", options.reduce_heads, true);
  VTK_CHECK(!options.logits || !options.lse.has_value(), op, "lse", "given", "None with logits=True");
  p.heads = q.sizes[query_head];
  p.key_heads = k.sizes[key_head];
  VTK_CHECK(p.key_heads >= 1, op, "key", p.key_heads, "at least 1 (its heads)");
  VTK_CHECK(p.heads >= 1 && p.heads % p.key_heads == 0, op, "query", "of " + std::to_string(p.heads) + " heads",
            "a multiple of the " + std::to_string(p.key_heads) + " heads of `key`");
  p.query = q.data();
  p.query_head = q.strides[query_head];
  p.query_dim = q.strides[q.dims - 1];
  p.key = k.data();
  p.key_head = k.strides[key_head];
  p.key_dim = p.width == 1 ? 1 : k.strides[k.dims - 1];
  p.scale =
      static_cast<float>(options.scale.has_value() ? *options.scale : 1 / std::sqrt(static_cast<double>(p.width)));
  p.causal = options.causal;
  p.logits = options.logits;
  return p;
}

void check_floats(const char* op, const char* arg, const Tensor& t, Shape shape, const char* dims) {
  check_device(op, arg, t, cpu_type());
  const View v(t);
  VTK_CHECK(v.dtype == aoti_torch_dtype_float32(), op, arg, dtype_name(v.dtype), "float32");
  VTK_CHECK(Shape(v.sizes, v.dims) == shape, op, arg, "of shape " + text(v.shape()),
            std::string(dims) + ", here " + text(shape));
}

Attention check_dense(const char* op, const Tensor& query, const Tensor& key, const Options& options,
                      const std::optional<int64_t>& causal_offset, int64_t key_start, int64_t key_len,
                      const std::string& layout) {
  VTK_CHECK(layout == "HND" || layout == "NHD", op, "layout", "'" + layout + "'", "'HND' or 'NHD'");
  const bool heads_first = layout == "HND";
  const int64_t head = heads_first ? 1 : 2, token = 3 - head;
  const View q(query), k(key);
  check_rank(op, "query", q, 4, heads_first ? "a 4-D tensor [B, Hq, Tq, d]" : "a 4-D tensor [B, Tq, Hq, d]");
  check_rank(op, "key", k, 4, heads_first ? "a 4-D tensor [B, Hkv, S, d]" : "a 4-D tensor [B, S, Hkv, d]");
  Attention a{check_attention(op, query, key, q, k, head, head, options), {}, {}, 0};
  AttentionProblem& p = a.problem;
  const int64_t batch = q.sizes[0], rows = q.sizes[token], keys = k.sizes[token];
  check_size(op, "key", k.sizes[0], batch, "B");
  VTK_CHECK(options.causal || !causal_offset.has_value(), op, "causal_offset", *causal_offset,
            "None without causal=True");
  VTK_CHECK(key_start >= 0 && key_start <= keys, op, "key_start", key_start,
            "0 to " + std::to_string(keys) + " (the row has N tokens)");
  VTK_CHECK(key_len >= -1 && key_len <= keys - key_start, op, "key_len", key_len,
            "0 to " + std::to_string(keys - key_start) + " (-1, or at most N - key_start)");
  const int64_t count = key_len == -1 ? keys - key_start : key_len;
  p.query_row = q.strides[token];
  p.key_token = k.strides[token];
  int64_t weight_batch = 0, lse_batch = 0;
  if (options.lse.has_value()) {
    check_floats(op, "lse", *options.lse, std::vector<int64_t>{batch, p.heads, rows}, "[B, Hq, Tq]");
    const View v(*options.lse);
    p.lse = reinterpret_cast<const float*>(v.data());
    p.lse_head = v.strides[1];
    p.lse_row = v.strides[2];
    lse_batch = v.strides[0];
  }
  if (options.weights.has_value()) {
    check_floats(op, "row_weights", *options.weights, std::vector<int64_t>{batch, rows}, "[B, Tq]");
    const View v(*options.weights);
    p.weights = reinterpret_cast<const float*>(v.data());
    p.weight_stride = v.strides[1];
    weight_batch = v.strides[0];
  }
  const int64_t offset = std::clamp<int64_t>(causal_offset.value_or(keys - rows), -rows, keys);
  const bool each = p.reduce_heads == Reduce::kNone;
  for (int64_t b = 0; b < batch; ++b) {
    a.sequences.push_back({b * q.strides[0], rows, b * k.strides[0], keys, nullptr, key_start, count, b,
                           b * weight_batch, b * lse_batch, offset});
  }
  a.shape = each ? std::vector<int64_t>{batch, p.heads, count} : std::vector<int64_t>{batch, count};
  return a;
}

void run_dense(Attention& a, const Tensor& out) {
  const View o(out);
  a.problem.out = reinterpret_cast<float*>(o.mutable_data());
  a.problem.out_head = o.dims == 3 ? o.strides[1] : 0;
  for (AttentionSequence& s : a.sequences) s.scores *= o.strides[0];
  cpu::attention_scores(torch_pool(), a.problem, a.sequences.data(), static_cast<int64_t>(a.sequences.size()));
}

Tensor attention_scores(const Tensor& query, const Tensor& key, const std::optional<Tensor>& lse,
                        const std::optional<Tensor>& weights, const std::optional<double>& scale, bool causal,
                        const std::optional<int64_t>& causal_offset, int64_t key_start, int64_t key_len,
                        const std::string& reduce_rows, const std::string& reduce_heads, bool logits,
                        const std::string& layout) {
  const Options options{lse, weights, scale, causal, reduce_rows, reduce_heads, logits};
  Attention a = check_dense("attention_scores", query, key, options, causal_offset, key_start, key_len, layout);
  Tensor out = empty_cpu(a.shape, aoti_torch_dtype_float32());
  run_dense(a, out);
  return out;
}

void attention_scores_out(const Tensor& query, const Tensor& key, const std::optional<Tensor>& lse,
                          const std::optional<Tensor>& weights, const std::optional<double>& scale, bool causal,
                          const std::optional<int64_t>& causal_offset, int64_t key_start, int64_t key_len,
                          const std::string& reduce_rows, const std::string& reduce_heads, bool logits,
                          const std::string& layout, const Tensor& out) {
  const char* op = "attention_scores.out";
  const Options options{lse, weights, scale, causal, reduce_rows, reduce_heads, logits};
  Attention a = check_dense(op, query, key, options, causal_offset, key_start, key_len, layout);
  check_output(op, "out", out, a.shape, aoti_torch_dtype_float32(), false, cpu_type());
  run_dense(a, out);
}

// First element and length of each sequence, made safe.
struct Bounds {
  Bounds(const char* op, const char* arg, const Tensor& t, int64_t batch, int64_t tokens, int64_t most) {
    check_vector(op, arg, t, batch + 1, aoti_torch_dtype_int32(), "B + 1", cpu_type());
    const View v(t);
    const auto* given = reinterpret_cast<const int32_t*>(v.data());
    int64_t last = 0;
    good = given[0] == 0;
    for (int64_t i = 0; i <= batch; ++i) {
      const int64_t value = given[i * v.strides[0]];
      const int64_t bound = std::max(last, std::clamp<int64_t>(value, 0, tokens));
      good &= bound == value;
      if (i > 0) {
        good &= bound - last <= most;
        first.push_back(last);
        length.push_back(std::min(bound - last, most));
      }
      last = bound;
    }
  }
  std::vector<int64_t> first, length;
  bool good;
};

void check_count(const char* op, const char* arg, int64_t got, const char* what) {
  VTK_CHECK(got >= 0 && got <= INT32_MAX, op, arg, got, std::string("0 to 2147483647 (") + what + ")");
}

Attention check_varlen(const char* op, const Tensor& query, const Tensor& key, const Tensor& cu_seqlens_q,
                       const Tensor& cu_seqlens_k, int64_t total_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
                       const std::optional<Tensor>& block_table, const Options& options, const std::string& layout) {
  VTK_CHECK(layout == "HND" || layout == "NHD", op, "kv_layout", "'" + layout + "'", "'HND' or 'NHD'");
  const bool heads_first = layout == "HND", paged = block_table.has_value();
  const View q(query), k(key);
  check_rank(op, "query", q, 3, "a 3-D tensor [Tq, Hq, d]");
  check_rank(op, "key", k, paged ? 4 : 3,
             paged ? "a 4-D tensor of blocks, as kv_layout says"
                   : "a 3-D tensor [Tk, Hkv, d] or [Hkv, Tk, d], as kv_layout says");
  const int64_t first = paged ? 1 : 0, head = heads_first ? first : first + 1, token = heads_first ? first + 1 : first;
  Attention a{check_attention(op, query, key, q, k, 1, head, options), {}, {}, 0};
  AttentionProblem& p = a.problem;
  p.query_row = q.strides[0];
  p.key_token = k.strides[token];
  const View cu(cu_seqlens_q);
  check_rank(op, "cu_seqlens_q", cu, 1, "a 1-D tensor [B + 1]");
  const int64_t batch = cu.sizes[0] - 1;
  VTK_CHECK(batch >= 0, op, "cu_seqlens_q", 0, "1 or more (its length, B + 1)");
  const int32_t* table = nullptr;
  int64_t table_batch = 0;
  if (paged) {
    check_device(op, "block_table", *block_table, cpu_type());
    const View t(*block_table);
    VTK_CHECK(t.dtype == aoti_torch_dtype_int32(), op, "block_table", dtype_name(t.dtype), "int32");
    check_rank(op, "block_table", t, 2, "a 2-D tensor [B, max_blocks]");
    check_size(op, "block_table", t.sizes[0], batch, "B");
    VTK_CHECK(k.sizes[token] >= 1, op, "key", k.sizes[token], "at least 1 (block_size)");
    table = reinterpret_cast<const int32_t*>(t.data());
    table_batch = t.strides[0];
    p.block_size = k.sizes[token];
    p.block_stride = k.strides[0];
    p.blocks = k.sizes[0];
    p.table_stride = t.strides[1];
    p.table_length = t.sizes[1];
    check_count(op, "total_k", total_k, "keys of all sequences");
  } else {
    check_size(op, "total_k", total_k, k.sizes[token], "Tk (the packed keys)");
  }
  check_count(op, "max_seqlen_q", max_seqlen_q, "query rows of the longest sequence");
  check_count(op, "max_seqlen_k", max_seqlen_k, "keys of the longest sequence");
  const int64_t total_q = q.sizes[0];
  if (options.lse.has_value()) {
    check_floats(op, "lse", *options.lse, std::vector<int64_t>{p.heads, total_q}, "[Hq, Tq]");
    const View v(*options.lse);
    p.lse = reinterpret_cast<const float*>(v.data());
    p.lse_head = v.strides[0];
    p.lse_row = v.strides[1];
  }
  if (options.weights.has_value()) {
    check_floats(op, "row_weights", *options.weights, std::vector<int64_t>{total_q}, "[Tq]");
    const View v(*options.weights);
    p.weights = reinterpret_cast<const float*>(v.data());
    p.weight_stride = v.strides[0];
  }
  const Bounds rows(op, "cu_seqlens_q", cu_seqlens_q, batch, total_q, max_seqlen_q);
  const Bounds keys(op, "cu_seqlens_k", cu_seqlens_k, batch, total_k, max_seqlen_k);
  if (!rows.good || !keys.good) a.status |= kBadSeqlens;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t row = rows.first[i], begin = keys.first[i], length = keys.length[i];
    a.sequences.push_back({row * p.query_row, rows.length[i], paged ? 0 : begin * p.key_token, length,
                           paged ? table + i * table_batch : nullptr, 0, length, begin, row * p.weight_stride,
                           row * p.lse_row, length - rows.length[i]});
    for (int64_t key = 0; paged && key < length; key += p.block_size) {
      if (p.block_of(a.sequences.back(), key) < 0) a.status |= kBadIndex;
    }
  }
  const bool each = p.reduce_heads == Reduce::kNone;
  a.shape = each ? std::vector<int64_t>{p.heads, total_k} : std::vector<int64_t>{total_k};
  return a;
}

void run_varlen(Attention& a, const Tensor& out) {
  const View o(out);
  auto* scores = reinterpret_cast<float*>(o.mutable_data());
  a.problem.out = scores;
  a.problem.out_head = o.dims == 2 ? o.strides[0] : 0;
  for (int64_t h = 0; h < (o.dims == 2 ? o.sizes[0] : 1); ++h) {
    std::fill_n(scores + h * a.problem.out_head, o.sizes[o.dims - 1], NAN);
  }
  cpu::attention_scores(torch_pool(), a.problem, a.sequences.data(), static_cast<int64_t>(a.sequences.size()));
}

Tensor attention_scores_varlen(const Tensor& query, const Tensor& key, const Tensor& cu_seqlens_q,
                               const Tensor& cu_seqlens_k, int64_t total_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
                               const std::optional<Tensor>& block_table, const std::optional<Tensor>& lse,
                               const std::optional<Tensor>& weights, const std::optional<double>& scale, bool causal,
                               const std::string& reduce_rows, const std::string& reduce_heads, bool logits,
                               const std::string& layout) {
  const Options options{lse, weights, scale, causal, reduce_rows, reduce_heads, logits};
  Attention a = check_varlen("attention_scores_varlen", query, key, cu_seqlens_q, cu_seqlens_k, total_k, max_seqlen_q,
                             max_seqlen_k, block_table, options, layout);
  Tensor out = empty_cpu(a.shape, aoti_torch_dtype_float32());
  run_varlen(a, out);
  return out;
}

void attention_scores_varlen_out(const Tensor& query, const Tensor& key, const Tensor& cu_seqlens_q,
                                 const Tensor& cu_seqlens_k, int64_t total_k, int64_t max_seqlen_q,
                                 int64_t max_seqlen_k, const std::optional<Tensor>& block_table,
                                 const std::optional<Tensor>& lse, const std::optional<Tensor>& weights,
                                 const std::optional<double>& scale, bool causal, const std::string& reduce_rows,
                                 const std::string& reduce_heads, bool logits, const std::string& layout,
                                 const Tensor& out, const std::optional<Tensor>& status) {
  const char* op = "attention_scores_varlen.out";
  const Options options{lse, weights, scale, causal, reduce_rows, reduce_heads, logits};
  Attention a = check_varlen(op, query, key, cu_seqlens_q, cu_seqlens_k, total_k, max_seqlen_q, max_seqlen_k,
                             block_table, options, layout);
  check_output(op, "out", out, a.shape, aoti_torch_dtype_float32(), false, cpu_type());
  check_status(op, status);
  run_varlen(a, out);
  set_status(status, a.status);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("attention_scores", VTK_BOX(attention_scores));
  m.impl("attention_scores.out", VTK_BOX(attention_scores_out));
  m.impl("attention_scores_varlen", VTK_BOX(attention_scores_varlen));
  m.impl("attention_scores_varlen.out", VTK_BOX(attention_scores_varlen_out));
}
