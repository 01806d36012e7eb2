// Selection over dense scores, one instance per instruction set.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

// Every larger key is selected, and the first `equal` of the keys equal to it.
struct Cut {
  uint32_t key;
  int64_t equal;
};

struct SelectKernel {
  // The cut below the k best of n scores, 1 <= k <= n. `scratch` holds select_scratch(n) words.
  Cut (*find)(const float* scores, int64_t n, int64_t k, bool largest, uint32_t* scratch);
  // Positions of what a cut selects, ascending, into out[at ..] with `base` added. Returns how many.
  int64_t (*emit)(const float* scores, int64_t n, Cut cut, bool largest, int64_t base, const IndexOut& out, int64_t at);
};

constexpr int64_t kSelectPadding = 16;  // words that a kernel may write behind what it keeps

constexpr int64_t select_scratch(int64_t n) { return 2 * (n + kSelectPadding); }

const SelectKernel& select_kernel();  // of the instruction set in use

namespace baseline {
extern const SelectKernel kSelect;
}
namespace avx2 {
extern const SelectKernel kSelect;
}
namespace avx512 {
extern const SelectKernel kSelect;
}

}  // namespace vtkernels::cpu
