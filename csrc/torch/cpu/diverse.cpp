// select_diverse as a torch op on the CPU.
#include "../../cpu/select/diverse.h"

#include <atomic>

#include "common.h"

namespace vtkernels {
namespace {

using cpu::DiverseProblem;
using cpu::Objective;

// The problem of image 0, checked.
DiverseProblem check_diverse(const char* op, const Tensor& features, int64_t k, const std::string& objective,
                             const std::optional<Tensor>& relevance, const std::optional<Tensor>& seeds) {
  check_device(op, "features", features, cpu_type());
  const View x(features);
  DiverseProblem p{};
  p.dtype = float_dtype(op, "features", x.dtype);
  check_rank(op, "features", x, 3, "a 3-D tensor [B, N, D]");
  p.features = {x.data(), x.strides[1], x.strides[2]};
  p.tokens = x.sizes[1];
  p.width = x.sizes[2];
  p.k = k;
  VTK_CHECK(k >= 0 && k <= p.tokens, op, "k", k, "0 to " + std::to_string(p.tokens) + " (the row has N tokens)");
  const std::vector<std::pair<const char*, Objective>> names = {
      {"max_min", Objective::kMaxMin}, {"max_sum", Objective::kMaxSum}, {"dpp", Objective::kDpp}};
  const auto name = std::find_if(names.begin(), names.end(), [&](const auto& n) { return objective == n.first; });
  VTK_CHECK(name != names.end(), op, "objective", "'" + objective + "'", "'max_min' or 'max_sum' or 'dpp'");
  p.objective = name->second;
  if (relevance.has_value()) {
    VTK_CHECK(p.objective == Objective::kDpp, op, "relevance", "given", "None with objective='" + objective + "'");
    check_device(op, "relevance", *relevance, cpu_type());
    const View r(*relevance);
    VTK_CHECK(r.dtype == aoti_torch_dtype_float32(), op, "relevance", dtype_name(r.dtype), "float32");
    check_rank(op, "relevance", r, 2, "a 2-D tensor [B, N]");
    check_size(op, "relevance", r.sizes[0], x.sizes[0], "B");
    check_size(op, "relevance", r.sizes[1], p.tokens, "N");
    p.relevance = reinterpret_cast<const float*>(r.data());
    p.relevance_stride = r.strides[1];
  }
  if (seeds.has_value()) {
    VTK_CHECK(p.objective != Objective::kDpp, op, "seeds", "given", "None with objective='dpp'");
    check_device(op, "seeds", *seeds, cpu_type());
    const View s(*seeds);
    VTK_CHECK(is_index(s.dtype), op, "seeds", dtype_name(s.dtype), "int32, int64");
    check_rank(op, "seeds", s, 2, "a 2-D tensor [B, S]");
    check_size(op, "seeds", s.sizes[0], x.sizes[0], "B");
    VTK_CHECK(s.sizes[1] <= k, op, "seeds", s.sizes[1],
              "0 to " + std::to_string(k) + " (the number of seeds, at most k)");
    p.seeds = {s.data(), s.dtype == aoti_torch_dtype_int64(), s.strides[0], s.strides[1]};
    p.seed_count = s.sizes[1];
  }
  return p;
}

bool run_diverse(const DiverseProblem& problem, const Tensor& features, const std::optional<Tensor>& relevance,
                 const Tensor& out_order, const Tensor& out_indices) {
  const View x(features), order_view(out_order), index_view(out_indices);
  const IndexOut order = index_out(out_order), indices = index_out(out_indices);
  const int64_t relevance_batch = relevance.has_value() ? View(*relevance).strides[0] : 0;
  std::atomic<bool> bad{false};
  const auto run = [&](const Parallel& parallel, int64_t begin, int64_t end) {
    std::vector<int64_t> picks;
    for (int64_t b = begin; b < end; ++b) {
      DiverseProblem p = problem;
      p.batch = b;
      p.features.data = x.data() + b * x.strides[0] * x.element();
      if (p.relevance != nullptr) p.relevance += b * relevance_batch;
      if (cpu::select_diverse(parallel, p, picks)) bad = true;
      for (int64_t s = 0; s < p.k; ++s) order.store(b * order_view.strides[0] + s, picks[s]);
      std::sort(picks.begin(), picks.end());
      for (int64_t s = 0; s < p.k; ++s) indices.store(b * index_view.strides[0] + s, picks[s]);
    }
  };
  // Threads share an image when there are few, and take one each when there are many.
  const int64_t batch = x.sizes[0];
  constexpr int64_t kMany = 8;
  if (batch < kMany && problem.tokens * problem.tokens * problem.width > 1 << 24) {
    run(torch_pool(), 0, batch);
  } else {
    torch_pool()(batch, 1, [&](int64_t begin, int64_t end) { run(Parallel{nullptr}, begin, end); });
  }
  return bad;
}

std::tuple<Tensor, Tensor> select_diverse(const Tensor& features, int64_t k, const std::string& objective,
                                          const std::optional<Tensor>& relevance, const std::optional<Tensor>& seeds) {
  const DiverseProblem problem = check_diverse("select_diverse", features, k, objective, relevance, seeds);
  const int64_t batch = View(features).sizes[0];
  Tensor order = empty_cpu({batch, k}, aoti_torch_dtype_int64()),
         indices = empty_cpu({batch, k}, aoti_torch_dtype_int64());
  run_diverse(problem, features, relevance, order, indices);
  return {std::move(order), std::move(indices)};
}

void select_diverse_out(const Tensor& features, int64_t k, const std::string& objective,
                        const std::optional<Tensor>& relevance, const std::optional<Tensor>& seeds,
                        const Tensor& out_order, const Tensor& out_indices, const std::optional<Tensor>& status) {
  const char* op = "select_diverse.out";
  const DiverseProblem problem = check_diverse(op, features, k, objective, relevance, seeds);
  const int64_t batch = View(features).sizes[0];
  check_output(op, "out_order", out_order, {batch, k}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_indices", out_indices, {batch, k}, aoti_torch_dtype_int64(), true, cpu_type());
  check_status(op, status);
  if (run_diverse(problem, features, relevance, out_order, out_indices)) set_status(status, kBadIndex);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("select_diverse", VTK_BOX(select_diverse));
  m.impl("select_diverse.out", VTK_BOX(select_diverse_out));
}
