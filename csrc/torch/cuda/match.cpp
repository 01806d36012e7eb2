// Bipartite matching of tokens.
#include "select.h"

namespace vtkernels {
namespace {

void match_bipartite_out(const Tensor& tokens, int64_t r, int64_t stride, int64_t guarded, const OptionalTensor& bias,
                         const Tensor& sources, const Tensor& targets, const Tensor& scores, const Tensor& kept) {
  const Device device(tokens);
  const Checker check{"match_bipartite.out", device.index};
  check.place("tokens", tokens);
  const View x(tokens);
  cuda::MatchProblem p{};
  p.dtype = floating(check, "tokens", x);
  check_rank(check.op, "tokens", x, 3, "[B, N, D]");
  p.batch = x.sizes[0];
  p.n = x.sizes[1];
  p.width = x.sizes[2];
  p.tokens = {x.data(), x.strides[0], x.strides[1], x.strides[2]};
  check.range("stride", stride, 2, std::max<int64_t>(2, p.n));
  check.range("protected", guarded, 0, p.n);
  p.stride = stride;
  p.guarded = guarded;
  check.range("r", r, 0, p.source_count());
  p.merged = r;
  if (bias) {
    check.place("source_bias", *bias);
    const View v(*bias);
    VTK_CHECK(v.dtype == aoti_torch_dtype_float32(), check.op, "source_bias", dtype_name(v.dtype), "float32");
    check_rank(check.op, "source_bias", v, 2, "[B, N]");
    check_size(check.op, "source_bias", v.sizes[0], p.batch, "B");
    check_size(check.op, "source_bias", v.sizes[1], p.n, "N");
    p.bias = reinterpret_cast<const float*>(v.data());
    p.bias_batch = v.strides[0];
    p.bias_token = v.strides[1];
  }
  check.output("out_sources", sources, {p.batch, r}, aoti_torch_dtype_int64(), true);
  check.output("out_targets", targets, {p.batch, r}, aoti_torch_dtype_int64(), true);
  check.output("out_scores", scores, {p.batch, r}, aoti_torch_dtype_float32());
  check.output("out_kept", kept, {p.batch, p.n - r}, aoti_torch_dtype_int64(), true);
  p.sources = index_view(View(sources));
  p.targets = index_view(View(targets));
  p.scores = score_view(View(scores));
  p.kept = index_view(View(kept));
  const Tensor scratch = scratch_words(cuda::match_scratch(p.batch, p.source_count(), r), device);
  p.scratch = words_of(scratch);
  cuda::match_bipartite(p, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("match_bipartite.out", VTK_BOX(match_bipartite_out));
}

}  // namespace vtkernels
