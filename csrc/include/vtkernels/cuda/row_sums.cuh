// First pass of the attention scores: the softmax's denominator of each row.
#pragma once

#include <vtkernels/cuda/attention.cuh>

namespace vtkernels::cuda {

template <class Tile>
struct RowSumsShared {
  typename Tile::Stage stages[Tile::kStages];
  int64_t row_offset[Tile::kRows];
  RowSum parts[Tile::kColumnWarps][Tile::kRows];
};

// A tile of rows over one split of the keys.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) row_sums_kernel(const AttentionParams p, unsigned tiles) {
  auto& s = shared_memory<RowSumsShared<Tile>>();
  const unsigned first_row = blockIdx.x % tiles * Tile::kRows, packed = p.group * p.rows;
  const unsigned split = blockIdx.x / tiles % p.splits, item = blockIdx.x / tiles / p.splits;
  const unsigned head = item % p.key_heads;
  const int64_t b = item / p.key_heads;
  const int64_t begin = static_cast<int64_t>(split) * kSplitKeys;
  const int64_t left = p.problem.keys - begin;
  const int keys = left < kSplitKeys ? static_cast<int>(left) : kSplitKeys;
  const HeadsView& k = p.problem.key;
  const int64_t key_offset = b * k.batch_stride + head * k.head_stride + begin * k.token_stride;

  const unsigned last_row = first_row + Tile::kRows < packed ? first_row + Tile::kRows - 1 : packed - 1;
  const bool one_head = first_row / p.rows == last_row / p.rows;
  const int seen_by_any = p.last_seen(one_head ? last_row : p.rows - 1, begin, keys);
  if (threadIdx.x < Tile::kRows) {
    const unsigned row = first_row + threadIdx.x;
    s.row_offset[threadIdx.x] = row < packed ? p.query_at(b, head, row) : -1;
  }
  __syncthreads();

  int last[Tile::kThreadRows];
  RowSum mine[Tile::kThreadRows];
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
    const unsigned row = first_row + Tile::thread_row(i);
    last[i] = row < packed ? p.last_seen(row, begin, keys) : -1;
    mine[i] = {-INFINITY, 0.0f};
  }
  Tile::stream(
      s.stages, p.problem.width, p.query, [&](int row) { return s.row_offset[row]; }, p.key,
      [&](int64_t key) { return key < keys ? key_offset + key * k.token_stride : -1; }, 0, seen_by_any + 1,
      [&](int64_t first, const typename Tile::Sums& products) {
#pragma unroll
        for (int i = 0; i < Tile::kThreadRows; ++i) {
          float exponents[Tile::kThreadColumns], most = mine[i].most;
#pragma unroll
          for (int j = 0; j < Tile::kThreadColumns; ++j) {
            // Fused, it would differ from the maximum by its rounding, which is large for large logits.
            const float exponent = __fmul_rn(products[i][j], p.factor);
            exponents[j] = first + Tile::thread_column(j) <= last[i] ? exponent : -INFINITY;
            most = fmaxf(most, exponents[j]);
          }
          const float shift = shift_of(most);
          float sum = mine[i].sum * exp2f(mine[i].most - shift);
#pragma unroll
          for (int j = 0; j < Tile::kThreadColumns; ++j) sum += exp2f(exponents[j] - shift);
          mine[i] = {most, sum};
        }
      });

#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
#pragma unroll
    for (int distance = Tile::kRowLanes / 2; distance > 0; distance /= 2) {
      mine[i].add(
          {__shfl_xor_sync(kFullWarp, mine[i].most, distance), __shfl_xor_sync(kFullWarp, mine[i].sum, distance)});
    }
    if (threadIdx.x % Tile::kRowLanes == 0) s.parts[Tile::column_warp()][Tile::thread_row(i)] = mine[i];
  }
  __syncthreads();
  const unsigned row = first_row + threadIdx.x;
  if (threadIdx.x >= Tile::kRows || row >= packed) return;
  RowSum all = s.parts[0][threadIdx.x];
  for (int w = 1; w < Tile::kColumnWarps; ++w) all.add(s.parts[w][threadIdx.x]);
  const int64_t at = split * p.statistic(p.problem.batch, 0, 0) + p.statistic(b, head, row);
  p.maxima[at] = all.most;
  p.sums[at] = all.sum;
}

// Over all splits, in their order, to the place of the first.
__global__ void __launch_bounds__(kCombineThreads) combine_rows_kernel(const AttentionParams p, int64_t count) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x;
  if (row >= count) return;
  RowSum all{p.maxima[row], p.sums[row]};
  for (unsigned split = 1; split < p.splits; ++split) {
    all.add({p.maxima[split * count + row], p.sums[split * count + row]});
  }
  p.maxima[row] = all.most;
  p.sums[row] = all.sum;
}

}  // namespace vtkernels::cuda
