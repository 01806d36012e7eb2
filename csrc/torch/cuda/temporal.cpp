// Scores of tokens against the frame before.
#include <limits>

#include "common.h"

namespace vtkernels {
namespace {

using Metric = cuda::TemporalProblem::Metric;

void temporal_scores_out(const Tensor& tokens, const std::string& metric, const std::optional<double>& first,
                         const Tensor& out) {
  const Device device(tokens);
  const Checker check{"temporal_scores.out", device.index};
  check.place("tokens", tokens);
  const View x(tokens);
  cuda::TemporalProblem problem{};
  problem.dtype = floating(check, "tokens", x);
  check_rank(check.op, "tokens", x, 4, "[B, F, N, D]");
  const bool cosine = metric == "cosine";
  VTK_CHECK(cosine || metric == "l1" || metric == "l2", check.op, "metric", "'" + metric + "'",
            "'cosine' or 'l1' or 'l2'");
  problem.metric = cosine ? Metric::kCosine : metric == "l1" ? Metric::kL1 : Metric::kL2;
  problem.batch = x.sizes[0];
  problem.frames = x.sizes[1];
  problem.tokens = x.sizes[2];
  problem.width = x.sizes[3];
  problem.data = x.data();
  problem.batch_stride = x.strides[0];
  problem.frame_stride = x.strides[1];
  problem.token_stride = x.strides[2];
  problem.dim_stride = x.strides[3];
  const float infinity = std::numeric_limits<float>::infinity();
  problem.first = first ? static_cast<float>(*first) : cosine ? -infinity : infinity;
  check.output("out", out, {problem.batch, problem.frames, problem.tokens}, aoti_torch_dtype_float32());
  const View o(out);
  problem.out = reinterpret_cast<float*>(o.mutable_data());
  problem.out_batch = o.strides[0];
  problem.out_frame = o.strides[1];
  cuda::temporal_scores(problem, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("temporal_scores.out", VTK_BOX(temporal_scores_out));
}

}  // namespace vtkernels
