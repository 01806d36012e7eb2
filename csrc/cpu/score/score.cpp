// Prototype scores: the choice of the instruction set, and the split over threads.
#include <atomic>

#include "score_common.h"

namespace vtkernels::cpu {
namespace {

std::atomic<Isa> limit{Isa::kAvx512Bf16};

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C, a name that older clangs do not know.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

ScoreKernel pick(Isa isa, DType dtype) {
  const bool bf16 = dtype == DType::kBFloat16;
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16:
      return bf16 ? score_avx512bf16 : score_avx512;
    case Isa::kAvx512Bf16Emulated:
      return bf16 ? score_avx512bf16_emulated : score_avx512;
    case Isa::kAvx512:
      return score_avx512;
    case Isa::kAvx2:
      return score_avx2;
#endif
    default:
      return score_baseline;
  }
}

struct Buffer {
  ~Buffer() { std::free(data); }
  void* data = nullptr;
  int64_t floats = 0;
};

}  // namespace

float* thread_scratch(int64_t floats) {
  thread_local Buffer buffer;
  if (buffer.floats < floats) {
    std::free(buffer.data);
    buffer.floats = 0;
    buffer.data = std::aligned_alloc(64, ceil_div(floats, 16) * 64);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.floats = floats;
  }
  return static_cast<float*>(buffer.data);
}

Isa supported_isa() {
  static const Isa best = detect();
  return best;
}

Isa current_isa() {
  const Isa wanted = limit.load(std::memory_order_relaxed);
  if (wanted == Isa::kAvx512Bf16Emulated) return supported_isa() >= Isa::kAvx512 ? wanted : supported_isa();
  return std::min(wanted, supported_isa());
}

std::vector<int64_t> rows_before(const Segment* segments, int64_t segment_count) {
  std::vector<int64_t> begin(segment_count + 1, 0);
  for (int64_t s = 0; s < segment_count; ++s) begin[s + 1] = begin[s] + segments[s].count;
  return begin;
}

void limit_isa(Isa highest) { limit.store(highest, std::memory_order_relaxed); }

void prototype_scores(const Parallel& parallel, const ScoreProblem& problem, const Segment* segments,
                      int64_t segment_count) {
  const std::vector<int64_t> row_begin = rows_before(segments, segment_count);
  const int64_t rows = row_begin[segment_count];
  if (rows == 0) return;

  const ScoreWork work{&problem, segments, row_begin.data(), segment_count};
  const ScoreKernel kernel = pick(current_isa(), problem.dtype);
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
    const ScoreKernel kernel = pick(current_isa(), problem.dtype);
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
