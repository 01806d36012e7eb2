// select_topk as a torch op on the CPU.
#include "select.h"

namespace vtkernels {
namespace {

struct TopK {
  ScoreRows scores;
  MaskRows protected_tokens, excluded;
  int64_t k;
  bool largest, by_score;
  OptionalTensor ks;
};

TopK check_topk(const char* op, const Tensor& scores, int64_t k, bool largest, const OptionalTensor& ks,
                const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order) {
  const ScoreRows s(op, scores, 2, "a 2-D tensor [B, N]");
  VTK_CHECK(k >= 0 && k <= s.n, op, "k", k, "0 to " + std::to_string(s.n) + " (the row has N scores)");
  if (ks.has_value()) check_vector(op, "ks", *ks, s.rows, aoti_torch_dtype_int32(), "B", cpu_type());
  return {s, {op, "protected", protected_tokens, s}, {op, "excluded", excluded, s}, k, largest, by_score(op, order),
          ks};
}

void run_topk(const TopK& p, const Tensor& out) {
  const View o(out);
  const IndexOut indices = index_out(out);
  const bool plain = p.protected_tokens.data == nullptr && p.excluded.data == nullptr && !p.by_score;
  torch_pool()(p.scores.rows, rows_per_thread(p.scores.n), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> chosen(plain ? 0 : p.k);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * o.strides[0];
      const int64_t k = p.ks.has_value() ? std::clamp<int64_t>(Ints(*p.ks)[b], 0, p.k) : p.k;
      const cpu::ScoreRow row = p.scores.row(b, p.largest);
      if (plain) {
        cpu::select_row(row.data, row.stride, row.count, k, p.largest, 0, indices, at);
        for (int64_t j = k; j < p.k; ++j) indices.store(at + j, -1);
      } else {
        const int64_t count =
            cpu::select_masked(row, {p.protected_tokens.row(b), p.excluded.row(b)}, k, p.by_score, chosen.data());
        store_row(indices, at, chosen.data(), count, p.k);
      }
    }
  });
}

Tensor select_topk(const Tensor& scores, int64_t k, bool largest, const OptionalTensor& ks,
                   const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order) {
  const TopK p = check_topk("select_topk", scores, k, largest, ks, protected_tokens, excluded, order);
  Tensor out = empty_cpu({p.scores.rows, k}, aoti_torch_dtype_int64());
  run_topk(p, out);
  return out;
}

void select_topk_out(const Tensor& scores, int64_t k, bool largest, const OptionalTensor& ks,
                     const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order,
                     const Tensor& out) {
  const char* op = "select_topk.out";
  const TopK p = check_topk(op, scores, k, largest, ks, protected_tokens, excluded, order);
  check_output(op, "out", out, {p.scores.rows, k}, aoti_torch_dtype_int64(), true, cpu_type());
  run_topk(p, out);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("select_topk", VTK_BOX(select_topk));
  m.impl("select_topk.out", VTK_BOX(select_topk_out));
}
