// K and V in 8, 4 or 2 bits for each importance class, and back, by the rules of vtkernels.quantize_kv. Strides and
// sizes count elements. A failed launch throws std::runtime_error.
#pragma once

#include <vtkernels/cuda/launch.h>

namespace vtkernels::cuda {

// [batch, heads, rows, width].
struct HeadRows {
  void* data;
  int64_t batch_stride, head_stride, row_stride, dim_stride;
};

// One importance class: `count` rows for each head, of ceil(width * bits / 8) bytes. A position outside
// [0, QuantizeProblem::tokens) stands for no token.
struct QuantizedClass {
  int bits;  // 2, 4 or 8
  int64_t count;
  IndexView tokens;                   // [batch, count]
  HeadRows key_codes, value_codes;    // bytes
  HeadRows key_params, value_params;  // float32 [2, width] and [count, 2]: smallest value and step
  HeadRows value_scales;              // float32 [1, width]
};

struct QuantizeProblem {
  Dtype dtype;
  int64_t batch, heads, tokens, width;
  HeadRows key, value;
  std::vector<QuantizedClass> classes;
  int* status;  // or null; a position outside its row sets kBadIndex
};

// float32 words of scratch that `quantize_kv` wants, 16-byte aligned.
int64_t quantize_scratch(const QuantizeProblem& problem);

// Writes codes, params and scales, whose dim_stride is 1.
void quantize_kv(const QuantizeProblem& problem, float* scratch, Stream stream);

// Writes `key` and `value`, whose dim_stride is 1: zeros for a token of no class, the last row of several. `owners` is
// scratch, batch * tokens words.
void dequantize_kv(const QuantizeProblem& problem, int* owners, Stream stream);

}  // namespace vtkernels::cuda
