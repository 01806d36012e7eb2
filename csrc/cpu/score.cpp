// Prototype scores: norms of the prototypes, the choice of the instruction set, and the split over threads.
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

float prototype_norm(const ScoreProblem& p, int64_t row) {
  const int64_t at = row * p.prototypes.row_stride;
  float lanes[16] = {};
  for (int64_t d = 0; d < p.width; ++d) {
    const int64_t i = at + d * p.prototypes.col_stride;
    float x;
    if (p.dtype == DType::kFloat32) {
      x = static_cast<const float*>(p.prototypes.data)[i];
    } else {
      const uint16_t bits = static_cast<const uint16_t*>(p.prototypes.data)[i];
      x = p.dtype == DType::kFloat16 ? half_to_float(bits) : bits_float(static_cast<uint32_t>(bits) << 16);
    }
    lanes[d % 16] += x * x;
  }
  float total = 0;
  for (float lane : lanes) total += lane;
  return reciprocal_norm(total);
}

}  // namespace

Isa supported_isa() {
  static const Isa best = detect();
  return best;
}

Isa current_isa() {
  const Isa wanted = limit.load(std::memory_order_relaxed);
  if (wanted == Isa::kAvx512Bf16Emulated) return supported_isa() >= Isa::kAvx512 ? wanted : supported_isa();
  return std::min(wanted, supported_isa());
}

void limit_isa(Isa highest) { limit.store(highest, std::memory_order_relaxed); }

void prototype_scores(const Parallel& parallel, const ScoreProblem& problem, const Segment* segments,
                      int64_t segment_count) {
  std::vector<int64_t> row_begin(segment_count + 1, 0);
  for (int64_t s = 0; s < segment_count; ++s) row_begin[s + 1] = row_begin[s] + segments[s].count;
  const int64_t rows = row_begin[segment_count];
  if (rows == 0) return;

  std::vector<float> rnorm(problem.prototype_count + kMaxPanel, 1.0f);
  const int64_t cheap = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, problem.width));
  if (problem.cosine && problem.rnorm != nullptr) {
    std::copy_n(problem.rnorm, problem.prototype_count, rnorm.begin());
  } else if (problem.cosine) {
    parallel(problem.prototype_count, cheap, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) rnorm[p] = prototype_norm(problem, p);
    });
  }

  const ScoreWork work{&problem, segments, row_begin.data(), segment_count, rnorm.data()};
  const ScoreKernel kernel = pick(current_isa(), problem.dtype);
  // Below about 2^18 multiply-adds a second thread costs more than it saves.
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, problem.width * problem.prototype_count));
  parallel(rows, grain, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

}  // namespace vtkernels::cpu
