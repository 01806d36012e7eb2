// K and V in 8, 4 or 2 bits for each importance class, and back.
#pragma once

#include <vector>

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

// [batch, heads, rows, width], strides in elements.
struct HeadRows {
  char* data;
  int64_t batch_stride, head_stride, row_stride, dim_stride;
};

// One importance class. `count` rows for each head; the last dimension of what is written is dense.
struct QuantizedClass {
  int bits;
  int64_t count;
  Indices tokens;                     // [batch, count]
  HeadRows key_codes, value_codes;    // bytes
  HeadRows key_params, value_params;  // float32: [2, width] and [count, 2]
  HeadRows value_scales;              // float32 [1, width]
};

struct QuantizeProblem {
  DType dtype;
  int64_t batch, heads, tokens, width;
  HeadRows key, value;
  std::vector<QuantizedClass> classes;
};

// By the rules of vtkernels.quantize_kv and vtkernels.dequantize_kv. Return whether a position was outside its row.
bool quantize_kv(const Parallel& parallel, const QuantizeProblem& problem);
bool dequantize_kv(const Parallel& parallel, const QuantizeProblem& problem);

}  // namespace vtkernels::cpu
