// What the registration files of the pruning ops share.
#pragma once

#include "gather.h"

namespace [[gnu::visibility("hidden")]] vtkernels {  // as tensors are

// The caller's workspace, or one for this call.
inline Tensor workspace_for(const Checker& check, const OptionalTensor& given, int64_t batch, const Device& device) {
  const int64_t words = cuda::workspace_size(batch);
  if (!given) {
    const Tensor scratch = empty({words}, aoti_torch_dtype_int32(), device_type(), device.index);
    cuda::clear_workspace(reinterpret_cast<int*>(View(scratch).mutable_data()), batch, device.stream);
    return scratch;
  }
  check.place("workspace", *given);
  const View w(*given);
  VTK_CHECK(w.dtype == aoti_torch_dtype_int32() && w.dims == 1 && w.sizes[0] >= words && w.strides[0] == 1, check.op,
            "workspace", std::string(dtype_name(w.dtype)) + " of shape " + text(w.shape()),
            "a zeroed, contiguous int32 vector of at least " + std::to_string(words) + " words");
  return *given;
}

struct VarlenArgs {
  const Tensor &hidden, &prototypes, &cu_seqlens, &k;
  int64_t total_out;
  const OptionalTensor &span_starts, &span_lens, &prototype_rnorm;
};

struct VarlenOutputs {
  const Tensor &indices, &scores, &cu_seqlens;
};

// Packed sequences, without workspace and status.
inline cuda::PruneVarlen check_varlen(const Checker& check, const VarlenArgs& args, bool keep_similar,
                                      const VarlenOutputs& out) {
  const View h(args.hidden);
  check.place("hidden", args.hidden);
  check_rank(check.op, "hidden", h, 2, "[T, D]");
  const int32_t int32 = aoti_torch_dtype_int32();
  cuda::PruneVarlen problem{};
  problem.score = score_problem(check, "hidden", args.hidden, args.prototypes, args.prototype_rnorm);
  check_rank(check.op, "k", View(args.k), 1, "[B]");
  problem.batch = View(args.k).sizes[0];
  problem.tokens = h.sizes[0];
  check.range("total_out", args.total_out, 0, problem.tokens);
  problem.total_out = args.total_out;
  check.vector("k", args.k, problem.batch, int32, "B");
  check.vector("cu_seqlens", args.cu_seqlens, problem.batch + 1, int32, "B + 1");
  problem.k = int_view(View(args.k));
  problem.cu_seqlens = int_view(View(args.cu_seqlens));
  VTK_CHECK(args.span_starts.has_value() == args.span_lens.has_value(), check.op, "span_starts, span_lens",
            "only one of them", "both, or neither");
  if (args.span_starts) {
    check.vector("span_starts", *args.span_starts, problem.batch, int32, "B");
    check.vector("span_lens", *args.span_lens, problem.batch, int32, "B");
    problem.span_starts = int_view(View(*args.span_starts));
    problem.span_lens = int_view(View(*args.span_lens));
  }
  problem.keep_similar = keep_similar;
  check.output("out_scores", out.scores, {problem.tokens}, aoti_torch_dtype_float32());
  check.output("out_indices", out.indices, {args.total_out}, aoti_torch_dtype_int64(), true);
  check.output("out_cu_seqlens", out.cu_seqlens, {problem.batch + 1}, int32);
  problem.scores = score_view(View(out.scores));
  problem.indices = index_view(View(out.indices));
  problem.out_cu_seqlens = reinterpret_cast<int*>(View(out.cu_seqlens).mutable_data());
  problem.out_cu_seqlens_stride = View(out.cu_seqlens).strides[0];
  return problem;
}

}  // namespace vtkernels
