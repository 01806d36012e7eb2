// What both passes of the attention scores share: packed rows of queries, and sums of exponentials.
//
// The rows of a group, which are those of all query heads that use one key head, are numbered head by head.
#pragma once

#include <vtkernels/cuda/launch_attention.h>

#include <cmath>
#include <vtkernels/cuda/products.cuh>
#include <vtkernels/cuda/workspace.cuh>

namespace vtkernels::cuda {

template <class T>
using AttentionTile = ProductTile<T>;

constexpr int kSplitKeys = 1024;  // that a block of the first pass walks
constexpr int kCombineThreads = 256;

struct AttentionParams {
  AttentionProblem problem;
  ScoreSource query, key;
  unsigned group, rows;        // query heads of a key head, rows of a head; their product is less than 2^31
  unsigned key_heads, splits;  // of the keys
  float factor;                // of a product: the logit, or the exponent of 2 that is its exponential
  float *maxima, *sums;        // [splits, batch, heads, rows], null where not computed
  unsigned heads_together;     // whose rows are reduced as one: a group, or 1
  float* partial;              // [key_heads, batch, count], null where a block sees all heads

  // Row of the statistics and offset of a vector.
  __device__ int64_t statistic(int64_t b, unsigned head, unsigned row) const {
    return (b * problem.heads + head * group) * rows + row;
  }
  __device__ int64_t query_at(int64_t b, unsigned head, unsigned row) const {
    const HeadsView& q = problem.query;
    return b * q.batch_stride + (head * group + row / rows) * q.head_stride + row % rows * q.token_stride;
  }
  // The last of `count` keys from `first` on that a row sees, -1 for none.
  __device__ int last_seen(unsigned row, int64_t first, int count) const {
    return problem.causal ? static_cast<int>(clamp(problem.offset + row % rows - first, -1, count - 1)) : count - 1;
  }
};

// Where the exponents of a row start from.
__device__ inline float shift_of(float most) { return most == -INFINITY ? 0.0f : most; }

// The largest exponent of a row and the sum of the exponentials. NaN and +inf make the sum NaN.
struct RowSum {
  float most, sum;

  __device__ void add(const RowSum& other) {
    const float both = fmaxf(most, other.most), shift = shift_of(both);
    sum = sum * exp2f(most - shift) + other.sum * exp2f(other.most - shift);
    most = both;
  }
};

}  // namespace vtkernels::cuda
