// Weights as integers, so that their sums are exact and the same everywhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vtkernels/key.h"

namespace vtkernels::cpu {

// trunc(w * 2^(30 - e)), e the exponent of the largest weight, at least -126. NaN and what is not above 0 count 0. With
// infinities each of them counts 1, everything else 0.
inline std::vector<uint32_t> integer_weights(const float* weights, int64_t stride, int64_t n) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  std::vector<uint32_t> bits(n);
  uint32_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float w = weights[i * stride];
    bits[i] = w > 0 ? float_bits(w) : 0;
    top = std::max(top, bits[i]);
  }
  for (uint32_t& b : bits) {
    if (top == kInfinity) {
      b = b == kInfinity;
      continue;
    }
    const uint32_t exponent = std::max(b >> 23, 1u), significand = (b & 0x7fffffu) | (b >> 23 ? 0x800000u : 0u);
    b = (significand << 7) >> std::min(std::max(top >> 23, 1u) - exponent, 31u);
  }
  return bits;
}

}  // namespace vtkernels::cpu
