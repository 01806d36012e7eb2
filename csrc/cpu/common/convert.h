// Floats stored in a narrower type, rounded to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "vtkernels/cpu.h"
#include "vtkernels/key.h"

namespace vtkernels::cpu {

inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
  if (magnitude < 0x38800000) {  // subnormal: the sum with 0.5 shifts and rounds the mantissa into place
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

inline void store_floats(DType dtype, const float* from, int64_t count, char* to) {
  auto* narrow = reinterpret_cast<uint16_t*>(to);
  if (dtype == DType::kFloat32) {
    memcpy(to, from, count * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) narrow[i] = float_to_bfloat16(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) narrow[i] = float_to_half(from[i]);
  }
}

}  // namespace vtkernels::cpu
