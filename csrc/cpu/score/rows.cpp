// Ops that read every element once: the choice of the instruction set, and the split over threads.
#include "rows.h"

#include "../common/kernel.h"
#include "../common/target.h"

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

}  // namespace

#define VTK_KERNEL "../score/rows_kernel.inl"
#include "../common/isa_kernels.inl"

void temporal_scores(const Parallel& parallel, const TemporalProblem& p) {
  const auto kernel = VTK_PICK(kKernels).temporal[static_cast<int>(p.dtype)][static_cast<int>(p.metric)];
  const int64_t frames = p.batch * p.n < kManyPlaces ? kChunkFrames : std::max<int64_t>(1, p.frames);
  const int64_t chunks = ceil_div(p.frames, frames);
  const int64_t row_bytes = std::max<int64_t>(1, p.width * element_size(p.dtype));
  const int64_t block = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, kBlockTokens);
  // An item is one place of one chunk of frames.
  parallel(p.batch * chunks * p.n, element_grain(p.width * std::min(frames, p.frames)),
           [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end;) {
               const int64_t place = i % p.n, chunk = i / p.n % chunks, batch = i / p.n / chunks;
               const int64_t count = std::min({block, p.n - place, end - i});
               kernel(p, batch, place, count, chunk * frames, std::min((chunk + 1) * frames, p.frames));
               i += count;
             }
           });
}

void row_statistics(const Parallel& parallel, const StatisticsProblem& p) {
  const auto kernel = VTK_PICK(kKernels).statistics[static_cast<int>(p.dtype)];
  parallel(p.row.count(), element_grain(4 * p.width), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void subspace_residual(const Parallel& parallel, const ResidualProblem& p) {
  const auto kernel = VTK_PICK(kKernels).residual[static_cast<int>(p.dtype)];
  parallel(p.batch * p.n, element_grain(p.width * (p.rank + 1) / 8),
           [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace vtkernels::cpu
