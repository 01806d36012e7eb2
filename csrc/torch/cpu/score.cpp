// prototype_scores, prototype_topm and prototype_softmax_scores as torch ops on the CPU.
#include "common.h"

namespace vtkernels {
namespace {

// A call as one with groups: tokens [B, N, G, d], prototypes [G, P, d].
struct ScoreCall {
  ScoreProblem problem;
  int64_t batch, n, groups;
  int64_t token_batch, token_group, prototype_group;  // strides
  bool packed;                                        // without B
};

ScoreCall check_scores(const char* op, const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                       const std::optional<Tensor>& rnorm) {
  const View x(tokens), p(prototypes);
  const bool grouped = p.dims == 3;
  const int64_t dims = grouped ? 4 : 3;
  VTK_CHECK(x.dims == dims || x.dims == dims - 1, op, "tokens", "of shape " + text(x.shape()),
            (grouped ? "[B, N, G, d] or [T, G, d] with grouped prototypes" : "[B, N, D] or [T, D]"));
  VTK_CHECK(metric == "cosine" || metric == "dot" || metric == "l2", op, "metric", "'" + metric + "'",
            "'cosine' or 'dot' or 'l2'");
  VTK_CHECK(metric == "cosine" || !rnorm.has_value(), op, "prototype_rnorm", "given",
            "None with metric='" + metric + "'");
  VTK_CHECK(!grouped || !rnorm.has_value(), op, "prototype_rnorm", "given", "None with grouped prototypes");
  if (grouped) check_size(op, "prototypes", p.sizes[0], x.sizes[x.dims - 2], "G (that of `tokens`)");
  const bool packed = x.dims == dims - 1;
  const int64_t token = packed ? 0 : 1;
  ScoreCall call{score_problem(op, "tokens", tokens, prototypes, rnorm, grouped),
                 packed ? 1 : x.sizes[0],
                 x.sizes[token],
                 grouped ? x.sizes[token + 1] : 1,
                 packed ? 0 : x.strides[0],
                 grouped ? x.strides[token + 1] : 0,
                 grouped ? p.strides[0] : 0,
                 packed};
  call.problem.tokens.row_stride = x.strides[token];
  call.problem.cosine = metric == "cosine";
  call.problem.l2 = metric == "l2";
  return call;
}

// `inner`: entries of the outputs for each token and group.
void run_scores(const ScoreCall& call, const Tensor& scores, const Tensor& argmax, int64_t inner_dims) {
  const View s(scores);
  const IndexOut indices = index_out(argmax);
  const int64_t token = call.packed ? 0 : 1, size = element_size(call.problem.dtype);
  const int64_t group_stride = token + 1 < s.dims - inner_dims ? s.strides[token + 1] : 0;
  for (int64_t g = 0; g < call.groups; ++g) {
    ScoreProblem problem = call.problem;
    problem.tokens.data = static_cast<const char*>(problem.tokens.data) + g * call.token_group * size;
    problem.prototypes.data = static_cast<const char*>(problem.prototypes.data) + g * call.prototype_group * size;
    problem.score_stride = s.strides[token];
    problem.scores = reinterpret_cast<float*>(s.mutable_data());
    problem.argmax = indices;
    std::vector<Segment> segments;
    segments.reserve(call.batch);
    for (int64_t b = 0; b < call.batch; ++b) {
      const int64_t out = (call.packed ? 0 : b * s.strides[0]) + g * group_stride;
      segments.push_back({0, b * call.token_batch, call.n, out});
    }
    cpu::prototype_scores(torch_pool(), problem, segments.data(), call.batch);
  }
}

void check_same_strides(const char* op, const char* arg, const Tensor& scores, const Tensor& indices) {
  const View s(scores), i(indices);
  for (int64_t d = 0; d < s.dims; ++d) {
    VTK_CHECK(s.sizes[d] < 2 || s.strides[d] == i.strides[d], op, arg, "of strides other than those of `scores`",
              "equal strides");
  }
}

std::vector<int64_t> leading(const Tensor& tokens) {
  std::vector<int64_t> shape = View(tokens).shape();
  shape.pop_back();
  return shape;
}

std::tuple<Tensor, Tensor> prototype_scores(const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                                            const std::optional<Tensor>& rnorm) {
  const ScoreCall call = check_scores("prototype_scores", tokens, prototypes, metric, rnorm);
  const std::vector<int64_t> shape = leading(tokens);
  Tensor scores = empty_cpu(shape, aoti_torch_dtype_float32()), argmax = empty_cpu(shape, aoti_torch_dtype_int64());
  run_scores(call, scores, argmax, 0);
  return {std::move(scores), std::move(argmax)};
}

void prototype_scores_out(const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                          const std::optional<Tensor>& rnorm, const Tensor& scores, const Tensor& argmax) {
  const char* op = "prototype_scores.out";
  const ScoreCall call = check_scores(op, tokens, prototypes, metric, rnorm);
  const std::vector<int64_t> shape = leading(tokens);
  check_output(op, "scores", scores, shape, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "argmax", argmax, shape, aoti_torch_dtype_int64(), true, cpu_type());
  check_same_strides(op, "argmax", scores, argmax);
  run_scores(call, scores, argmax, 0);
}

ScoreCall check_topm(const char* op, const Tensor& tokens, const Tensor& prototypes, int64_t m,
                     const std::string& metric, const std::optional<Tensor>& rnorm) {
  ScoreCall call = check_scores(op, tokens, prototypes, metric, rnorm);
  VTK_CHECK(m >= 1 && m <= call.problem.prototype_count, op, "m", m,
            "1 to " + std::to_string(call.problem.prototype_count) + " (there are P prototypes)");
  call.problem.mode = cpu::ScoreMode::kTop;
  call.problem.m = m;
  return call;
}

std::tuple<Tensor, Tensor> prototype_topm(const Tensor& tokens, const Tensor& prototypes, int64_t m,
                                          const std::string& metric, const std::optional<Tensor>& rnorm) {
  const ScoreCall call = check_topm("prototype_topm", tokens, prototypes, m, metric, rnorm);
  std::vector<int64_t> shape = leading(tokens);
  shape.push_back(m);
  Tensor scores = empty_cpu(shape, aoti_torch_dtype_float32()), indices = empty_cpu(shape, aoti_torch_dtype_int64());
  run_scores(call, scores, indices, 1);
  return {std::move(scores), std::move(indices)};
}

void prototype_topm_out(const Tensor& tokens, const Tensor& prototypes, int64_t m, const std::string& metric,
                        const std::optional<Tensor>& rnorm, const Tensor& scores, const Tensor& indices) {
  const char* op = "prototype_topm.out";
  const ScoreCall call = check_topm(op, tokens, prototypes, m, metric, rnorm);
  std::vector<int64_t> shape = leading(tokens);
  shape.push_back(m);
  check_output(op, "scores", scores, shape, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "indices", indices, shape, aoti_torch_dtype_int64(), true, cpu_type());
  check_same_strides(op, "indices", scores, indices);
  run_scores(call, scores, indices, 1);
}

ScoreCall check_softmax(const char* op, const Tensor& tokens, const Tensor& prototypes,
                        const std::optional<Tensor>& rnorm) {
  const View x(tokens);
  check_rank(op, "tokens", x, 3, "a 3-D tensor [B, N, D]");
  check_rank(op, "prototypes", View(prototypes), 2, "a 2-D tensor [P, D]");
  return check_scores(op, tokens, prototypes, "cosine", rnorm);
}

void run_softmax(const ScoreCall& call, bool over_tokens, const Tensor& out) {
  const View o(out);
  ScoreProblem problem = call.problem;
  problem.scores = reinterpret_cast<float*>(o.mutable_data());
  std::vector<Segment> segments;
  segments.reserve(call.batch);
  for (int64_t b = 0; b < call.batch; ++b) segments.push_back({0, b * call.token_batch, call.n, b * o.strides[0]});
  cpu::prototype_softmax_scores(torch_pool(), problem, segments.data(), call.batch, over_tokens);
}

Tensor prototype_softmax_scores(const Tensor& tokens, const Tensor& prototypes, bool over_tokens,
                                const std::optional<Tensor>& rnorm) {
  const ScoreCall call = check_softmax("prototype_softmax_scores", tokens, prototypes, rnorm);
  Tensor out = empty_cpu(leading(tokens), aoti_torch_dtype_float32());
  run_softmax(call, over_tokens, out);
  return out;
}

void prototype_softmax_scores_out(const Tensor& tokens, const Tensor& prototypes, bool over_tokens,
                                  const std::optional<Tensor>& rnorm, const Tensor& out) {
  const char* op = "prototype_softmax_scores.out";
  const ScoreCall call = check_softmax(op, tokens, prototypes, rnorm);
  check_output(op, "out", out, leading(tokens), aoti_torch_dtype_float32(), false, cpu_type());
  run_softmax(call, over_tokens, out);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("prototype_scores", VTK_BOX(prototype_scores));
  m.impl("prototype_scores.out", VTK_BOX(prototype_scores_out));
  m.impl("prototype_topm", VTK_BOX(prototype_topm));
  m.impl("prototype_topm.out", VTK_BOX(prototype_topm_out));
  m.impl("prototype_softmax_scores", VTK_BOX(prototype_softmax_scores));
  m.impl("prototype_softmax_scores.out", VTK_BOX(prototype_softmax_scores_out));
}
