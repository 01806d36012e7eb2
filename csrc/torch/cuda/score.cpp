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
  VTK_CHECK(t.dims == 2 || t.dims == 3, check.op, "tokens", "of shape " + text(t.shape()), "[B, N, D] or [T, D]");
  VTK_CHECK(metric == "cosine" || metric == "dot", check.op, "metric", metric, "cosine or dot");
  VTK_CHECK(metric == "cosine" || !prototype_rnorm, check.op, "prototype_rnorm", "given", "None with metric='dot'");
  const cuda::ScoreProblem problem = score_problem(check, "tokens", tokens, prototypes, prototype_rnorm);
  const std::vector<int64_t> shape(t.sizes, t.sizes + t.dims - 1);
  check.output("scores", scores, shape, aoti_torch_dtype_float32());
  check.output("argmax", argmax, shape, aoti_torch_dtype_int64(), true);
  cuda::prototype_scores(problem, metric == "cosine", t.dims == 3 ? t.sizes[0] : 1, t.sizes[t.dims - 2],
                         score_view(View(scores)), index_view(View(argmax)), device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("prototype_scores.out", VTK_BOX(prototype_scores_out));
}

}  // namespace vtkernels
