// prototype_scores as a torch op on the CPU.
#include "cpu_common.h"

namespace vtkernels {
namespace {

ScoreProblem check_scores(const char* op, const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                          const std::optional<Tensor>& rnorm) {
  const View x(tokens);
  VTK_CHECK(x.dims == 2 || x.dims == 3, op, "tokens", "of shape " + text(x.shape()), "[B, N, D] or [T, D]");
  VTK_CHECK(metric == "cosine" || metric == "dot", op, "metric", "'" + metric + "'", "'cosine' or 'dot'");
  VTK_CHECK(metric == "cosine" || !rnorm.has_value(), op, "prototype_rnorm", "given", "None with metric='dot'");
  ScoreProblem problem = score_problem(op, "tokens", tokens, prototypes, rnorm);
  problem.cosine = metric == "cosine";
  return problem;
}

void run_scores(ScoreProblem problem, const Tensor& tokens, const Tensor& scores, const Tensor& argmax) {
  const View x(tokens), s(scores);
  const bool packed = x.dims == 2;
  const int64_t batch = packed ? 1 : x.sizes[0], n = x.sizes[x.dims - 2];
  std::vector<Segment> segments;
  segments.reserve(batch);
  for (int64_t b = 0; b < batch; ++b) {
    segments.push_back({0, packed ? 0 : b * x.strides[0], n, packed ? 0 : b * s.strides[0]});
  }
  problem.scores = reinterpret_cast<float*>(s.mutable_data());
  problem.argmax = index_out(argmax);
  cpu::prototype_scores(torch_pool(), problem, segments.data(), batch);
}

std::tuple<Tensor, Tensor> prototype_scores(const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                                            const std::optional<Tensor>& rnorm) {
  const ScoreProblem problem = check_scores("prototype_scores", tokens, prototypes, metric, rnorm);
  std::vector<int64_t> shape = View(tokens).shape();
  shape.pop_back();
  Tensor scores = empty_cpu(shape, aoti_torch_dtype_float32()), argmax = empty_cpu(shape, aoti_torch_dtype_int64());
  run_scores(problem, tokens, scores, argmax);
  return {std::move(scores), std::move(argmax)};
}

void prototype_scores_out(const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                          const std::optional<Tensor>& rnorm, const Tensor& scores, const Tensor& argmax) {
  const char* op = "prototype_scores.out";
  const ScoreProblem problem = check_scores(op, tokens, prototypes, metric, rnorm);
  std::vector<int64_t> shape = View(tokens).shape();
  shape.pop_back();
  check_output(op, "scores", scores, shape, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "argmax", argmax, shape, aoti_torch_dtype_int64(), true, cpu_type());
  VTK_CHECK(shape.size() < 2 || shape[0] < 2 || View(scores).strides[0] == View(argmax).strides[0], op, "argmax",
            "of a row stride other than that of `scores`", "equal row strides");
  run_scores(problem, tokens, scores, argmax);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(vtkernels, CPU, m) {
  using namespace vtkernels;
  m.impl("prototype_scores", VTK_BOX(prototype_scores));
  m.impl("prototype_scores.out", VTK_BOX(prototype_scores_out));
}
