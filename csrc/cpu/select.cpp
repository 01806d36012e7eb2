// Exact selection of k scores by radix search on 32-bit keys, then one pass in index order: ascending output, ties to
// the lowest index, no sort.
#include <vector>

#include "vtkernels/cpu.h"
#include "vtkernels/key.h"

namespace vtkernels::cpu {
namespace {

// The key is searched from the top in digits of 11, 11 and 10 bits.
struct Digit {
  int shift, bits;
};
constexpr Digit kDigits[] = {{21, 11}, {10, 11}, {0, 10}};

struct Threshold {
  uint32_t key;   // every larger key is selected
  int64_t equal;  // and this many of the keys equal to it
};

// The k-th largest of n keys, 1 <= k <= n.
Threshold find_threshold(const uint32_t* keys, int64_t n, int64_t k) {
  uint32_t prefix = 0;
  for (const Digit& digit : kDigits) {
    uint32_t histogram[1 << 11] = {};
    const uint32_t mask = (1u << digit.bits) - 1;
    const int above = digit.shift + digit.bits;
    if (above == 32) {
      for (int64_t i = 0; i < n; ++i) ++histogram[keys[i] >> digit.shift];
    } else {
      for (int64_t i = 0; i < n; ++i) {
        if ((keys[i] ^ prefix) >> above == 0) ++histogram[(keys[i] >> digit.shift) & mask];
      }
    }
    uint32_t bucket = mask;
    while (k > histogram[bucket]) k -= histogram[bucket--];
    prefix |= bucket << digit.shift;
  }
  return {prefix, k};
}

}  // namespace

void select_row(const float* scores, int64_t stride, int64_t n, int64_t k, bool largest, int64_t base,
                const IndexOut& out, int64_t at) {
  if (k == 0) return;
  if (k == n) {
    for (int64_t i = 0; i < n; ++i) out.store(at + i, base + i);
    return;
  }
  std::vector<uint32_t> keys(n);
  for (int64_t i = 0; i < n; ++i) keys[i] = selection_key(scores[i * stride], largest);
  const Threshold threshold = find_threshold(keys.data(), n, k);
  int64_t equal = threshold.equal, filled = 0;
  for (int64_t i = 0; filled < k; ++i) {
    const bool take = keys[i] > threshold.key || (keys[i] == threshold.key && equal-- > 0);
    if (take) out.store(at + filled++, base + i);
  }
}

}  // namespace vtkernels::cpu
