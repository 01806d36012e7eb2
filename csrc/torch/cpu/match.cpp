// match_bipartite as a torch op on the CPU.
#include "../../cpu/select/match.h"

#include "../box.h"
#include "common.h"

namespace vtkernels {
namespace {

using cpu::MatchProblem;
using Bias = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

MatchProblem check_match(const char* op, const Tensor& tokens, int64_t r, int64_t stride, int64_t guarded,
                         const Bias& bias) {
  check_device(op, "tokens", tokens, cpu_type());
  const View x(tokens);
  MatchProblem p{};
  p.dtype = float_dtype(op, "tokens", x.dtype);
  check_rank(op, "tokens", x, 3, "a 3-D tensor [B, N, D]");
  p.tokens = x.data();
  p.batch_stride = x.strides[0], p.token_stride = x.strides[1], p.dim_stride = x.strides[2];
  p.batch = x.sizes[0], p.n = x.sizes[1], p.width = x.sizes[2];
  const int64_t most = std::max<int64_t>(2, p.n);
  VTK_CHECK(stride >= 2 && stride <= most, op, "stride", stride,
            "2 to " + std::to_string(most) + " (every stride-th token is a target)");
  VTK_CHECK(guarded >= 0 && guarded <= p.n, op, "protected", guarded,
            "0 to " + std::to_string(p.n) + " (leading tokens that are never merged)");
  p.merged = r, p.stride = stride, p.guarded = guarded;
  VTK_CHECK(
      r >= 0 && r <= p.source_count(), op, "r", r,
      "0 to " + std::to_string(p.source_count()) + " (the sources: tokens that are neither protected nor targets)");
  if (bias.has_value()) {
    check_device(op, "source_bias", *bias, cpu_type());
    const View v(*bias);
    VTK_CHECK(v.dtype == aoti_torch_dtype_float32(), op, "source_bias", dtype_name(v.dtype), "float32");
    check_rank(op, "source_bias", v, 2, "a 2-D tensor [B, N]");
    check_size(op, "source_bias", v.sizes[0], p.batch, "B");
    check_size(op, "source_bias", v.sizes[1], p.n, "N");
    p.bias = reinterpret_cast<const float*>(v.data());
    p.bias_batch = v.strides[0], p.bias_token = v.strides[1];
  }
  return p;
}

void run_match(MatchProblem p, const Tensor& sources, const Tensor& targets, const Tensor& scores, const Tensor& kept) {
  const View s(scores);
  p.sources = index_out(sources), p.source_batch = View(sources).strides[0];
  p.targets = index_out(targets), p.target_batch = View(targets).strides[0];
  p.kept = index_out(kept), p.kept_batch = View(kept).strides[0];
  p.scores = reinterpret_cast<float*>(s.mutable_data()), p.score_batch = s.strides[0];
  cpu::match_bipartite(torch_pool(), p);
}

Results match_bipartite(const Tensor& tokens, int64_t r, int64_t stride, int64_t guarded, const Bias& bias) {
  const MatchProblem p = check_match("match_bipartite", tokens, r, stride, guarded, bias);
  const int32_t index = aoti_torch_dtype_int64();
  Results out{empty_cpu({p.batch, r}, index), empty_cpu({p.batch, r}, index),
              empty_cpu({p.batch, r}, aoti_torch_dtype_float32()), empty_cpu({p.batch, p.n - r}, index)};
  std::apply([&](const auto&... each) { run_match(p, each...); }, out);
  return out;
}

void match_bipartite_out(const Tensor& tokens, int64_t r, int64_t stride, int64_t guarded, const Bias& bias,
                         const Tensor& sources, const Tensor& targets, const Tensor& scores, const Tensor& kept) {
  const char* op = "match_bipartite.out";
  const MatchProblem p = check_match(op, tokens, r, stride, guarded, bias);
  const int32_t index = aoti_torch_dtype_int64();
  check_output(op, "out_sources", sources, {p.batch, r}, index, true, cpu_type());
  check_output(op, "out_targets", targets, {p.batch, r}, index, true, cpu_type());
  check_output(op, "out_scores", scores, {p.batch, r}, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "out_kept", kept, {p.batch, p.n - r}, index, true, cpu_type());
  run_match(p, sources, targets, scores, kept);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("match_bipartite", VTK_BOX(match_bipartite));
  m.impl("match_bipartite.out", VTK_BOX(match_bipartite_out));
}
