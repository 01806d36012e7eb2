#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/score_launch.cuh>

namespace vtkernels::cuda {
namespace {

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    score_kernel(const ScoreParams p, int64_t tokens, int64_t tiles, const ScoreView scores, const IndexView argmax) {
  auto& s = shared_memory<typename Tile::Shared>();
  const int64_t b = blockIdx.x / tiles;
  const int64_t first = blockIdx.x % tiles * Tile::kRows;
  const int row = threadIdx.x;
  const bool is_token = row < Tile::kRows && first + row < tokens;
  if (row < Tile::kRows) {
    s.row_offset[row] = is_token ? b * p.token_batch_stride + (first + row) * p.token_stride : -1;
  }
  Tile::run(s, p);
  if (!is_token) return;
  scores.data[b * scores.batch_stride + (first + row) * scores.stride] = s.score(row);
  store_index(argmax, b, first + row, s.argmax(row));
}

}  // namespace

void prototype_scores(const ScoreProblem& problem, bool cosine, int64_t batch, int64_t tokens, const ScoreView& scores,
                      const IndexView& argmax, Stream stream) {
  if (batch == 0 || tokens == 0) return;
  with_score_tile(problem.dtype, batch * tokens, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t tiles = (tokens + Tile::kRows - 1) / Tile::kRows;
    launch(score_kernel<Tile>, batch * tiles, Tile::kThreads, sizeof(typename Tile::Shared), stream,
           score_params(problem, cosine, batch), tokens, tiles, scores, argmax);
  });
}

}  // namespace vtkernels::cuda
