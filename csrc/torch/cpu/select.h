// What the registration files of the selecting ops share.
#pragma once

#include "common.h"
#include "vtkernels/cpu_select.h"

namespace vtkernels {

using OptionalTensor = std::optional<Tensor>;

// A 1-D or 2-D float32 tensor; 1-D is one row.
struct ScoreRows {
  ScoreRows(const char* op, const Tensor& scores, int64_t rank, const char* dims, const char* arg = "scores")
      : view((check_device(op, arg, scores, cpu_type()), scores)) {
    VTK_CHECK(view.dtype == aoti_torch_dtype_float32(), op, arg, dtype_name(view.dtype), "float32");
    check_rank(op, arg, view, rank, dims);
    rows = rank == 2 ? view.sizes[0] : 1;
    n = view.sizes[rank - 1];
    data = reinterpret_cast<const float*>(view.data());
    row_stride = rank == 2 ? view.strides[0] : 0;
    stride = view.strides[rank - 1];
  }

  cpu::ScoreRow row(int64_t b, bool largest) const { return {data + b * row_stride, stride, n, largest}; }

  View view;
  const float* data;
  int64_t rows, n, row_stride, stride;
};

struct MaskRows {
  MaskRows(const char* op, const char* arg, const OptionalTensor& mask, const ScoreRows& scores) {
    if (!mask.has_value()) return;
    check_device(op, arg, *mask, cpu_type());
    const View m(*mask);
    VTK_CHECK(m.dtype == aoti_torch_dtype_bool(), op, arg, dtype_name(m.dtype), "bool");
    VTK_CHECK(m.shape() == scores.view.shape(), op, arg, "of shape " + text(m.shape()),
              text(scores.view.shape()) + " (that of `scores`)");
    data = reinterpret_cast<const bool*>(m.data());
    row_stride = m.dims == 2 ? m.strides[0] : 0;
    stride = m.strides[m.dims - 1];
  }

  cpu::Flags row(int64_t b, int64_t first = 0) const {
    return {data == nullptr ? nullptr : data + b * row_stride + first * stride, stride};
  }

  const bool* data = nullptr;
  int64_t row_stride = 0, stride = 0;
};

struct Ints {
  explicit Ints(const Tensor& t) : data(reinterpret_cast<const int32_t*>(View(t).data())), stride(View(t).strides[0]) {}
  int64_t operator[](int64_t i) const { return data[i * stride]; }
  const int32_t* data;
  int64_t stride;
};

// Bounds of segments, each clamped into 0 .. total and to at least the one before it. Returns whether none had to be.
inline bool ascending_bounds(const Tensor& given, int64_t total, std::vector<int64_t>& bounds) {
  const Ints values(given);
  const int64_t count = View(given).sizes[0];
  bool good = true;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    last = std::max(last, std::clamp<int64_t>(values[i], 0, total));
    good &= last == values[i];
    bounds.push_back(last);
  }
  return good;
}

inline bool by_score(const char* op, const std::string& order) {
  VTK_CHECK(order == "index" || order == "score", op, "order", "'" + order + "'", "'index' or 'score'");
  return order == "score";
}

inline int64_t rows_per_thread(int64_t n) { return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, n)); }

// out[at .. at + k] = the chosen positions, -1 after them.
inline void store_row(const IndexOut& out, int64_t at, const int64_t* chosen, int64_t count, int64_t k) {
  for (int64_t j = 0; j < k; ++j) out.store(at + j, j < count ? chosen[j] : -1);
}

}  // namespace vtkernels
