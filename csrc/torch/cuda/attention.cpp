// Scores of keys by the attention that they receive.
#include <vtkernels/cuda/launch_attention.h>

#include <cmath>

#include "common.h"

namespace vtkernels {
namespace {

using cuda::AttentionProblem;
using cuda::Reduce;

Reduce reduction(const Checker& check, const char* arg, const std::string& name, bool heads) {
  if (name == "mean") return Reduce::kMean;
  if (name == "sum") return Reduce::kSum;
  if (name == "max") return Reduce::kMax;
  VTK_CHECK(heads && name == "none", check.op, arg, "'" + name + "'",
            heads ? "'mean' or 'sum' or 'max' or 'none'" : "'mean' or 'sum' or 'max'");
  return Reduce::kNone;
}

// A float32 tensor of this shape, or null where it is not given.
const float* floats(const Checker& check, const char* arg, const OptionalTensor& t, const std::vector<int64_t>& shape,
                    const char* dims) {
  if (!t) return nullptr;
  check.place(arg, *t);
  const View v(*t);
  VTK_CHECK(v.dtype == aoti_torch_dtype_float32(), check.op, arg, dtype_name(v.dtype), "float32");
  VTK_CHECK(v.shape() == shape, check.op, arg, "of shape " + text(v.shape()),
            std::string(dims) + ", here " + text(shape));
  return reinterpret_cast<const float*>(v.data());
}

// Queries and keys: what is seen of them, and their sizes.
void check_vectors(const Checker& check, const Tensor& query, const Tensor& key, const std::string& layout,
                   AttentionProblem& p) {
  VTK_CHECK(layout == "HND" || layout == "NHD", check.op, "layout", "'" + layout + "'", "'HND' or 'NHD'");
  const bool heads_first = layout == "HND";
  const int head = heads_first ? 1 : 2, token = 3 - head;
  check.place("query", query);
  check.place("key", key);
  const View q(query), k(key);
  p.dtype = floating(check, "query", q);
  VTK_CHECK(k.dtype == q.dtype, check.op, "key", dtype_name(k.dtype), dtype_name(q.dtype));
  check_rank(check.op, "query", q, 4, heads_first ? "[B, Hq, Tq, d]" : "[B, Tq, Hq, d]");
  check_rank(check.op, "key", k, 4, heads_first ? "[B, Hkv, S, d]" : "[B, S, Hkv, d]");
  p.batch = q.sizes[0];
  p.heads = q.sizes[head];
  p.key_heads = k.sizes[head];
  p.rows = q.sizes[token];
  p.keys = k.sizes[token];
  p.width = q.sizes[3];
  VTK_CHECK(p.width >= 1, check.op, "query", p.width, "at least 1 (d, its last dimension)");
  check_size(check.op, "key", k.sizes[3], p.width, "d");
  check_size(check.op, "key", k.sizes[0], p.batch, "B");
  VTK_CHECK(p.key_heads >= 1, check.op, "key", p.key_heads, "at least 1 (its heads)");
  VTK_CHECK(p.heads >= 1 && p.heads % p.key_heads == 0, check.op, "query", "of " + std::to_string(p.heads) + " heads",
            "a multiple of the " + std::to_string(p.key_heads) + " heads of `key`");
  p.query = {q.data(), q.strides[0], q.strides[head], q.strides[token], q.strides[3]};
  p.key = {k.data(), k.strides[0], k.strides[head], k.strides[token], k.strides[3]};
}

void attention_scores_out(const Tensor& query, const Tensor& key, const OptionalTensor& lse,
                          const OptionalTensor& row_weights, const std::optional<double>& scale, bool causal,
                          const std::optional<int64_t>& causal_offset, int64_t key_start, int64_t key_len,
                          const std::string& reduce_rows, const std::string& reduce_heads, bool logits,
                          const std::string& layout, const Tensor& out) {
  const Device device(query);
  const Checker check{"attention_scores.out", device.index};
  AttentionProblem p{};
  check_vectors(check, query, key, layout, p);
  p.reduce_rows = reduction(check, "reduce_rows", reduce_rows, false);
  p.reduce_heads = reduction(check, "reduce_heads", reduce_heads, true);
  VTK_CHECK(!logits || !lse, check.op, "lse", "given", "None with logits=True");
  VTK_CHECK(causal || !causal_offset, check.op, "causal_offset", *causal_offset, "None without causal=True");
  check.range("key_start", key_start, 0, p.keys);
  check.range("key_len", key_len, -1, p.keys - key_start);
  p.lse = floats(check, "lse", lse, {p.batch, p.heads, p.rows}, "[B, Hq, Tq]");
  if (lse) {
    const View v(*lse);
    p.lse_batch = v.strides[0];
    p.lse_head = v.strides[1];
    p.lse_row = v.strides[2];
  }
  p.weights = floats(check, "row_weights", row_weights, {p.batch, p.rows}, "[B, Tq]");
  if (row_weights) {
    const View v(*row_weights);
    p.weight_batch = v.strides[0];
    p.weight_row = v.strides[1];
  }
  p.scale = scale.value_or(1 / std::sqrt(static_cast<double>(p.width)));
  p.logits = logits;
  p.causal = causal;
  p.offset = std::clamp(causal_offset.value_or(p.keys - p.rows), -p.rows, p.keys);
  p.key_start = key_start;
  p.count = key_len == -1 ? p.keys - key_start : key_len;
  const bool each = p.reduce_heads == Reduce::kNone;
  check.output("out", out,
               each ? std::vector<int64_t>{p.batch, p.heads, p.count} : std::vector<int64_t>{p.batch, p.count},
               aoti_torch_dtype_float32());
  const View o(out);
  p.out = reinterpret_cast<float*>(o.mutable_data());
  p.out_batch = o.strides[0];
  p.out_head = each ? o.strides[1] : 0;
  const Tensor scratch = empty({cuda::attention_scratch(p)}, aoti_torch_dtype_float32(), device_type(), device.index);
  p.scratch = reinterpret_cast<float*>(View(scratch).mutable_data());
  cuda::attention_scores(p, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("attention_scores.out", VTK_BOX(attention_scores_out));
}

}  // namespace vtkernels
