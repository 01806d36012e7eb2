// The best scores of packed segments.
#include "select.h"

namespace vtkernels {
namespace {

void select_topk_varlen_out(const Tensor& scores, const Tensor& cu_seqlens, const Tensor& k, int64_t total_out,
                            bool largest, const OptionalTensor& protected_tokens, const OptionalTensor& excluded,
                            const std::string& order, const Tensor& out_indices, const Tensor& out_cu_seqlens,
                            const OptionalTensor& status) {
  const Device device(scores);
  const Checker check{"select_topk_varlen.out", device.index};
  const View s = check_scores(check, scores, 1, "[T]");
  const int32_t int32 = aoti_torch_dtype_int32();
  cuda::SelectPacked problem{};
  problem.scores = score_view(s);
  problem.tokens = s.sizes[0];
  check_rank(check.op, "k", View(k), 1, "[B]");
  problem.batch = View(k).sizes[0];
  check.vector("k", k, problem.batch, int32, "B");
  check.vector("cu_seqlens", cu_seqlens, problem.batch + 1, int32, "B + 1");
  check.range("total_out", total_out, 0, problem.tokens);
  problem.total_out = total_out;
  problem.cu_seqlens = int_view(View(cu_seqlens));
  problem.k = int_view(View(k));
  problem.largest = largest;
  problem.masks = {mask_view(check, "protected", protected_tokens, s), mask_view(check, "excluded", excluded, s)};
  problem.by_score = by_score(check, order);
  check.output("out_indices", out_indices, {total_out}, aoti_torch_dtype_int64(), true);
  check.output("out_cu_seqlens", out_cu_seqlens, {problem.batch + 1}, int32);
  problem.out = index_view(View(out_indices));
  problem.out_cu_seqlens = words_of(out_cu_seqlens);
  problem.status = check.status(status);
  const Tensor scratch =
      scratch_words(cuda::select_packed_scratch(problem.batch, problem.tokens, problem.by_score), device);
  problem.scratch = words_of(scratch);
  cuda::select_topk_varlen(problem, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("select_topk_varlen.out", VTK_BOX(select_topk_varlen_out));
}

}  // namespace vtkernels
