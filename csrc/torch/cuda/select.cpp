// The k best scores of every row.
#include "select.h"

namespace vtkernels {
namespace {

void select_topk_out(const Tensor& scores, int64_t k, bool largest, const OptionalTensor& ks,
                     const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order,
                     const Tensor& out) {
  const Device device(scores);
  const Checker check{"select_topk.out", device.index};
  const View s = check_scores(check, scores, 2, "[B, N]");
  check.range("k", k, 0, s.sizes[1]);
  if (ks) check.vector("ks", *ks, s.sizes[0], aoti_torch_dtype_int32(), "B");
  cuda::SelectDense problem{};
  problem.scores = score_view(s);
  problem.batch = s.sizes[0];
  problem.n = s.sizes[1];
  problem.k = k;
  problem.largest = largest;
  if (ks) problem.ks = int_view(View(*ks));
  problem.masks = {mask_view(check, "protected", protected_tokens, s), mask_view(check, "excluded", excluded, s)};
  problem.by_score = by_score(check, order);
  check.output("out", out, {problem.batch, k}, aoti_torch_dtype_int64(), true);
  problem.out = index_view(View(out));
  OptionalTensor scratch;
  if (problem.by_score) {
    scratch = scratch_words(cuda::select_scratch(problem.batch, k), device);
    problem.scratch = words_of(*scratch);
  }
  cuda::select_topk(problem, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("select_topk.out", VTK_BOX(select_topk_out));
}

}  // namespace vtkernels
