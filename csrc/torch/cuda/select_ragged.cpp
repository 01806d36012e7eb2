// Selection of as many scores as pass a threshold, or as hold a part of the sum.
#include <cmath>

#include "select.h"

namespace vtkernels {
namespace {

cuda::RaggedView ragged_view(const Checker& check, const View& scores, const Tensor& indices, const Tensor& counts,
                             const Tensor& cu_seqlens) {
  const int64_t batch = scores.sizes[0];
  check.output("out_indices", indices, {batch, scores.sizes[1]}, aoti_torch_dtype_int64(), true);
  check.output("out_counts", counts, {batch}, aoti_torch_dtype_int32());
  check.output("out_cu_seqlens", cu_seqlens, {batch + 1}, aoti_torch_dtype_int32());
  return {index_view(View(indices)), words_of(counts), words_of(cu_seqlens)};
}

void select_threshold_out(const Tensor& scores, double threshold, bool largest, int64_t min_keep,
                          const OptionalTensor& thresholds, const Tensor& out_indices, const Tensor& out_counts,
                          const Tensor& out_cu_seqlens) {
  const Device device(scores);
  const Checker check{"select_threshold.out", device.index};
  const View s = check_scores(check, scores, 2, "[B, N]");
  VTK_CHECK(!std::isnan(threshold), check.op, "threshold", "nan", "a number, which may be infinite");
  check.range("min_keep", min_keep, 0, s.sizes[1]);
  cuda::SelectThreshold problem{};
  problem.scores = score_view(s);
  problem.batch = s.sizes[0];
  problem.n = s.sizes[1];
  problem.min_keep = min_keep;
  problem.largest = largest;
  problem.threshold = static_cast<float>(threshold);
  if (thresholds) {
    check.vector("thresholds", *thresholds, problem.batch, aoti_torch_dtype_float32(), "B");
    const View t(*thresholds);
    problem.thresholds = reinterpret_cast<const float*>(t.data());
    problem.thresholds_stride = t.strides[0];
  }
  problem.out = ragged_view(check, s, out_indices, out_counts, out_cu_seqlens);
  cuda::select_threshold(problem, device.stream);
}

void select_top_p_out(const Tensor& scores, double p, int64_t min_keep, const Tensor& out_indices,
                      const Tensor& out_counts, const Tensor& out_cu_seqlens) {
  const Device device(scores);
  const Checker check{"select_top_p.out", device.index};
  const View s = check_scores(check, scores, 2, "[B, N]");
  VTK_CHECK(p > 0 && p <= 1, check.op, "p", p, "above 0, at most 1");
  check.range("min_keep", min_keep, 0, std::max<int64_t>(1, s.sizes[1]));
  cuda::SelectTopP problem{};
  problem.scores = score_view(s);
  problem.batch = s.sizes[0];
  problem.n = s.sizes[1];
  problem.min_keep = min_keep;
  problem.part = std::max<int64_t>(1, static_cast<int64_t>(std::floor(p * 2147483648.0)));
  problem.out = ragged_view(check, s, out_indices, out_counts, out_cu_seqlens);
  cuda::select_top_p(problem, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("select_threshold.out", VTK_BOX(select_threshold_out));
  m.impl("select_top_p.out", VTK_BOX(select_top_p_out));
}

}  // namespace vtkernels
