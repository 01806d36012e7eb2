// select_threshold, select_top_p and allocate_budget as torch ops on the CPU.
#include <cmath>

#include "select.h"

namespace vtkernels {
namespace {

struct Ragged {
  Tensor indices, counts, cu_seqlens;
};

Ragged empty_ragged(const ScoreRows& s) {
  const int32_t int32 = aoti_torch_dtype_int32();
  return {empty_cpu({s.rows, s.n}, aoti_torch_dtype_int64()), empty_cpu({s.rows}, int32),
          empty_cpu({s.rows + 1}, int32)};
}

void check_ragged(const char* op, const ScoreRows& s, const Ragged& out) {
  const int32_t int32 = aoti_torch_dtype_int32();
  check_output(op, "out_indices", out.indices, {s.rows, s.n}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_counts", out.counts, {s.rows}, int32, false, cpu_type());
  check_output(op, "out_cu_seqlens", out.cu_seqlens, {s.rows + 1}, int32, false, cpu_type());
}

// `select(b, indices, at)` writes row b and returns how many it selected.
template <typename Select>
void run_ragged(const ScoreRows& s, const Ragged& out, const Select& select) {
  const View o(out.indices);
  const IndexOut indices = index_out(out.indices);
  auto* counts = reinterpret_cast<int32_t*>(View(out.counts).mutable_data());
  torch_pool()(s.rows, rows_per_thread(s.n), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * o.strides[0], count = select(b, indices, at);
      for (int64_t j = count; j < s.n; ++j) indices.store(at + j, -1);
      counts[b] = static_cast<int32_t>(count);
    }
  });
  auto* cu = reinterpret_cast<int32_t*>(View(out.cu_seqlens).mutable_data());
  cu[0] = 0;
  for (int64_t b = 0; b < s.rows; ++b) cu[b + 1] = cu[b] + counts[b];
}

void check_min_keep(const char* op, int64_t min_keep, int64_t most) {
  VTK_CHECK(min_keep >= 0 && min_keep <= most, op, "min_keep", min_keep,
            "0 to " + std::to_string(most) + " (the row has N scores)");
}

ScoreRows check_threshold(const char* op, const Tensor& scores, double threshold, int64_t min_keep,
                          const OptionalTensor& thresholds) {
  const ScoreRows s(op, scores, 2, "a 2-D tensor [B, N]");
  VTK_CHECK(!std::isnan(threshold), op, "threshold", "nan", "a number, which may be infinite");
  check_min_keep(op, min_keep, s.n);
  if (thresholds.has_value()) {
    check_vector(op, "thresholds", *thresholds, s.rows, aoti_torch_dtype_float32(), "B", cpu_type());
  }
  return s;
}

void run_threshold(const ScoreRows& s, double threshold, bool largest, int64_t min_keep,
                   const OptionalTensor& thresholds, const Ragged& out) {
  const float* each = nullptr;
  int64_t stride = 0;
  if (thresholds.has_value()) {
    const View t(*thresholds);
    each = reinterpret_cast<const float*>(t.data());
    stride = t.strides[0];
  }
  run_ragged(s, out, [&](int64_t b, const IndexOut& indices, int64_t at) {
    const float limit = each != nullptr ? each[b * stride] : static_cast<float>(threshold);
    return cpu::select_threshold(s.row(b, largest), limit, min_keep, indices, at);
  });
}

std::tuple<Tensor, Tensor, Tensor> select_threshold(const Tensor& scores, double threshold, bool largest,
                                                    int64_t min_keep, const OptionalTensor& thresholds) {
  const ScoreRows s = check_threshold("select_threshold", scores, threshold, min_keep, thresholds);
  Ragged out = empty_ragged(s);
  run_threshold(s, threshold, largest, min_keep, thresholds, out);
  return {std::move(out.indices), std::move(out.counts), std::move(out.cu_seqlens)};
}

void select_threshold_out(const Tensor& scores, double threshold, bool largest, int64_t min_keep,
                          const OptionalTensor& thresholds, const Tensor& out_indices, const Tensor& out_counts,
                          const Tensor& out_cu_seqlens) {
  const char* op = "select_threshold.out";
  const ScoreRows s = check_threshold(op, scores, threshold, min_keep, thresholds);
  const Ragged out{out_indices, out_counts, out_cu_seqlens};
  check_ragged(op, s, out);
  run_threshold(s, threshold, largest, min_keep, thresholds, out);
}

ScoreRows check_top_p(const char* op, const Tensor& scores, double p, int64_t min_keep) {
  const ScoreRows s(op, scores, 2, "a 2-D tensor [B, N]");
  VTK_CHECK(p > 0 && p <= 1, op, "p", p, "above 0, at most 1");
  check_min_keep(op, min_keep, std::max<int64_t>(1, s.n));
  return s;
}

void run_top_p(const ScoreRows& s, double p, int64_t min_keep, const Ragged& out) {
  const int64_t part = std::max<int64_t>(1, static_cast<int64_t>(std::floor(p * 2147483648.0)));
  run_ragged(s, out, [&](int64_t b, const IndexOut& indices, int64_t at) {
    return cpu::select_top_p(s.row(b, true), part, std::min(min_keep, s.n), indices, at);
  });
}

std::tuple<Tensor, Tensor, Tensor> select_top_p(const Tensor& scores, double p, int64_t min_keep) {
  const ScoreRows s = check_top_p("select_top_p", scores, p, min_keep);
  Ragged out = empty_ragged(s);
  run_top_p(s, p, min_keep, out);
  return {std::move(out.indices), std::move(out.counts), std::move(out.cu_seqlens)};
}

void select_top_p_out(const Tensor& scores, double p, int64_t min_keep, const Tensor& out_indices,
                      const Tensor& out_counts, const Tensor& out_cu_seqlens) {
  const char* op = "select_top_p.out";
  const ScoreRows s = check_top_p(op, scores, p, min_keep);
  const Ragged out{out_indices, out_counts, out_cu_seqlens};
  check_ragged(op, s, out);
  run_top_p(s, p, min_keep, out);
}

ScoreRows check_budget(const char* op, const Tensor& weights, int64_t total, int64_t minimum,
                       const OptionalTensor& capacity) {
  const ScoreRows w(op, weights, 2, "a 2-D tensor [B, S]", "weights");
  const int64_t most = w.n > 0 ? INT32_MAX : 0, least = w.n > 0 ? total / w.n : 0;
  VTK_CHECK(total >= 0 && total <= most, op, "total", total,
            "0 to " + std::to_string(most) + " (tokens of all segments)");
  VTK_CHECK(minimum >= 0 && minimum <= least, op, "minimum", minimum,
            "0 to " + std::to_string(least) + " (every segment's minimum fits)");
  if (capacity.has_value()) {
    check_device(op, "capacity", *capacity, cpu_type());
    const View c(*capacity);
    VTK_CHECK(c.dtype == aoti_torch_dtype_int32(), op, "capacity", dtype_name(c.dtype), "int32");
    VTK_CHECK(c.shape() == w.view.shape(), op, "capacity", "of shape " + text(c.shape()),
              text(w.view.shape()) + " (that of `weights`)");
  }
  return w;
}

void run_budget(const ScoreRows& w, int64_t total, int64_t minimum, const OptionalTensor& capacity, const Tensor& out) {
  const View o(out);
  auto* parts = reinterpret_cast<int32_t*>(o.mutable_data());
  const int32_t* most = nullptr;
  int64_t row_stride = 0, stride = 0;
  if (capacity.has_value()) {
    const View c(*capacity);
    most = reinterpret_cast<const int32_t*>(c.data());
    row_stride = c.strides[0];
    stride = c.strides[1];
  }
  torch_pool()(w.rows, rows_per_thread(w.n), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      cpu::allocate_budget(w.data + b * w.row_stride, w.stride, w.n, total, minimum,
                           most == nullptr ? nullptr : most + b * row_stride, stride, parts + b * o.strides[0]);
    }
  });
}

Tensor allocate_budget(const Tensor& weights, int64_t total, int64_t minimum, const OptionalTensor& capacity) {
  const ScoreRows w = check_budget("allocate_budget", weights, total, minimum, capacity);
  Tensor out = empty_cpu({w.rows, w.n}, aoti_torch_dtype_int32());
  run_budget(w, total, minimum, capacity, out);
  return out;
}

void allocate_budget_out(const Tensor& weights, int64_t total, int64_t minimum, const OptionalTensor& capacity,
                         const Tensor& out) {
  const char* op = "allocate_budget.out";
  const ScoreRows w = check_budget(op, weights, total, minimum, capacity);
  check_output(op, "out", out, {w.rows, w.n}, aoti_torch_dtype_int32(), false, cpu_type());
  run_budget(w, total, minimum, capacity, out);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("select_threshold", VTK_BOX(select_threshold));
  m.impl("select_threshold.out", VTK_BOX(select_threshold_out));
  m.impl("select_top_p", VTK_BOX(select_top_p));
  m.impl("select_top_p.out", VTK_BOX(select_top_p_out));
  m.impl("allocate_budget", VTK_BOX(allocate_budget));
  m.impl("allocate_budget.out", VTK_BOX(allocate_budget_out));
}
