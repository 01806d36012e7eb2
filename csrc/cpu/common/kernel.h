// What kernels of every instruction set share. All of it is compiled for the baseline.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <numeric>
#include <vector>

#include "convert.h"
#include "vtkernels/cpu.h"
#include "vtkernels/key.h"

namespace vtkernels::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 1 / norm of a sum of squares: 0 for a zero norm, NaN for one that float32 cannot hold.
inline float reciprocal_norm(float squares) {
  if (squares < std::numeric_limits<float>::min()) return 0.0f;
  return std::isfinite(squares) ? 1.0f / std::sqrt(squares) : NAN;
}

// Below about 2^15 elements a second thread costs more than it saves.
inline int64_t element_grain(int64_t elements_of_an_item) {
  return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, elements_of_an_item));
}

// A row of `count` elements of `size` bytes, `step` apart, to where they lie side by side.
inline void copy_row(const char* from, int64_t step, int64_t count, int64_t size, char* to) {
  if (step == 1) {
    memcpy(to, from, count * size);
  } else {
    for (int64_t i = 0; i < count; ++i) memcpy(to + i * size, from + i * step * size, size);
  }
}

// This thread's scratch memory, kept from call to call: fresh pages would cost more than a small problem. At most one
// tile, a few MiB. It is aligned to cache lines, and the previous content is gone when it has to grow.
float* thread_scratch(int64_t floats);

// Cuts one scratch area into arrays on cache lines.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : next_(thread_scratch(floats + 16 * 16)) {}

  template <typename T>
  T* take(int64_t count) {
    static_assert(sizeof(T) == sizeof(float));
    float* from = next_;
    next_ += ceil_div(count, 16) * 16;
    return reinterpret_cast<T*>(from);
  }

 private:
  float* next_;
};

}  // namespace vtkernels::cpu
