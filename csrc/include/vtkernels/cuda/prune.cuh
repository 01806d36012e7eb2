// Scores a row's span tile by tile; the thread block that finishes a row's last tile selects and writes its kept
// indices.
//
// Workspace, int32 words: a header of 64, then 8 for each row. All are zero between calls.
#pragma once

#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/score.cuh>
#include <vtkernels/cuda/select.cuh>
#include <vtkernels/cuda/workspace.cuh>

namespace vtkernels::cuda {

struct PruneParams {
  ScoreParams score;
  int64_t batch;
  bool keep_similar;
  ScoreView scores;
  IndexView indices;
  Workspace workspace;
  int* status;
  // Dense rows, all of one length:
  int64_t tokens, span_start, span_length, kept, tiles_per_row;
  const int* span_starts;
  int64_t span_starts_stride;
  // Packed sequences:
  bool packed;
  int64_t total_out;
};

// Positions count from the row's first token, or from the first packed token.
struct PruneRow {
  int64_t batch;  // row of `tokens`, `scores` and `indices`; 0 where packed
  int64_t begin, end;
  int64_t first, length, kept;
  int64_t first_score;  // of the span
  int64_t out_begin, out_end;
  int64_t tiles;
  WorkspaceRow* workspace;
};

template <class Tile>
using PruneTopK = TopK<Tile::kThreads, 16>;

template <class Tile>
union PruneShared {
  typename Tile::Shared tile;
  typename PruneTopK<Tile>::Shared select;
};

template <class Tile>
__device__ int64_t tiles_of(int64_t length) {  // at least one, whose block writes the row's indices
  return length <= Tile::kRows ? 1 : (length + Tile::kRows - 1) / Tile::kRows;
}

// The row that a block works on, and the tile in it; false where there is no tile left.
template <class Tile>
__device__ bool find_row(const PruneParams& p, PruneRow& row, int64_t& tile) {
  if (!p.packed) {
    const int64_t b = blockIdx.x / p.tiles_per_row;
    tile = blockIdx.x % p.tiles_per_row;
    int64_t first = p.span_start;
    if (p.span_starts != nullptr) {
      const int64_t asked = p.span_starts[b * p.span_starts_stride];
      first = clamp(asked, 0, p.tokens - p.span_length);
      if (first != asked && tile == 0 && threadIdx.x == 0 && p.status != nullptr) atomicOr(p.status, kBadSpan);
    }
    row = {b,
           0,
           p.tokens,
           first,
           p.span_length,
           p.kept,
           0,
           0,
           p.tokens - p.span_length + p.kept,
           p.tiles_per_row,
           p.workspace.rows + b};
    return true;
  }
  if (blockIdx.x >= static_cast<unsigned>(p.workspace.header->tiles)) return false;
  int64_t low = 0, high = p.batch - 1;  // the last row whose first tile is not after this block
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (static_cast<unsigned>(p.workspace.rows[middle].first_tile) <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  WorkspaceRow& w = p.workspace.rows[low];
  tile = blockIdx.x - w.first_tile;
  row = {0, w.begin, w.end, w.first, w.length, w.kept, w.first, w.out_begin, p.total_out, tiles_of<Tile>(w.length), &w};
  return true;
}

template <class Tile>
__device__ void score_tile(typename Tile::Shared& s, const PruneParams& p, const PruneRow& row, int64_t tile) {
  const int64_t at = tile * Tile::kRows + threadIdx.x;
  const bool is_token = threadIdx.x < Tile::kRows && at < row.length;
  if (threadIdx.x < Tile::kRows) {
    s.row_offset[threadIdx.x] =
        is_token ? row.batch * p.score.token_batch_stride + (row.first + at) * p.score.token_stride : -1;
  }
  Tile::run(s, p.score);
  if (is_token) {
    p.scores.data[row.batch * p.scores.batch_stride + (row.first_score + at) * p.scores.stride] = s.score(threadIdx.x);
  }
}

// Whether this block is the last of `count` to come here; what the others wrote before is then visible to it.
__device__ inline bool is_last_block(int* counter, int64_t count, int* shared_word) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(counter, 1) == count - 1;
    if (last) *counter = 0;
    *shared_word = last;
  }
  __syncthreads();
  const bool last = *shared_word;
  __threadfence();
  __syncthreads();  // shared_word may be used again
  return last;
}

// Text before the span, the selected part of the span, text after it.
template <class Select>
__device__ void write_row(typename Select::Shared& s, const PruneParams& p, const PruneRow& row) {
  const auto keep = [&](int64_t at, int64_t position) {
    if (row.out_begin + at < row.out_end) store_index(p.indices, row.batch, row.out_begin + at, position);
  };
  const int64_t before = row.first - row.begin;
  for (int64_t i = threadIdx.x; i < before; i += blockDim.x) keep(i, row.begin + i);
  const int64_t after = row.end - row.first - row.length;
  for (int64_t i = threadIdx.x; i < after; i += blockDim.x) keep(before + row.kept + i, row.first + row.length + i);
  if (p.packed) {  // text has no score
    for (int64_t i = threadIdx.x; i < before + after; i += blockDim.x) {
      p.scores.data[(i < before ? row.begin + i : row.first + row.length + i - before) * p.scores.stride] = NAN;
    }
  }
  const float* scores = p.scores.data + row.batch * p.scores.batch_stride + row.first_score * p.scores.stride;
  Select::run(
      s, static_cast<unsigned>(row.length), static_cast<unsigned>(row.kept),
      [&](unsigned i) {
        return selection_key(arch::load_shared_by_blocks(scores + i * p.scores.stride), p.keep_similar);
      },
      [&](unsigned rank, unsigned i) { keep(before + rank, row.first + i); });
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) prune_kernel(const PruneParams p) {
  auto& s = shared_memory<PruneShared<Tile>>();
  PruneRow row;
  int64_t tile;
  if (find_row<Tile>(p, row, tile)) {
    if (row.length > 0) score_tile<Tile>(s.tile, p, row, tile);
    __syncthreads();
    if (is_last_block(&row.workspace->tiles_done, row.tiles, &s.select.digit)) {
      write_row<PruneTopK<Tile>>(s.select, p, row);
    }
  }
  if (!p.packed) return;
  __syncthreads();
  if (is_last_block(&p.workspace.header->blocks_done, gridDim.x, &s.select.digit)) {
    if (threadIdx.x == 0) p.workspace.header->tiles = 0;
    for (int64_t b = threadIdx.x; b < p.batch; b += blockDim.x) p.workspace.rows[b] = WorkspaceRow{};
  }
}

}  // namespace vtkernels::cuda
