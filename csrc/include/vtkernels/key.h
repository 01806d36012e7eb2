// Integer keys that order float scores. Selection and arg-max compare these keys and never floats, so that ties, NaN
// and signed zeros have one meaning on every backend.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define VTK_HD __host__ __device__
#else
#define VTK_HD
#endif

namespace vtkernels {

VTK_HD inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

VTK_HD inline float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr int32_t kNanKey = 0x7fffffff;

// Monotone in the value as a signed integer; -0 and +0 are equal, every NaN is above +inf.
VTK_HD inline int32_t max_key(float x) {
  const int32_t bits = static_cast<int32_t>(float_bits(x + 0.0f));
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t key = bits ^ ((bits >> 31) & 0x7fffffff);
  return magnitude > 0x7f800000 ? kNanKey : key;  // NaN, by integers, so that the loop vectorises
}

VTK_HD inline float max_key_value(int32_t key) {
  return bits_float(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7fffffff)));
}

// Larger keys are selected first: by score in the wanted direction, NaN (0) last whatever the direction.
VTK_HD inline uint32_t selection_key(float score, bool largest) {
  const uint32_t ordered = static_cast<uint32_t>(max_key(score)) ^ 0x80000000u;
  return score != score ? 0u : (largest ? ordered : ~ordered);
}

VTK_HD inline float selection_key_value(uint32_t key) {  // of largest = true
  return key == 0 ? bits_float(0x7fc00000u) : max_key_value(static_cast<int32_t>(key ^ 0x80000000u));
}

}  // namespace vtkernels
