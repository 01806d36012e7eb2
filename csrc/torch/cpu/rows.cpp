// temporal_scores, row_statistics and subspace_residual as torch ops on the CPU.
#include "../../cpu/score/rows.h"

#include <limits>

#include "common.h"

namespace vtkernels {
namespace {

std::vector<int64_t> without_last(const Tensor& t) {
  std::vector<int64_t> shape = View(t).shape();
  shape.pop_back();
  return shape;
}

float* floats(const View& v) { return reinterpret_cast<float*>(v.mutable_data()); }

cpu::TemporalProblem check_temporal(const char* op, const Tensor& tokens, const std::string& metric,
                                    const std::optional<double>& first) {
  check_device(op, "tokens", tokens, cpu_type());
  const View x(tokens);
  cpu::TemporalProblem p{};
  p.dtype = float_dtype(op, "tokens", x.dtype);
  check_rank(op, "tokens", x, 4, "a 4-D tensor [B, F, N, D]");
  VTK_CHECK(metric == "cosine" || metric == "l1" || metric == "l2", op, "metric", "'" + metric + "'",
            "'cosine' or 'l1' or 'l2'");
  const bool cosine = metric == "cosine";
  p.metric = cosine           ? cpu::TemporalMetric::kCosine
             : metric == "l1" ? cpu::TemporalMetric::kL1
                              : cpu::TemporalMetric::kL2;
  const float infinity = std::numeric_limits<float>::infinity();
  p.first = first.has_value() ? static_cast<float>(*first) : (cosine ? -infinity : infinity);
  p.tokens = x.data();
  p.batch_stride = x.strides[0];
  p.frame_stride = x.strides[1];
  p.token_stride = x.strides[2];
  p.dim_stride = x.strides[3];
  p.batch = x.sizes[0];
  p.frames = x.sizes[1];
  p.n = x.sizes[2];
  p.width = x.sizes[3];
  if (p.width == 1) p.dim_stride = 1;
  return p;
}

void run_temporal(cpu::TemporalProblem p, const Tensor& out) {
  const View o(out);
  p.out = floats(o);
  p.out_batch = o.strides[0];
  p.out_frame = o.strides[1];
  cpu::temporal_scores(torch_pool(), p);
}

Tensor temporal_scores(const Tensor& tokens, const std::string& metric, const std::optional<double>& first) {
  const cpu::TemporalProblem p = check_temporal("temporal_scores", tokens, metric, first);
  Tensor out = empty_cpu(without_last(tokens), aoti_torch_dtype_float32());
  run_temporal(p, out);
  return out;
}

void temporal_scores_out(const Tensor& tokens, const std::string& metric, const std::optional<double>& first,
                         const Tensor& out) {
  const char* op = "temporal_scores.out";
  const cpu::TemporalProblem p = check_temporal(op, tokens, metric, first);
  check_output(op, "out", out, without_last(tokens), aoti_torch_dtype_float32(), false, cpu_type());
  run_temporal(p, out);
}

cpu::StatisticsProblem check_statistics(const char* op, const Tensor& rows) {
  check_device(op, "rows", rows, cpu_type());
  const View x(rows);
  cpu::StatisticsProblem p{};
  p.dtype = float_dtype(op, "rows", x.dtype);
  VTK_CHECK(x.dims >= 1, op, "rows", "a 0-D tensor", "[.., D]");
  p.rows = x.data();
  p.row = {x.sizes, x.strides, x.dims - 1};
  p.width = x.sizes[x.dims - 1];
  p.dim_stride = p.width == 1 ? 1 : x.strides[x.dims - 1];
  return p;
}

void run_statistics(cpu::StatisticsProblem p, const Tensor& l1, const Tensor& l2, const Tensor& entropy) {
  int i = 0;
  for (const Tensor* out : {&l1, &l2, &entropy}) {
    const View o(*out);
    p.out[i] = floats(o);
    p.at[i++] = {o.sizes, o.strides, o.dims};
  }
  cpu::row_statistics(torch_pool(), p);
}

std::tuple<Tensor, Tensor, Tensor> row_statistics(const Tensor& rows) {
  const cpu::StatisticsProblem p = check_statistics("row_statistics", rows);
  const std::vector<int64_t> shape = without_last(rows);
  const auto make = [&] { return empty_cpu(shape, aoti_torch_dtype_float32()); };
  Tensor l1 = make(), l2 = make(), entropy = make();
  run_statistics(p, l1, l2, entropy);
  return {std::move(l1), std::move(l2), std::move(entropy)};
}

void row_statistics_out(const Tensor& rows, const Tensor& l1, const Tensor& l2, const Tensor& entropy) {
  const char* op = "row_statistics.out";
  const cpu::StatisticsProblem p = check_statistics(op, rows);
  const std::vector<int64_t> shape = without_last(rows);
  check_output(op, "l1", l1, shape, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "l2", l2, shape, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "entropy", entropy, shape, aoti_torch_dtype_float32(), false, cpu_type());
  run_statistics(p, l1, l2, entropy);
}

cpu::ResidualProblem check_residual(const char* op, const Tensor& tokens, const Tensor& basis) {
  check_device(op, "tokens", tokens, cpu_type());
  check_device(op, "basis", basis, cpu_type());
  const View x(tokens), b(basis);
  cpu::ResidualProblem p{};
  p.dtype = float_dtype(op, "tokens", x.dtype);
  float_dtype(op, "basis", b.dtype);
  check_rank(op, "tokens", x, 3, "a 3-D tensor [B, N, d]");
  check_rank(op, "basis", b, 3, "a 3-D tensor [B, r, d]");
  VTK_CHECK(b.dtype == x.dtype, op, "basis", dtype_name(b.dtype), dtype_name(x.dtype));
  check_size(op, "basis", b.sizes[0], x.sizes[0], "B");
  check_size(op, "basis", b.sizes[2], x.sizes[2], "d");
  p.tokens = x.data();
  p.batch_stride = x.strides[0];
  p.token_stride = x.strides[1];
  p.dim_stride = x.strides[2];
  p.basis = b.data();
  p.basis_batch = b.strides[0];
  p.basis_stride = b.strides[1];
  p.basis_dim_stride = b.strides[2];
  p.batch = x.sizes[0];
  p.n = x.sizes[1];
  p.width = x.sizes[2];
  p.rank = b.sizes[1];
  return p;
}

void run_residual(cpu::ResidualProblem p, const Tensor& out) {
  const View o(out);
  p.out = floats(o);
  p.out_batch = o.strides[0];
  cpu::subspace_residual(torch_pool(), p);
}

Tensor subspace_residual(const Tensor& tokens, const Tensor& basis) {
  const cpu::ResidualProblem p = check_residual("subspace_residual", tokens, basis);
  Tensor out = empty_cpu(without_last(tokens), aoti_torch_dtype_float32());
  run_residual(p, out);
  return out;
}

void subspace_residual_out(const Tensor& tokens, const Tensor& basis, const Tensor& out) {
  const char* op = "subspace_residual.out";
  const cpu::ResidualProblem p = check_residual(op, tokens, basis);
  check_output(op, "out", out, without_last(tokens), aoti_torch_dtype_float32(), false, cpu_type());
  run_residual(p, out);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("temporal_scores", VTK_BOX(temporal_scores));
  m.impl("temporal_scores.out", VTK_BOX(temporal_scores_out));
  m.impl("row_statistics", VTK_BOX(row_statistics));
  m.impl("row_statistics.out", VTK_BOX(row_statistics_out));
  m.impl("subspace_residual", VTK_BOX(subspace_residual));
  m.impl("subspace_residual.out", VTK_BOX(subspace_residual_out));
}
