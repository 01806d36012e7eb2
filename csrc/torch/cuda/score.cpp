// Prototype scores.
#include "common.h"

namespace vtkernels {
namespace {

void prototype_scores_out(const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                          const OptionalTensor& prototype_rnorm, const Tensor& scores, const Tensor& argmax) {
  const Device device(tokens);
  const Checker check{"prototype_scores.out", device.index};
  const View t(tokens);
  check.place("tokens", tokens);
  const bool grouped = View(prototypes).dims == 3;
  const int64_t dims = grouped ? 4 : 3;
  VTK_CHECK(t.dims == dims || t.dims == dims - 1, check.op, "tokens", "of shape " + text(t.shape()),
            (grouped ? "[B, N, G, d] or [T, G, d] with grouped prototypes" : "[B, N, D] or [T, D]"));
  const bool cosine = metric == "cosine";
  VTK_CHECK(cosine || metric == "dot" || metric == "l2", check.op, "metric", "'" + metric + "'",
            "'cosine' or 'dot' or 'l2'");
  VTK_CHECK(cosine || !prototype_rnorm, check.op, "prototype_rnorm", "given", "None with metric='" + metric + "'");
  VTK_CHECK(!grouped || !prototype_rnorm, check.op, "prototype_rnorm", "given", "None with grouped prototypes");
  const cuda::ScoreProblem problem = score_problem(check, "tokens", tokens, prototypes, prototype_rnorm, grouped);
  const std::vector<int64_t> shape(t.sizes, t.sizes + t.dims - 1);
  check.output("scores", scores, shape, aoti_torch_dtype_float32());
  check.output("argmax", argmax, shape, aoti_torch_dtype_int64(), true);
  const bool batched = t.dims == dims;
  const int64_t token = batched ? 1 : 0;
  const View s(scores), a(argmax);
  const cuda::ScoreMetric kind = cosine           ? cuda::ScoreMetric::kCosine
                                 : metric == "l2" ? cuda::ScoreMetric::kL2
                                                  : cuda::ScoreMetric::kDot;
  cuda::prototype_scores(
      problem, kind, batched ? t.sizes[0] : 1, t.sizes[token],
      {reinterpret_cast<float*>(s.mutable_data()), batched ? s.strides[0] : 0, s.strides[token]},
      {a.mutable_data(), a.dtype == aoti_torch_dtype_int64(), batched ? a.strides[0] : 0, a.strides[token]},
      device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("prototype_scores.out", VTK_BOX(prototype_scores_out));
}

}  // namespace vtkernels
