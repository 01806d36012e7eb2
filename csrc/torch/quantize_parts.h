// The parts of a class of quantised tokens, on either device.
#pragma once

#include "tensor.h"

namespace vtkernels {

// Codes of keys, ranges of their channels, codes of values, ranges of their tokens, scales of their channels.
constexpr int kParts = 5;
constexpr const char* kPartNames[kParts] = {"key_codes", "key_params", "value_codes", "value_params", "value_scales"};
constexpr const char* kOutNames[kParts] = {"out_key_codes", "out_key_params", "out_value_codes", "out_value_params",
                                           "out_value_scales"};

template <class Problem, class Class>
std::vector<int64_t> part_shape(int part, const Problem& p, const Class& c) {
  const int64_t bytes = (p.width * c.bits + 7) / 8;
  if (part == 0 || part == 2) return {p.batch, p.heads, c.count, bytes};
  if (part == 1) return {p.batch, p.heads, 2, p.width};
  if (part == 3) return {p.batch, p.heads, c.count, 2};
  return {p.batch, p.heads, p.width};
}

inline int32_t part_dtype(int part) {
  return part == 0 || part == 2 ? aoti_torch_dtype_uint8() : aoti_torch_dtype_float32();
}

}  // namespace vtkernels
