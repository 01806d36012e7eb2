// Second pass of the attention scores: what a tile of keys receives from all rows of the heads that it serves.
#pragma once

#include <vtkernels/key.h>

#include <type_traits>
#include <vtkernels/cuda/attention.cuh>
#include <vtkernels/cuda/block.cuh>

namespace vtkernels::cuda {

constexpr int32_t kNoKey = INT32_MIN;  // below the key of -inf: nothing
constexpr float kLog2E = 1.4426950408889634f;

// A running reduction, as a number or as the key of the largest one: NaN is above everything.
template <bool kMax>
struct Received {
  std::conditional_t<kMax, int32_t, float> value;

  __device__ Received() {
    if constexpr (kMax) {
      value = kNoKey;
    } else {
      value = 0.0f;
    }
  }
  __device__ void add(const Received& other) {
    if constexpr (kMax) {
      value = other.value > value ? other.value : value;
    } else {
      value += other.value;
    }
  }
  __device__ void add_number(float x) {
    if constexpr (kMax) {
      const int32_t key = max_key(x);
      value = key > value ? key : value;
    } else {
      value += x;
    }
  }
  __device__ float number() const {
    if constexpr (kMax) {
      return value == kNoKey ? 0.0f : max_key_value(value);
    } else {
      return value;
    }
  }
};

// A row of queries: value = exp2(exponent - shift) * scale on its keys, or logit * scale.
struct QueryColumn {
  float shift, scale;
  int last;  // key of the tile that it sees; -1: none, or it is left out
};

template <class Tile, bool kMax>
struct ReceivedShared {
  typename Tile::Stage stages[Tile::kStages];
  QueryColumn columns[Tile::kColumns];
  float weights[Tile::kWarps];
  std::conditional_t<kMax, int32_t, float> parts[Tile::kColumnWarps][Tile::kRows];
};

template <int kKeys>
__device__ QueryColumn query_column(const AttentionParams& p, int64_t b, unsigned head, unsigned row, unsigned end,
                                    int64_t first_key) {
  const AttentionProblem& a = p.problem;
  QueryColumn column{0.0f, 0.0f, -1};
  if (row >= end) return column;
  const unsigned within = row % p.rows;
  column.scale = a.weights == nullptr ? 1.0f : a.weights[b * a.weight_batch + within * a.weight_row];
  if (column.scale != 0) column.last = p.last_seen(row, first_key, kKeys);
  if (a.lse != nullptr) {
    column.shift = a.lse[b * a.lse_batch + (head * p.group + row / p.rows) * a.lse_head + within * a.lse_row] * kLog2E;
  } else if (p.sums != nullptr) {
    const int64_t at = p.statistic(b, head, row);
    column.shift = shift_of(p.maxima[at]);
    column.scale /= p.sums[at];  // a row that sees only -inf has a sum of 0: it becomes NaN
  }
  return column;
}

// By the whole block.
template <int kThreads>
__device__ float sum_of_weights(const AttentionProblem& a, int64_t b, float* warp_totals) {
  if (a.weights == nullptr) return static_cast<float>(a.rows);
  float sum = 0.0f;
  for (int64_t row = threadIdx.x; row < a.rows; row += kThreads)
    sum += a.weights[b * a.weight_batch + row * a.weight_row];
  return block_scan<kThreads>(sum, warp_totals).total;
}

__device__ inline float finished(const AttentionProblem& a, float score) {
  return (a.reduce_heads == Reduce::kMean ? score / static_cast<float>(a.heads) : score) + 0.0f;  // -0 becomes +0
}

// A tile of keys of one head.
template <class Tile, bool kMax>
__global__ void __launch_bounds__(Tile::kThreads, 2) received_kernel(const AttentionParams p, unsigned tiles) {
  auto& s = shared_memory<ReceivedShared<Tile, kMax>>();
  const AttentionProblem& a = p.problem;
  const int64_t first = static_cast<int64_t>(blockIdx.x % tiles) * Tile::kRows, first_key = a.key_start + first;
  const unsigned head = blockIdx.x / tiles % p.key_heads;
  const int64_t b = blockIdx.x / tiles / p.key_heads;
  const int64_t key_offset = b * a.key.batch_stride + head * a.key.head_stride;
  const bool is_key = threadIdx.x < Tile::kRows && first + threadIdx.x < a.count;
  const float weights = a.reduce_rows == Reduce::kMean ? sum_of_weights<Tile::kThreads>(a, b, s.weights) : 1.0f;
  unsigned first_row = 0;  // below it no row sees these keys
  if (a.causal && p.heads_together == 1 && first_key > a.offset) {
    first_row = static_cast<unsigned>(clamp(first_key - a.offset, 0, p.rows)) / Tile::kColumns * Tile::kColumns;
  }
  Received<false> total;
  Received<true> largest;
  for (unsigned start = 0; start < p.group; start += p.heads_together) {
    const unsigned begin = start * p.rows, end = begin + p.heads_together * p.rows;
    Received<kMax> mine[Tile::kThreadRows];
    Tile::stream(
        s.stages, a.width, p.key,
        [&](int row) { return first + row < a.count ? key_offset + (first_key + row) * a.key.token_stride : -1; },
        p.query, [&](int64_t row) { return row < end ? p.query_at(b, head, static_cast<unsigned>(row)) : -1; },
        begin + first_row, end,
        [&](int64_t row, const typename Tile::Sums& products) {
          if (threadIdx.x < Tile::kColumns) {
            s.columns[threadIdx.x] =
                query_column<Tile::kRows>(p, b, head, static_cast<unsigned>(row) + threadIdx.x, end, first_key);
          }
          __syncthreads();
#pragma unroll
          for (int j = 0; j < Tile::kThreadColumns; ++j) {
            const QueryColumn column = s.columns[Tile::thread_column(j)];
#pragma unroll
            for (int i = 0; i < Tile::kThreadRows; ++i) {
              const float exponent = __fmul_rn(products[i][j], p.factor);  // as in the first pass
              const float value = (a.logits ? exponent : exp2f(exponent - column.shift)) * column.scale;
              if (Tile::thread_row(i) <= column.last) mine[i].add_number(value);
            }
          }
        });
#pragma unroll
    for (int i = 0; i < Tile::kThreadRows; ++i) {
#pragma unroll
      for (int distance = Tile::kRowLanes / 2; distance > 0; distance /= 2) {
        Received<kMax> other;
        other.value = __shfl_xor_sync(kFullWarp, mine[i].value, distance);
        mine[i].add(other);
      }
      if (threadIdx.x % Tile::kRowLanes == 0) s.parts[Tile::column_warp()][Tile::thread_row(i)] = mine[i].value;
    }
    __syncthreads();
    if (is_key) {
      Received<kMax> all;
      for (int w = 0; w < Tile::kColumnWarps; ++w) {
        Received<kMax> part;
        part.value = s.parts[w][threadIdx.x];
        all.add(part);
      }
      float score = all.number();
      if (a.reduce_rows == Reduce::kMean) score = weights == 0 ? 0.0f : score / weights;
      if (a.reduce_heads == Reduce::kNone) {
        a.out[b * a.out_batch + (head * p.group + start) * a.out_head + first + threadIdx.x] = score + 0.0f;
      }
      total.add_number(score);
      largest.add_number(score);
    }
    __syncthreads();
  }
  if (!is_key || a.reduce_heads == Reduce::kNone) return;
  const float score = a.reduce_heads == Reduce::kMax ? largest.number() : total.number();
  if (p.partial == nullptr) {
    a.out[b * a.out_batch + first + threadIdx.x] = finished(a, score);
  } else {
    p.partial[(head * a.batch + b) * a.count + first + threadIdx.x] = score;
  }
}

// Over the key heads, in their order.
__global__ void __launch_bounds__(kCombineThreads) combine_heads_kernel(const AttentionParams p) {
  const AttentionProblem& a = p.problem;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x, count = a.batch * a.count;
  if (at >= count) return;
  Received<false> total;
  Received<true> largest;
  for (unsigned head = 0; head < p.key_heads; ++head) {
    const float score = p.partial[head * count + at];
    total.add_number(score);
    largest.add_number(score);
  }
  const float score = a.reduce_heads == Reduce::kMax ? largest.number() : total.number();
  a.out[at / a.count * a.out_batch + at % a.count] = finished(a, score);
}

}  // namespace vtkernels::cuda
