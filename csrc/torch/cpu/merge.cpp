// merge_tokens as a torch op on the CPU.
#include "../../cpu/compact/merge.h"

#include "../box.h"
#include "common.h"

namespace vtkernels {
namespace {

cpu::MergeProblem check_merge(const char* op, const Tensor& tokens, const Tensor& assignment, int64_t groups,
                              const std::optional<Tensor>& weights, const std::string& reduce) {
  check_device(op, "tokens", tokens, cpu_type());
  check_device(op, "assignment", assignment, cpu_type());
  const View x(tokens), a(assignment);
  cpu::MergeProblem p{};
  p.dtype = float_dtype(op, "tokens", x.dtype);
  check_rank(op, "tokens", x, 3, "a 3-D tensor [B, N, D]");
  VTK_CHECK(is_index(a.dtype), op, "assignment", dtype_name(a.dtype), "int32, int64");
  check_rank(op, "assignment", a, 2, "a 2-D tensor [B, N]");
  check_size(op, "assignment", a.sizes[0], x.sizes[0], "B");
  check_size(op, "assignment", a.sizes[1], x.sizes[1], "N");
  VTK_CHECK(groups >= 0 && groups <= INT32_MAX, op, "groups", groups, "0 to 2147483647 (rows of the output)");
  VTK_CHECK(reduce == "mean" || reduce == "sum", op, "reduce", "'" + reduce + "'", "'mean' or 'sum'");
  p.tokens = x.data();
  p.batch_stride = x.strides[0], p.token_stride = x.strides[1], p.dim_stride = x.strides[2];
  p.batch = x.sizes[0], p.n = x.sizes[1], p.width = x.sizes[2], p.groups = groups;
  p.assignment = {a.data(), a.dtype == aoti_torch_dtype_int64(), a.strides[0], a.strides[1]};
  p.mean = reduce == "mean";
  if (weights.has_value()) {
    check_device(op, "weights", *weights, cpu_type());
    const View w(*weights);
    VTK_CHECK(w.dtype == aoti_torch_dtype_float32(), op, "weights", dtype_name(w.dtype), "float32");
    VTK_CHECK(w.dims == 2 && w.sizes[0] == p.batch && w.sizes[1] == p.n, op, "weights", "of shape " + text(w.shape()),
              "[B, N], here " + text(a.shape()));
    p.weights = reinterpret_cast<const float*>(w.data());
    p.weight_batch = w.strides[0], p.weight_token = w.strides[1];
  }
  return p;
}

bool run_merge(cpu::MergeProblem p, const Tensor& out_tokens, const Tensor& out_sizes) {
  const View o(out_tokens), s(out_sizes);
  p.out = o.mutable_data();
  p.out_batch = o.strides[0], p.out_row = o.strides[1];
  p.sizes = reinterpret_cast<float*>(s.mutable_data());
  p.size_batch = s.strides[0];
  return cpu::merge_tokens(torch_pool(), p);
}

std::tuple<Tensor, Tensor> merge_tokens(const Tensor& tokens, const Tensor& assignment, int64_t groups,
                                        const std::optional<Tensor>& weights, const std::string& reduce) {
  const cpu::MergeProblem p = check_merge("merge_tokens", tokens, assignment, groups, weights, reduce);
  Tensor merged = empty_cpu({p.batch, groups, p.width}, View(tokens).dtype);
  Tensor sizes = empty_cpu({p.batch, groups}, aoti_torch_dtype_float32());
  run_merge(p, merged, sizes);
  return {std::move(merged), std::move(sizes)};
}

void merge_tokens_out(const Tensor& tokens, const Tensor& assignment, int64_t groups,
                      const std::optional<Tensor>& weights, const std::string& reduce, const Tensor& out_tokens,
                      const Tensor& out_sizes, const std::optional<Tensor>& status) {
  const char* op = "merge_tokens.out";
  const cpu::MergeProblem p = check_merge(op, tokens, assignment, groups, weights, reduce);
  check_output(op, "out_tokens", out_tokens, {p.batch, groups, p.width}, View(tokens).dtype, false, cpu_type());
  check_output(op, "out_sizes", out_sizes, {p.batch, groups}, aoti_torch_dtype_float32(), false, cpu_type());
  check_status(op, status);
  if (run_merge(p, out_tokens, out_sizes)) set_status(status, kBadIndex);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("merge_tokens", VTK_BOX(merge_tokens));
  m.impl("merge_tokens.out", VTK_BOX(merge_tokens_out));
}
