// Inner products of a tile of 64 rows with columns that stream by, by the means of the score tile: no matrix of them
// leaves the registers.
#pragma once

#include <vtkernels/cuda/score.cuh>

namespace vtkernels::cuda {

template <class T>
struct ProductTile : ScoreTile<T, 4> {
  using Base = ScoreTile<T, 4>;
  using Base::kRows, Base::kStages, Base::kThreadRows, Base::thread_row;
  using typename Base::Stage;
  static constexpr int kColumns = Base::kProtos;
  static constexpr int kThreadColumns = Base::kThreadProtos;
  static constexpr int kColumnWarps = kColumns / Base::kWarpProtos;
  static constexpr int kRowLanes = Base::kMma ? 4 : 8;  // neighbours that share their rows
  using Sums = float[kThreadRows][kThreadColumns];

  __device__ static int thread_column(int j) { return Base::thread_prototype(j); }
  __device__ static int column_warp() { return threadIdx.x / 32 * kColumnWarps / Base::kWarps; }

  // row_at(row) and column_at(column) are the offsets of vectors, in elements; negative: none, zeros. Calls
  // on_tile(first_column, sums) for each tile of columns in [first, end). The whole block takes part; the stages are
  // its own again after a barrier.
  template <class RowAt, class ColumnAt, class OnTile>
  __device__ static void stream(Stage (&stages)[kStages], int64_t width, const ScoreSource& rows, RowAt row_at,
                                const ScoreSource& columns, ColumnAt column_at, int64_t first, int64_t end,
                                OnTile on_tile) {
    constexpr int kChunk = Base::kChunk;
    const int64_t chunks = width > kChunk ? (width + kChunk - 1) / kChunk : 1;
    const int64_t steps = end > first ? (end - first + kColumns - 1) / kColumns * chunks : 0;
    typename Base::Position loading{first, 0}, current{first, 0};
    const auto load = [&](Stage& stage) {
      const int unit = threadIdx.x % Base::kUnits;
      const int64_t dim = loading.chunk * kChunk + unit * Base::kUnitElements, left = width - dim;
      const int elements = left <= 0 ? 0 : left < Base::kUnitElements ? static_cast<int>(left) : Base::kUnitElements;
      for (int i = threadIdx.x / Base::kUnits; i < kRows; i += Base::kRowsPerPass) {
        const int64_t offset = row_at(i);
        Base::load_unit(&stage.tokens[i][16 * unit], rows, offset, dim, offset < 0 ? 0 : elements);
      }
      for (int i = threadIdx.x / Base::kUnits; i < kColumns; i += Base::kRowsPerPass) {
        const int64_t offset = column_at(loading.first_prototype + i);
        Base::load_unit(&stage.prototypes[i][16 * unit], columns, offset, dim, offset < 0 ? 0 : elements);
      }
    };
    static_assert(kStages == 2);
    if (steps > 0) load(stages[0]);
    arch::copy_async_commit();
    loading.advance(chunks);
    float sums[kThreadRows][kThreadColumns] = {};
    for (int64_t step = 0; step < steps; ++step) {
      arch::copy_async_wait<0>();
      __syncthreads();
      if (step + 1 < steps) load(stages[(step + 1) % 2]);
      arch::copy_async_commit();
      loading.advance(chunks);
      Base::add_products(stages[step % 2], sums);
      if (current.chunk == chunks - 1) {
        on_tile(current.first_prototype, sums);
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
          for (int j = 0; j < kThreadColumns; ++j) sums[i][j] = 0.0f;
        }
      }
      current.advance(chunks);
    }
  }
};

}  // namespace vtkernels::cuda
