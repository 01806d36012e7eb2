// Rotary keys turned by the difference of two positions.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct RotateProblem {
  DType dtype;
  int64_t batch, heads, tokens, width;  // strides in elements
  const char* keys;
  int64_t key_batch, key_head, key_token, key_dim;
  char* out;  // may be the keys; rows dense
  int64_t out_batch, out_head, out_token;
  int64_t axes, pairs;
  Indices deltas;  // tensor = axis
  const float* inv_freq;
  int64_t freq_axis, freq_pair;
  bool interleaved;
};

// By the rules of vtkernels.rotate_keys.
void rotate_keys(const Parallel& parallel, const RotateProblem& problem);

}  // namespace vtkernels::cpu
