// select_topk_varlen and select_quota as torch ops on the CPU.
#include "select.h"

namespace vtkernels {
namespace {

struct Packed {
  ScoreRows scores;
  MaskRows protected_tokens, excluded;
  std::vector<int64_t> bounds, counts;
  int64_t total_out;
  bool largest, by_score;
  int32_t status;
};

Packed check_packed(const char* op, const Tensor& scores, const Tensor& cu_seqlens, const Tensor& k, int64_t total_out,
                    bool largest, const OptionalTensor& protected_tokens, const OptionalTensor& excluded,
                    const std::string& order) {
  const ScoreRows s(op, scores, 1, "a 1-D tensor [T]");
  const View wanted(k);
  check_rank(op, "k", wanted, 1, "a 1-D tensor [B]");
  const int64_t batch = wanted.sizes[0];
  check_vector(op, "k", k, batch, aoti_torch_dtype_int32(), "B", cpu_type());
  check_vector(op, "cu_seqlens", cu_seqlens, batch + 1, aoti_torch_dtype_int32(), "B + 1", cpu_type());
  VTK_CHECK(total_out >= 0 && total_out <= s.n, op, "total_out", total_out,
            "0 to " + std::to_string(s.n) + " (at most the T packed scores)");
  Packed p{s,
           {op, "protected", protected_tokens, s},
           {op, "excluded", excluded, s},
           {},
           {},
           total_out,
           largest,
           by_score(op, order),
           0};
  if (!ascending_bounds(cu_seqlens, s.n, p.bounds) || p.bounds[0] != 0) p.status |= kBadSeqlens;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t asked = Ints(k)[i];
    p.counts.push_back(std::clamp<int64_t>(asked, 0, p.bounds[i + 1] - p.bounds[i]));
    if (p.counts[i] != asked) p.status |= kBadSpan;
  }
  return p;
}

// Returns the status bits.
int32_t run_packed(const Packed& p, const Tensor& out_indices, const Tensor& out_cu_seqlens) {
  const int64_t batch = static_cast<int64_t>(p.counts.size());
  std::vector<int64_t> chosen(p.bounds[batch] - p.bounds[0]), kept(batch);
  torch_pool()(batch, rows_per_thread(static_cast<int64_t>(chosen.size()) / std::max<int64_t>(1, batch)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t first = p.bounds[i];
                   const cpu::ScoreRow row{p.scores.data + first * p.scores.stride, p.scores.stride,
                                           p.bounds[i + 1] - first, p.largest};
                   kept[i] = cpu::select_masked(row, {p.protected_tokens.row(0, first), p.excluded.row(0, first)},
                                                p.counts[i], p.by_score, chosen.data() + first - p.bounds[0]);
                 }
               });
  const IndexOut indices = index_out(out_indices);
  auto* cu = reinterpret_cast<int32_t*>(View(out_cu_seqlens).mutable_data());
  int64_t at = 0;
  cu[0] = 0;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t* from = chosen.data() + p.bounds[i] - p.bounds[0];
    for (int64_t j = 0; j < kept[i] && at + j < p.total_out; ++j) indices.store(at + j, p.bounds[i] + from[j]);
    at += kept[i];
    cu[i + 1] = static_cast<int32_t>(std::min(at, p.total_out));
  }
  for (int64_t j = at; j < p.total_out; ++j) indices.store(j, -1);
  return p.status | (at > p.total_out ? kTruncated : 0);
}

std::tuple<Tensor, Tensor> select_topk_varlen(const Tensor& scores, const Tensor& cu_seqlens, const Tensor& k,
                                              int64_t total_out, bool largest, const OptionalTensor& protected_tokens,
                                              const OptionalTensor& excluded, const std::string& order) {
  const Packed p =
      check_packed("select_topk_varlen", scores, cu_seqlens, k, total_out, largest, protected_tokens, excluded, order);
  Tensor indices = empty_cpu({total_out}, aoti_torch_dtype_int64());
  Tensor cu = empty_cpu({static_cast<int64_t>(p.bounds.size())}, aoti_torch_dtype_int32());
  run_packed(p, indices, cu);
  return {std::move(indices), std::move(cu)};
}

void select_topk_varlen_out(const Tensor& scores, const Tensor& cu_seqlens, const Tensor& k, int64_t total_out,
                            bool largest, const OptionalTensor& protected_tokens, const OptionalTensor& excluded,
                            const std::string& order, const Tensor& out_indices, const Tensor& out_cu_seqlens,
                            const OptionalTensor& status) {
  const char* op = "select_topk_varlen.out";
  const Packed p = check_packed(op, scores, cu_seqlens, k, total_out, largest, protected_tokens, excluded, order);
  check_output(op, "out_indices", out_indices, {total_out}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_cu_seqlens", out_cu_seqlens, {static_cast<int64_t>(p.bounds.size())}, aoti_torch_dtype_int32(),
               false, cpu_type());
  check_status(op, status);
  set_status(status, run_packed(p, out_indices, out_cu_seqlens));
}

struct Quota {
  ScoreRows scores;
  MaskRows protected_tokens, excluded;
  std::vector<int64_t> bounds;
  int64_t k, quota;
  bool largest, by_score;
  int32_t status;
};

Quota check_quota(const char* op, const Tensor& scores, const Tensor& cu_segments, int64_t k, int64_t quota,
                  bool largest, const OptionalTensor& protected_tokens, const OptionalTensor& excluded,
                  const std::string& order) {
  const ScoreRows s(op, scores, 2, "a 2-D tensor [B, N]");
  const View bounds(cu_segments);
  check_rank(op, "cu_segments", bounds, 1, "a 1-D tensor [S + 1]");
  VTK_CHECK(bounds.sizes[0] >= 1, op, "cu_segments", 0, "1 to 2147483647 (its length, S + 1)");
  check_vector(op, "cu_segments", cu_segments, bounds.sizes[0], aoti_torch_dtype_int32(), "S + 1", cpu_type());
  VTK_CHECK(k >= 0 && k <= s.n, op, "k", k, "0 to " + std::to_string(s.n) + " (the row has N scores)");
  const int64_t segments = bounds.sizes[0] - 1, most = segments > 0 ? k / segments : k;
  VTK_CHECK(quota >= 0 && quota <= most, op, "quota", quota,
            "0 to " + std::to_string(most) + " (all segments' quotas fit into k)");
  Quota p{s,
          {op, "protected", protected_tokens, s},
          {op, "excluded", excluded, s},
          {},
          k,
          quota,
          largest,
          by_score(op, order),
          0};
  if (!ascending_bounds(cu_segments, s.n, p.bounds)) p.status |= kBadSeqlens;
  return p;
}

void run_quota(const Quota& p, const Tensor& out) {
  const View o(out);
  const IndexOut indices = index_out(out);
  torch_pool()(p.scores.rows, rows_per_thread(p.scores.n), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> chosen(p.k);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t count =
          cpu::select_quota(p.scores.row(b, p.largest), {p.protected_tokens.row(b), p.excluded.row(b)}, p.bounds, p.k,
                            p.quota, p.by_score, chosen.data());
      store_row(indices, b * o.strides[0], chosen.data(), count, p.k);
    }
  });
}

Tensor select_quota(const Tensor& scores, const Tensor& cu_segments, int64_t k, int64_t quota, bool largest,
                    const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order) {
  const Quota p =
      check_quota("select_quota", scores, cu_segments, k, quota, largest, protected_tokens, excluded, order);
  Tensor out = empty_cpu({p.scores.rows, k}, aoti_torch_dtype_int64());
  run_quota(p, out);
  return out;
}

void select_quota_out(const Tensor& scores, const Tensor& cu_segments, int64_t k, int64_t quota, bool largest,
                      const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order,
                      const Tensor& out, const OptionalTensor& status) {
  const char* op = "select_quota.out";
  const Quota p = check_quota(op, scores, cu_segments, k, quota, largest, protected_tokens, excluded, order);
  check_output(op, "out", out, {p.scores.rows, k}, aoti_torch_dtype_int64(), true, cpu_type());
  check_status(op, status);
  run_quota(p, out);
  set_status(status, p.status);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("select_topk_varlen", VTK_BOX(select_topk_varlen));
  m.impl("select_topk_varlen.out", VTK_BOX(select_topk_varlen_out));
  m.impl("select_quota", VTK_BOX(select_quota));
  m.impl("select_quota.out", VTK_BOX(select_quota_out));
}
