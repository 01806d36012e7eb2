// Prototype scores: the choice of the instruction set, and the split over threads.
#include "../common/kernel.h"
#include "../common/target.h"
#include "score_isa.h"

namespace vtkernels::cpu {
namespace {

std::vector<int64_t> rows_before(const Segment* segments, int64_t segment_count) {
  std::vector<int64_t> begin(segment_count + 1, 0);
  for (int64_t s = 0; s < segment_count; ++s) begin[s + 1] = begin[s] + segments[s].count;
  return begin;
}

// Floats whose best prototype is sought among so many that rounding them pays.
bool has_shortlist(const ScoreProblem& p) {
  return p.dtype != DType::kBFloat16 && p.mode == ScoreMode::kBest && !p.l2 && p.prototype_count >= 32 &&
         p.width >= 128;
}

}  // namespace

void prototype_scores(const Parallel& parallel, const ScoreProblem& problem, const Segment* segments,
                      int64_t segment_count) {
  const std::vector<int64_t> row_begin = rows_before(segments, segment_count);
  const int64_t rows = row_begin[segment_count];
  if (rows == 0) return;

  const ScoreWork work{&problem, segments, row_begin.data(), segment_count};
  const ScoreKernel kernel =
      has_shortlist(problem) ? VTK_PICK_SHORTLIST(run_shortlist, run_score) : VTK_PICK_PAIRS(run_score, problem.dtype);
  // Below about 2^18 multiply-adds a second thread costs more than it saves.
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, problem.width * problem.prototype_count));
  parallel(rows, grain, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

void prototype_softmax_scores(const Parallel& parallel, ScoreProblem problem, const Segment* segments,
                              int64_t segment_count, bool over_tokens) {
  const std::vector<int64_t> row_begin = rows_before(segments, segment_count);
  const int64_t prototypes = problem.prototype_count;
  std::vector<float> sums;
  if (over_tokens && row_begin[segment_count] > 0) {
    // Blocks of kSumTokens tokens are summed in the order of the tokens, and the blocks in theirs.
    std::vector<Segment> blocked(segments, segments + segment_count);
    std::vector<int64_t> block_begin(segment_count + 1, 0);
    for (int64_t s = 0; s < segment_count; ++s) {
      blocked[s].scores = block_begin[s] * kSumTokens;
      block_begin[s + 1] = block_begin[s] + ceil_div(segments[s].count, kSumTokens);
    }
    const int64_t blocks = block_begin[segment_count];
    std::vector<float> partial(blocks * prototypes, 0.0f);
    ScoreProblem summing = problem;
    summing.mode = ScoreMode::kTokenSums;
    summing.token_sums = partial.data();
    summing.score_stride = 1;
    const ScoreWork work{&summing, blocked.data(), row_begin.data(), segment_count};
    const ScoreKernel kernel = VTK_PICK_PAIRS(run_score, problem.dtype);
    const auto row_of = [&](int64_t block) {
      const int64_t s = std::upper_bound(block_begin.begin(), block_begin.end() - 1, block) - block_begin.begin() - 1;
      return std::min(row_begin[s] + (block - block_begin[s]) * kSumTokens, row_begin[s + 1]);
    };
    const int64_t work_of_a_block = kSumTokens * std::max<int64_t>(1, problem.width * prototypes);
    parallel(blocks, std::max<int64_t>(1, (1 << 18) / work_of_a_block),
             [&](int64_t begin, int64_t end) { kernel(work, row_of(begin), row_of(end)); });
    sums.assign(segment_count * prototypes, 0.0f);
    for (int64_t s = 0; s < segment_count; ++s) {
      for (int64_t b = block_begin[s]; b < block_begin[s + 1]; ++b) {
        for (int64_t p = 0; p < prototypes; ++p) sums[s * prototypes + p] += partial[b * prototypes + p];
      }
    }
    problem.token_sums = sums.data();
  }
  problem.mode = ScoreMode::kSoftmax;
  prototype_scores(parallel, problem, segments, segment_count);
}

}  // namespace vtkernels::cpu
