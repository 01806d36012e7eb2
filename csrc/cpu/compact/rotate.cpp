// Rotary keys: frequencies in float64, the choice of the instruction set, the split over threads.
#include "rotate.h"

#include <algorithm>
#include <cstring>

#include "../common/kernel.h"
#include "../common/target.h"

namespace vtkernels::cpu {
namespace {

struct RotateScratch {
  RotateScratch(int64_t pairs) : angle(pairs), cosine(pairs), sine(pairs), row(2 * pairs), result(8 * pairs) {}
  std::vector<double> angle;
  std::vector<float> cosine, sine, row;
  std::vector<char> result;
};

}  // namespace

#define VTK_KERNEL "../compact/rotate_kernel.inl"
#include "../common/isa_kernels.inl"

void rotate_keys(const Parallel& parallel, const RotateProblem& p) {
  if (p.heads == 0 || p.width == 0) return;
  std::vector<double> freq(p.axes * p.pairs);
  for (int64_t axis = 0; axis < p.axes; ++axis) {
    for (int64_t i = 0; i < p.pairs; ++i) {
      freq[axis * p.pairs + i] = p.inv_freq[axis * p.freq_axis + i * p.freq_pair];
    }
  }
  const auto rotate = VTK_PICK(rotate_token);
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / (p.heads * p.width));
  parallel(p.batch * p.tokens, grain, [&](int64_t begin, int64_t end) {
    RotateScratch scratch(p.pairs);
    for (int64_t i = begin; i < end; ++i) rotate(p, freq.data(), i / p.tokens, i % p.tokens, scratch);
  });
}

}  // namespace vtkernels::cpu
