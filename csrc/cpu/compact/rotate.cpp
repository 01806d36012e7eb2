// Rotary keys: frequencies in float64, the choice of the instruction set, the split over threads.
#include "rotate.h"

#include <algorithm>
#include <cstring>

#include "narrow.h"
#include "score_common.h"
#include "target.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vtkernels::cpu {
namespace {

struct RotateScratch {
  RotateScratch(int64_t pairs) : angle(pairs), cosine(pairs), sine(pairs), row(2 * pairs), result(8 * pairs) {}
  std::vector<double> angle;
  std::vector<float> cosine, sine, row;
  std::vector<char> result;
};

namespace baseline {
#include "convert_baseline.h"
// after the conversions that they use
#include "convert.inl"
#include "rotate_kernel.inl"
}  // namespace baseline

#if defined(__x86_64__)
VTK_TARGET("avx2,fma,f16c")
namespace avx2 {
#include "convert_f16c.h"
// after the conversions that they use
#include "convert.inl"
#include "rotate_kernel.inl"
}  // namespace avx2
VTK_TARGET_END
VTK_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace avx512 {
#include "convert_f16c.h"
// after the conversions that they use
#include "convert.inl"
#include "rotate_kernel.inl"
}  // namespace avx512
VTK_TARGET_END
#endif

using RotateToken = void (*)(const RotateProblem& p, const double* freq, int64_t b, int64_t n, RotateScratch& scratch);

RotateToken pick() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512) return avx512::rotate_token;
  if (current_isa() == Isa::kAvx2) return avx2::rotate_token;
#endif
  return baseline::rotate_token;
}

}  // namespace

void rotate_keys(const Parallel& parallel, const RotateProblem& p) {
  if (p.heads == 0 || p.width == 0) return;
  std::vector<double> freq(p.axes * p.pairs);
  for (int64_t axis = 0; axis < p.axes; ++axis) {
    for (int64_t i = 0; i < p.pairs; ++i) {
      freq[axis * p.pairs + i] = p.inv_freq[axis * p.freq_axis + i * p.freq_pair];
    }
  }
  const RotateToken rotate = pick();
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / (p.heads * p.width));
  parallel(p.batch * p.tokens, grain, [&](int64_t begin, int64_t end) {
    RotateScratch scratch(p.pairs);
    for (int64_t i = begin; i < end; ++i) rotate(p, freq.data(), i / p.tokens, i % p.tokens, scratch);
  });
}

}  // namespace vtkernels::cpu
