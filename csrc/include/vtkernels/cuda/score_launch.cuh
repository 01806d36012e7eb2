// Host side of a score tile: parameters of the kernel and the choice of its shape.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vtkernels/cuda/score.cuh>

namespace vtkernels::cuda {

// `strides` are those of the dimensions above the vectors'.
inline ScoreSource score_source(Dtype dtype, const void* data, int64_t width, int64_t dim_stride,
                                std::initializer_list<int64_t> strides) {
  const int64_t bytes = dtype == Dtype::kFloat32 ? 4 : 2;
  const auto aligned = [&](int64_t stride) { return stride * bytes % 16 == 0; };
  const bool vectors = (dim_stride == 1 || width <= 1) && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
                       std::all_of(strides.begin(), strides.end(), aligned);
  return {data, dim_stride, vectors};
}

inline ScoreParams score_params(const ScoreProblem& problem, ScoreMetric metric, int64_t batch) {
  const TokenView& t = problem.tokens;
  const PrototypeView& p = problem.prototypes;
  const int64_t batch_stride = batch == 1 ? 0 : t.batch_stride;
  const bool grouped = problem.groups > 1;
  const auto source = [&](const void* data, int64_t dim_stride, int64_t batch_stride, int64_t row_stride,
                          int64_t group_stride) {
    return score_source(problem.dtype, data, problem.width, dim_stride,
                        {batch_stride, row_stride, grouped ? group_stride : 0});
  };
  return {problem.width,
          source(t.data, t.dim_stride, batch_stride, t.token_stride, problem.token_group_stride),
          batch_stride,
          t.token_stride,
          source(p.data, p.dim_stride, 0, p.stride, problem.prototype_group_stride),
          p.stride,
          p.count,
          p.rnorm,
          p.rnorm_stride,
          metric == ScoreMetric::kCosine,
          metric == ScoreMetric::kL2};
}

// Calls body(Tile{}) with the dtype's tile: 64 rows where those tiles fill the GPU, else 16.
template <class Body>
void with_score_tile(Dtype dtype, int64_t rows, Body body) {
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const bool large = rows >= int64_t{64} * multiprocessors;
  const auto with_type = [&](auto element) {
    using T = decltype(element);
    large ? body(ScoreTile<T, 4>{}) : body(ScoreTile<T, 1>{});
  };
  switch (dtype) {
    case Dtype::kFloat32:
      return with_type(float{});
    case Dtype::kFloat16:
      return with_type(Half{});
    case Dtype::kBFloat16:
      return with_type(BFloat16{});
  }
}

}  // namespace vtkernels::cuda
