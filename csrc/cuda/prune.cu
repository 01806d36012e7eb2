#include <vtkernels/cuda/prepare.cuh>
#include <vtkernels/cuda/prune.cuh>
#include <vtkernels/cuda/score_launch.cuh>

namespace vtkernels::cuda {
namespace {

PruneParams params_of(const ScoreProblem& score, int64_t batch, bool keep_similar, const ScoreView& scores,
                      const IndexView& indices, int* workspace, int* status) {
  PruneParams p{};
  p.score = score_params(score, ScoreMetric::kCosine, batch);
  p.batch = batch;
  p.keep_similar = keep_similar;
  p.scores = scores;
  p.indices = indices;
  p.workspace = workspace_at(workspace);
  p.status = status;
  return p;
}

}  // namespace

void clear_words(int* words, int64_t count, Stream stream) {
  check(cudaMemsetAsync(words, 0, sizeof(int) * count, stream));
}

void clear_workspace(int* workspace, int64_t batch, Stream stream) {
  clear_words(workspace, workspace_size(batch), stream);
}

void prune_topk(const PruneDense& problem, Stream stream) {
  if (problem.batch == 0) return;
  if (problem.span_len > INT32_MAX) throw std::runtime_error("prune_topk: a span has more than 2^31 - 1 tokens");
  PruneParams p = params_of(problem.score, problem.batch, problem.keep_similar, problem.scores, problem.indices,
                            problem.workspace, problem.status);
  p.tokens = problem.tokens;
  p.span_start = problem.span_start;
  p.span_length = problem.span_len;
  p.kept = problem.k;
  p.span_starts = problem.span_starts;
  p.span_starts_stride = problem.span_starts_stride;
  with_score_tile(problem.score.dtype, problem.batch * problem.span_len, [&](auto tile) {
    using Tile = decltype(tile);
    p.tiles_per_row = std::max<int64_t>(1, (problem.span_len + Tile::kRows - 1) / Tile::kRows);
    launch(prune_kernel<Tile>, problem.batch * p.tiles_per_row, Tile::kThreads, sizeof(PruneShared<Tile>), stream, p);
  });
}

void prune_topk_varlen(const PruneVarlen& problem, Stream stream) {
  if (problem.tokens > INT32_MAX) throw std::runtime_error("prune_topk_varlen: more than 2^31 - 1 packed tokens");
  PruneParams p = params_of(problem.score, problem.batch, problem.keep_similar, problem.scores, problem.indices,
                            problem.workspace, problem.status);
  p.packed = true;
  p.total_out = problem.total_out;
  with_score_tile(problem.score.dtype, problem.tokens, [&](auto tile) {
    using Tile = decltype(tile);
    const PrepareParams prepare{problem.batch,       problem.tokens,         problem.total_out,
                                Tile::kRows,         problem.cu_seqlens,     problem.k,
                                problem.span_starts, problem.span_lens,      problem.scores,
                                problem.indices,     problem.out_cu_seqlens, problem.out_cu_seqlens_stride,
                                p.workspace,         problem.status};
    launch(prepare_kernel, int64_t{1}, kPrepareThreads, kPrepareThreads / 32 * sizeof(int), stream, prepare);
    // Every row has one tile more than its whole ones at most; blocks past the last tile only count themselves done.
    const int64_t blocks = problem.tokens / Tile::kRows + problem.batch;
    if (problem.batch > 0) launch(prune_kernel<Tile>, blocks, Tile::kThreads, sizeof(PruneShared<Tile>), stream, p);
  });
}

}  // namespace vtkernels::cuda
