// The k best scores.
#include "common.h"

namespace vtkernels {
namespace {

void select_topk_out(const Tensor& scores, int64_t k, bool largest, const OptionalTensor& ks,
                     const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order,
                     const Tensor& out) {
  const Device device(scores);
  const Checker check{"select_topk.out", device.index};
  const View s(scores);
  check.place("scores", scores);
  VTK_CHECK(s.dtype == aoti_torch_dtype_float32(), check.op, "scores", dtype_name(s.dtype), "float32");
  check_rank(check.op, "scores", s, 2, "[B, N]");
  check.range("k", k, 0, s.sizes[1]);
  if (ks) check.vector("ks", *ks, s.sizes[0], aoti_torch_dtype_int32(), "B");
  VTK_CHECK(!protected_tokens, check.op, "protected", "given", "None with the cuda backend (triton has it)");
  VTK_CHECK(!excluded, check.op, "excluded", "given", "None with the cuda backend (triton has it)");
  VTK_CHECK(order == "index", check.op, "order", order, "index with the cuda backend (triton has score)");
  check.output("out", out, {s.sizes[0], k}, aoti_torch_dtype_int64(), true);
  cuda::select_topk(score_view(s), s.sizes[0], s.sizes[1], k, largest, ks ? int_view(View(*ks)) : cuda::IntView{},
                    index_view(View(out)), device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("select_topk.out", VTK_BOX(select_topk_out));
}

}  // namespace vtkernels
