// What the registration files of the selecting ops share.
#pragma once

#include <vtkernels/cuda/launch_select.h>

#include "common.h"

namespace vtkernels {

inline View check_scores(const Checker& check, const Tensor& scores, int64_t rank, const char* dims) {
  check.place("scores", scores);
  const View s(scores);
  VTK_CHECK(s.dtype == aoti_torch_dtype_float32(), check.op, "scores", dtype_name(s.dtype), "float32");
  check_rank(check.op, "scores", s, rank, dims);
  return s;
}

inline cuda::MaskView mask_view(const Checker& check, const char* arg, const OptionalTensor& mask, const View& scores) {
  if (!mask) return {};
  check.place(arg, *mask);
  const View m(*mask);
  VTK_CHECK(m.dtype == aoti_torch_dtype_bool(), check.op, arg, dtype_name(m.dtype), "bool");
  VTK_CHECK(m.shape() == scores.shape(), check.op, arg, "of shape " + text(m.shape()),
            text(scores.shape()) + " (that of `scores`)");
  return {reinterpret_cast<const unsigned char*>(m.data()), m.dims == 2 ? m.strides[0] : 0, m.strides[m.dims - 1]};
}

inline bool by_score(const Checker& check, const std::string& order) {
  VTK_CHECK(order == "index" || order == "score", check.op, "order", "'" + order + "'", "'index' or 'score'");
  return order == "score";
}

// Memory of one call; the caching allocator keeps it in the order of the stream.
inline Tensor scratch_words(int64_t words, const Device& device) {
  return empty({words}, aoti_torch_dtype_int32(), device_type(), device.index);
}

inline int* words_of(const Tensor& t) { return reinterpret_cast<int*>(View(t).mutable_data()); }

}  // namespace vtkernels
