// What every instruction set's score kernel shares. All of it is compiled for the baseline.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <vector>

#include "score_isa.h"
#include "vtkernels/key.h"

namespace vtkernels::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 1 / norm of a sum of squares: 0 for a zero norm, NaN for one that float32 cannot hold.
inline float reciprocal_norm(float squares) {
  if (squares < std::numeric_limits<float>::min()) return 0.0f;
  return std::isfinite(squares) ? 1.0f / std::sqrt(squares) : NAN;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31, mantissa = half & 1023;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(mantissa) * 0x1p-24f;
  return bits_float(sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (mantissa << 13));
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
