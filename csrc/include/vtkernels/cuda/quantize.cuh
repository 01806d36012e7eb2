// What the kernels of quantize_kv and dequantize_kv share: their parameters, rows four elements at a time, ranges and
// levels.
#pragma once

#include <vtkernels/cuda/quantize.h>

#include <cfloat>
#include <cmath>
#include <vtkernels/cuda/arch.cuh>

namespace vtkernels::cuda {

constexpr int kQuantizeThreads = 256;
constexpr int kQuantizeRows = 32;  // of a head that one block encodes or restores
constexpr int kChunkRows = 128;    // whose channels one block looks at

struct ClassPlan {
  QuantizedClass of;
  int64_t bytes;       // of a row's codes
  int64_t chunks;      // of rows, at least one
  float* seen;         // [batch * heads, chunks, 3, width]: least and largest key, largest size of a value
  int64_t first_row;   // of dequantize_kv: rows of all classes before this one
  int64_t first_item;  // of the kernel that runs
  int lanes;           // that share a row, four bytes each: a power of two
  bool vector;         // four elements, and four bytes, of every row can be moved at once
};

struct QuantizeParams {
  static constexpr int kMaxClasses = 10;

  int64_t batch, heads, tokens, width;
  HeadRows key, value;
  int* status;
  int64_t items;
  int lanes;         // that share a row, four elements each: a power of two
  bool vector;       // four elements of K and V can be moved at once
  const int* owner;  // of dequantize_kv, [batch, tokens]: the row of all classes that stands for a token, or -1
  bool fill;         // tokens of no class
  int class_count;
  ClassPlan classes[kMaxClasses];

  // Of row j of a class; -1 outside [0, tokens).
  __device__ int64_t token(const ClassPlan& c, int64_t b, int64_t j) const {
    const int64_t at = b * c.of.tokens.batch_stride + j * c.of.tokens.stride;
    const int64_t t = c.of.tokens.wide ? static_cast<const int64_t*>(c.of.tokens.data)[at]
                                       : static_cast<const int*>(c.of.tokens.data)[at];
    return t >= 0 && t < tokens ? t : -1;
  }
  __device__ const ClassPlan& class_of(int64_t item) const {
    int c = 0;
    while (c + 1 < class_count && item >= classes[c + 1].first_item) ++c;
    return classes[c];
  }
};
static_assert(sizeof(QuantizeParams) <= 4096, "kernel parameters of every architecture end at 4 KB");

__device__ inline void flag_bad_tokens(const QuantizeParams& p) {
  if (p.status == nullptr) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kQuantizeThreads;
  for (int l = 0; l < p.class_count; ++l) {
    const ClassPlan& c = p.classes[l];
    const int64_t rows = p.batch * c.of.count;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kQuantizeThreads + threadIdx.x; i < rows; i += step) {
      if (p.token(c, i / c.of.count, i % c.of.count) < 0) atomicOr(p.status, kBadIndex);
    }
  }
}

template <class T>
__device__ T* row_at(const HeadRows& rows, int64_t b, int64_t head, int64_t row) {
  return static_cast<T*>(rows.data) + b * rows.batch_stride + head * rows.head_stride + row * rows.row_stride;
}

struct Four {
  float at[4];
};

// Elements at .. at + 4 of a row; 0 behind its end.
template <class T>
__device__ Four load_four(const T* row, int64_t stride, int64_t at, int64_t size, bool vector) {
  Four x;
  if (vector) {
    using V = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    const V unit = arch::load<V>(row + at);
    T raw[4];
    memcpy(raw, &unit, sizeof raw);
#pragma unroll
    for (int i = 0; i < 4; ++i) x.at[i] = arch::to_float(raw[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.at[i] = at + i < size ? arch::to_float(row[(at + i) * stride]) : 0.0f;
  }
  return x;
}

template <class T>
__device__ void store_four(T* row, int64_t at, int64_t size, bool vector, const Four& x) {
  T raw[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) raw[i] = arch::from_float<T>(x.at[i]);
  if (vector) {
    using V = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    V unit;
    memcpy(&unit, raw, sizeof raw);
    arch::store_streaming<V>(row + at, unit);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (at + i < size) row[at + i] = raw[i];
    }
  }
}

__device__ inline void store_bytes(uint8_t* row, int64_t at, int64_t size, bool vector, unsigned word) {
  if (vector) {
    arch::store_streaming<unsigned>(row + at, word);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (at + i < size) row[at + i] = static_cast<uint8_t>(word >> (8 * i));
    }
  }
}

struct Range {
  float low = INFINITY, high = -INFINITY;

  __device__ void widen(float least, float most) {
    low = least < low ? least : low;
    high = most > high ? most : high;
  }
  // A value that is not finite makes the range infinite.
  __device__ void see(float x) {
    const bool finite = fabsf(x) <= FLT_MAX;
    widen(finite ? x : -INFINITY, finite ? x : INFINITY);
  }
};

struct Steps {
  float low, step, inverse;  // 0 where there are no members or no step, NaN and NaN and 0 where the range is not finite
};

__device__ inline Steps steps_of(const Range& range, float most) {
  if (range.low > range.high) return {0.0f, 0.0f, 0.0f};
  const float step = (range.high - range.low) / most;
  if (!(step <= FLT_MAX)) return {NAN, NAN, 0.0f};
  if (step < FLT_MIN) return {range.low, 0.0f, 0.0f};
  return {range.low, step, 1.0f / step};
}

__device__ inline unsigned level_of(float x, float low, float inverse, float most) {
  float level = (x - low) * inverse;
  level = level > 0.0f ? level : 0.0f;  // NaN is 0, too
  level = level < most ? level : most;
  return static_cast<unsigned>(level + 0.5f);
}

// Rounded twice, as on every other backend: not one fused multiply-add.
__device__ inline float value_of(unsigned level, float low, float step) {
  return __fadd_rn(low, __fmul_rn(static_cast<float>(level), step));
}

}  // namespace vtkernels::cuda
