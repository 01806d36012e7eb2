// select_topk as a torch op on the CPU.
#include "cpu_common.h"

namespace vtkernels {
namespace {

void check_topk(const char* op, const Tensor& scores, int64_t k) {
  check_device(op, "scores", scores, cpu_type());
  const View s(scores);
  VTK_CHECK(s.dtype == aoti_torch_dtype_float32(), op, "scores", dtype_name(s.dtype), "float32");
  check_rank(op, "scores", s, 2, "a 2-D tensor [B, N]");
  VTK_CHECK(k >= 0 && k <= s.sizes[1], op, "k", k, "0 to " + std::to_string(s.sizes[1]) + " (the row has N scores)");
}

void run_topk(const Tensor& scores, int64_t k, bool largest, const Tensor& out) {
  const View s(scores), o(out);
  const IndexOut indices = index_out(out);
  const auto* data = reinterpret_cast<const float*>(s.data());
  const int64_t n = s.sizes[1];
  torch_pool()(s.sizes[0], std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, n)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      cpu::select_row(data + b * s.strides[0], s.strides[1], n, k, largest, 0, indices, b * o.strides[0]);
    }
  });
}

Tensor select_topk(const Tensor& scores, int64_t k, bool largest, const std::optional<Tensor>&,
                   const std::optional<Tensor>&, const std::optional<Tensor>&, const std::string&) {
  check_topk("select_topk", scores, k);
  Tensor out = empty_cpu({View(scores).sizes[0], k}, aoti_torch_dtype_int64());
  run_topk(scores, k, largest, out);
  return out;
}

void select_topk_out(const Tensor& scores, int64_t k, bool largest, const std::optional<Tensor>&,
                     const std::optional<Tensor>&, const std::optional<Tensor>&, const std::string&, const Tensor& out) {
  const char* op = "select_topk.out";
  check_topk(op, scores, k);
  check_output(op, "out", out, {View(scores).sizes[0], k}, aoti_torch_dtype_int64(), true, cpu_type());
  run_topk(scores, k, largest, out);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(vtkernels, CPU, m) {
  using namespace vtkernels;
  m.impl("select_topk", VTK_BOX(select_topk));
  m.impl("select_topk.out", VTK_BOX(select_topk_out));
}
