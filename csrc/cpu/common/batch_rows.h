// The rows of a batch, each worked on as a whole.
#pragma once

#include <algorithm>

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

// body(row) for every row; `work` is the number of multiply-adds of one. Threads are shared inside a large row, and
// among small rows.
template <typename F>
void for_rows(const Parallel& parallel, int64_t batch, int64_t work, F&& body) {
  constexpr int64_t kLarge = 1 << 25, kGrain = 1 << 18;
  const int64_t grain = work >= kLarge ? batch : std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work));
  parallel(batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b);
  });
}

}  // namespace vtkernels::cpu
