#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/score_launch.cuh>

namespace vtkernels::cuda {
namespace {

struct ScoreGroups {
  int64_t count, tokens, prototypes;  // strides of the inputs
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    score_kernel(const ScoreParams params, const ScoreGroups groups, int64_t tokens, int64_t tiles,
                 const ScoreView scores, const IndexView argmax) {
  auto& s = shared_memory<typename Tile::Shared>();
  const int64_t group = blockIdx.x / tiles % groups.count, b = blockIdx.x / tiles / groups.count;
  const int64_t first = blockIdx.x % tiles * Tile::kRows;
  const int row = threadIdx.x;
  const bool is_token = row < Tile::kRows && first + row < tokens;
  ScoreParams p = params;
  p.prototypes.data = static_cast<const typename Tile::Element*>(p.prototypes.data) + group * groups.prototypes;
  if (row < Tile::kRows) {
    s.row_offset[row] =
        is_token ? b * p.token_batch_stride + (first + row) * p.token_stride + group * groups.tokens : -1;
  }
  Tile::run(s, p);
  if (!is_token) return;
  scores.data[b * scores.batch_stride + (first + row) * scores.stride + group] = s.score(row, p.l2);
  store_index_at(argmax, b * argmax.batch_stride + (first + row) * argmax.stride + group, s.argmax(row));
}

}  // namespace

void prototype_scores(const ScoreProblem& problem, ScoreMetric metric, int64_t batch, int64_t tokens,
                      const ScoreView& scores, const IndexView& argmax, Stream stream) {
  if (batch == 0 || tokens == 0 || problem.groups == 0) return;
  const ScoreGroups groups{problem.groups, problem.token_group_stride, problem.prototype_group_stride};
  with_score_tile(problem.dtype, batch * tokens * problem.groups, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t tiles = (tokens + Tile::kRows - 1) / Tile::kRows;
    launch(score_kernel<Tile>, batch * problem.groups * tiles, Tile::kThreads, sizeof(typename Tile::Shared), stream,
           score_params(problem, metric, batch), groups, tokens, tiles, scores, argmax);
  });
}

}  // namespace vtkernels::cuda
