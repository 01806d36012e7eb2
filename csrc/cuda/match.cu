// Bipartite matching: score tiles with a row's targets as prototypes, the best sources, then the lists.
#include <vtkernels/cuda/launch_select.h>

#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/score_launch.cuh>

namespace vtkernels::cuda {
namespace {

constexpr int kListThreads = 256;

// A row has less than 2^31 tokens.
struct MatchParams {
  unsigned n, merged, sources;
  unsigned stride, first_target;
  unsigned skipped;  // sources before the first one that is not guarded
  const float* bias;
  int64_t bias_batch, bias_token;
  float* scores;  // [batch, sources]
  int* nearest;   // [batch, sources] target
  int* picked;    // [batch, merged] number of the source

  __device__ unsigned source_position(unsigned number) const {
    return (skipped + number) / (stride - 1) * stride + (skipped + number) % (stride - 1);
  }
};

// Two blocks per multiprocessor: with more in mind, ptxas spills.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    match_kernel(const MatchParams p, const ScoreParams params, unsigned tiles) {
  auto& s = shared_memory<typename Tile::Shared>();
  const int64_t b = blockIdx.x / tiles;
  const unsigned number = blockIdx.x % tiles * Tile::kRows + threadIdx.x;
  const bool is_source = threadIdx.x < Tile::kRows && number < p.sources;
  if (threadIdx.x < Tile::kRows) {
    s.row_offset[threadIdx.x] =
        is_source ? b * params.token_batch_stride + p.source_position(number) * params.token_stride : -1;
  }
  ScoreParams of_row = params;
  of_row.prototypes.data =
      static_cast<const typename Tile::Element*>(params.prototypes.data) + b * params.token_batch_stride;
  Tile::run(s, of_row);
  if (!is_source) return;
  float score = s.score(threadIdx.x);
  if (p.bias != nullptr) score = score + p.bias[b * p.bias_batch + p.source_position(number) * p.bias_token] + 0.0f;
  p.scores[b * p.sources + number] = score;
  p.nearest[b * p.sources + number] = static_cast<int>(p.first_target + s.argmax(threadIdx.x) * p.stride);
}

struct MatchLists {
  IndexView sources, targets, kept;
  ScoreView scores;
};

// Each token into the list of the merged sources or into that of the kept, at its rank there.
__global__ void __launch_bounds__(kListThreads)
    list_kernel(const MatchParams p, unsigned blocks, const MatchLists lists) {
  const int64_t b = blockIdx.x / blocks;
  const unsigned position = blockIdx.x % blocks * kListThreads + threadIdx.x;
  if (position >= p.n) return;
  const int* picked = p.picked + b * p.merged;
  unsigned low = 0, high = p.merged;  // low becomes the number of picked sources before the token
  while (low < high) {
    const unsigned middle = (low + high) / 2;
    if (p.source_position(picked[middle]) < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == p.merged || p.source_position(picked[low]) != position) {
    store_index(lists.kept, b, position - low, position);
    return;
  }
  const int64_t from = b * p.sources + picked[low];
  store_index(lists.sources, b, low, position);
  store_index(lists.targets, b, low, p.nearest[from]);
  lists.scores.data[b * lists.scores.batch_stride + low * lists.scores.stride] = p.scores[from];
}

void score_sources(const MatchProblem& problem, const MatchParams& p, Stream stream) {
  ScoreProblem score{};
  score.dtype = problem.dtype;
  score.width = problem.width;
  score.tokens = problem.tokens;
  const TokenView& t = problem.tokens;
  score.prototypes = {t.data, problem.target_count(), p.stride * t.token_stride, t.dim_stride, nullptr, 0};
  ScoreParams params = score_params(score, ScoreMetric::kCosine, problem.batch);
  const int64_t bytes = problem.dtype == Dtype::kFloat32 ? 4 : 2;
  params.prototypes.data = static_cast<const char*>(t.data) + p.first_target * t.token_stride * bytes;
  params.prototypes.vectors = params.tokens.vectors;  // they are the same rows
  with_score_tile(problem.dtype, problem.batch * p.sources, [&](auto tile) {
    using Tile = decltype(tile);
    const unsigned tiles = (p.sources + Tile::kRows - 1) / Tile::kRows;
    launch(match_kernel<Tile>, problem.batch * tiles, Tile::kThreads, sizeof(typename Tile::Shared), stream, p, params,
           tiles);
  });
}

}  // namespace

void match_bipartite(const MatchProblem& problem, Stream stream) {
  if (problem.batch == 0 || problem.n == 0) return;
  if (problem.n > INT32_MAX) throw std::runtime_error("match_bipartite: a row has more than 2^31 - 1 tokens");
  const int64_t sources = problem.source_count(), guarded_targets = problem.guarded / problem.stride;
  MatchParams p{};
  p.n = static_cast<unsigned>(problem.n);
  p.merged = static_cast<unsigned>(problem.merged);
  p.sources = static_cast<unsigned>(sources);
  p.stride = static_cast<unsigned>(problem.stride);
  p.first_target = static_cast<unsigned>((guarded_targets + 1) * problem.stride - 1);
  p.skipped = static_cast<unsigned>(problem.guarded - guarded_targets);
  p.bias = problem.bias;
  p.bias_batch = problem.bias_batch;
  p.bias_token = problem.bias_token;
  p.scores = reinterpret_cast<float*>(problem.scratch);
  p.nearest = problem.scratch + problem.batch * sources;
  p.picked = p.nearest + problem.batch * sources;
  if (problem.merged > 0) {
    score_sources(problem, p, stream);
    SelectDense best{};
    best.scores = {p.scores, sources, 1};
    best.batch = problem.batch;
    best.n = sources;
    best.k = problem.merged;
    best.largest = true;
    best.out = {p.picked, false, problem.merged, 1};
    select_topk(best, stream);
  }
  const unsigned blocks = (p.n + kListThreads - 1) / kListThreads;
  launch(list_kernel, problem.batch * blocks, kListThreads, 0, stream, p, blocks,
         MatchLists{problem.sources, problem.targets, problem.kept, problem.scores});
}

}  // namespace vtkernels::cuda
