// Bipartite matching: the score kernel with a row's targets as prototypes, then the radix selection.
#include "match.h"

#include "../common/batch_rows.h"
#include "../common/kernel.h"

namespace vtkernels::cpu {
namespace {

void match_row(const Parallel& parallel, const MatchProblem& p, int64_t b) {
  const int64_t size = element_size(p.dtype), r = p.merged;
  std::vector<int64_t> picked(r), source, nearest;
  if (r > 0) {
    // Sources lie in runs between the targets.
    std::vector<Segment> runs;
    for (int64_t i = p.guarded; i < p.n; ++i) {
      if (i % p.stride == p.stride - 1) continue;
      if (runs.empty() || runs.back().first + runs.back().count != i) {
        runs.push_back({i, 0, 0, static_cast<int64_t>(source.size())});
      }
      ++runs.back().count;
      source.push_back(i);
    }
    const int64_t first = p.guarded / p.stride * p.stride + p.stride - 1;  // target
    std::vector<float> scores(source.size());
    nearest.resize(source.size());
    ScoreProblem problem{};
    problem.dtype = p.dtype;
    problem.tokens = {p.tokens + b * p.batch_stride * size, p.token_stride, p.dim_stride};
    problem.prototypes = {p.tokens + (b * p.batch_stride + first * p.token_stride) * size, p.stride * p.token_stride,
                          p.dim_stride};
    problem.width = p.width;
    problem.prototype_count = p.target_count();
    problem.cosine = true;
    problem.scores = scores.data();
    problem.argmax = {nearest.data(), true};
    prototype_scores(parallel, problem, runs.data(), static_cast<int64_t>(runs.size()));
    if (p.bias != nullptr) {
      const float* bias = p.bias + b * p.bias_batch;
      for (size_t s = 0; s < source.size(); ++s) scores[s] = scores[s] + bias[source[s] * p.bias_token] + 0.0f;
    }
    select_row(scores.data(), 1, static_cast<int64_t>(source.size()), r, true, 0, {picked.data(), true}, 0);
    for (int64_t j = 0; j < r; ++j) {
      p.sources.store(b * p.source_batch + j, source[picked[j]]);
      p.targets.store(b * p.target_batch + j, first + nearest[picked[j]] * p.stride);
      p.scores[b * p.score_batch + j] = scores[picked[j]];
    }
  }
  int64_t removed = 0;
  for (int64_t i = 0; i < p.n; ++i) {
    if (removed < r && source[picked[removed]] == i) {
      ++removed;
    } else {
      p.kept.store(b * p.kept_batch + i - removed, i);
    }
  }
}

}  // namespace

void match_bipartite(const Parallel& parallel, const MatchProblem& p) {
  const int64_t work = std::max<int64_t>(1, p.source_count() * p.target_count() * p.width);
  for_rows(parallel, p.batch, work, [&](int64_t b) { match_row(parallel, p, b); });
}

}  // namespace vtkernels::cpu
