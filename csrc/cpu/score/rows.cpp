// Ops that read every element once: the choice of the instruction set, and the split over threads.
#include "rows.h"

#include "score_common.h"
#include "target.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own AVX-512 header
#endif
#endif

namespace vtkernels::cpu {
namespace {

constexpr int64_t kBlockTokens = 64;      // most tokens of a frame that are compared together
constexpr int64_t kBlockBytes = 1 << 18;  // of one frame, so that two frames stay in the second-level cache
constexpr int64_t kChunkFrames = 16;      // of a video of few places, to have work for all threads
constexpr int64_t kManyPlaces = 64;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

struct RowKernels {
  void (*temporal[3][3])(const TemporalProblem&, int64_t batch, int64_t place, int64_t count, int64_t begin,
                         int64_t end);
  void (*statistics[3])(const StatisticsProblem&, int64_t begin, int64_t end);
  void (*residual[3])(const ResidualProblem&, int64_t begin, int64_t end);
};

namespace baseline {
constexpr int kVectorBytes = 16;
using HalfVector = float __attribute__((vector_size(16)));
inline HalfVector halves(const uint16_t* from) {
  return HalfVector{half_to_float(from[0]), half_to_float(from[1]), half_to_float(from[2]), half_to_float(from[3])};
}
#include "rows_kernel.inl"
}  // namespace baseline

#if defined(__x86_64__)
VTK_TARGET("avx2,fma,f16c")
namespace avx2 {
constexpr int kVectorBytes = 32;
inline __m256 halves(const uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#include "rows_kernel.inl"
}  // namespace avx2
VTK_TARGET_END
VTK_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace avx512 {
constexpr int kVectorBytes = 64;
inline __m512 halves(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#include "rows_kernel.inl"
}  // namespace avx512
VTK_TARGET_END
#endif

const RowKernels& kernels() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512) return avx512::kKernels;
  if (current_isa() == Isa::kAvx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

// Below about 2^15 elements a second thread costs more than it saves.
int64_t grain(int64_t elements_of_an_item) {
  return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, elements_of_an_item));
}

}  // namespace

void temporal_scores(const Parallel& parallel, const TemporalProblem& p) {
  const auto kernel = kernels().temporal[static_cast<int>(p.dtype)][static_cast<int>(p.metric)];
  const int64_t frames = p.batch * p.n < kManyPlaces ? kChunkFrames : std::max<int64_t>(1, p.frames);
  const int64_t chunks = ceil_div(p.frames, frames);
  const int64_t row_bytes = std::max<int64_t>(1, p.width * (p.dtype == DType::kFloat32 ? 4 : 2));
  const int64_t block = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, kBlockTokens);
  // An item is one place of one chunk of frames.
  parallel(p.batch * chunks * p.n, grain(p.width * std::min(frames, p.frames)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t place = i % p.n, chunk = i / p.n % chunks, batch = i / p.n / chunks;
      const int64_t count = std::min({block, p.n - place, end - i});
      kernel(p, batch, place, count, chunk * frames, std::min((chunk + 1) * frames, p.frames));
      i += count;
    }
  });
}

void row_statistics(const Parallel& parallel, const StatisticsProblem& p) {
  const auto kernel = kernels().statistics[static_cast<int>(p.dtype)];
  parallel(p.row.count(), grain(4 * p.width), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void subspace_residual(const Parallel& parallel, const ResidualProblem& p) {
  const auto kernel = kernels().residual[static_cast<int>(p.dtype)];
  parallel(p.batch * p.n, grain(p.width * (p.rank + 1) / 8),
           [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace vtkernels::cpu
