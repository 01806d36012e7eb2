// Metadata of packed sequences, made safe before anything is scored.
#pragma once

#include <vtkernels/cuda/launch.h>

#include <cmath>
#include <vtkernels/cuda/block.cuh>
#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/workspace.cuh>

namespace vtkernels::cuda {

// Clamps the metadata of packed sequences, flags what was out of range, and lays out rows, tiles and outputs.
// Runs as one block.
struct PrepareParams {
  int64_t batch, tokens, total_out, tile_rows;
  IntView cu_seqlens, k, span_starts, span_lens;
  ScoreView scores;
  IndexView indices;
  int* out_cu_seqlens;
  int64_t out_cu_seqlens_stride;
  Workspace workspace;
  int* status;
};

constexpr int kPrepareThreads = 256;

__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const PrepareParams p) {
  int* warp_totals = &shared_memory<int>();
  const int tokens = static_cast<int>(p.tokens);
  int flags = 0;
  const auto in_range = [&](int value, int low, int high, int flag) {
    const int clamped = static_cast<int>(clamp(value, low, high));
    if (clamped != value) flags |= flag;
    return clamped;
  };
  const int first_begin = in_range(p.cu_seqlens.data[0], 0, tokens, kBadSeqlens);
  if (first_begin != 0) flags |= kBadSeqlens;
  int end = first_begin, out_end = 0, tiles = 0;  // of all sequences before `base`
  for (int64_t base = 0; base < p.batch; base += kPrepareThreads) {
    const int64_t b = base + threadIdx.x;
    const bool is_row = b < p.batch;
    WorkspaceRow row{};
    // Every bound is at least the one before it.
    const int asked_end =
        is_row ? in_range(p.cu_seqlens.data[(b + 1) * p.cu_seqlens.stride], 0, tokens, kBadSeqlens) : 0;
    const Scanned ends = block_scan<kPrepareThreads, Max>(asked_end, warp_totals);
    row.begin = ends.before > end ? ends.before : end;
    row.end = asked_end > row.begin ? asked_end : row.begin;
    int out_length = 0, row_tiles = 0;
    if (is_row) {
      if (row.end != asked_end) flags |= kBadSeqlens;
      const int length = row.end - row.begin;
      const bool has_span = p.span_starts.data != nullptr;
      const int start = in_range(has_span ? p.span_starts.data[b * p.span_starts.stride] : 0, 0, length, kBadSpan);
      row.first = row.begin + start;
      row.length = in_range(has_span ? p.span_lens.data[b * p.span_lens.stride] : length, 0, length - start, kBadSpan);
      row.kept = in_range(p.k.data[b * p.k.stride], 0, row.length, kBadSpan);
      out_length = length - row.length + row.kept;
      row_tiles = row.length == 0 ? 1 : static_cast<int>((row.length + p.tile_rows - 1) / p.tile_rows);
    }
    __syncthreads();
    const Scanned outs = block_scan<kPrepareThreads>(out_length, warp_totals);
    __syncthreads();
    const Scanned all_tiles = block_scan<kPrepareThreads>(row_tiles, warp_totals);
    __syncthreads();
    if (is_row) {
      row.out_begin = out_end + outs.before;
      row.first_tile = tiles + all_tiles.before;
      p.workspace.rows[b] = row;
      const int64_t row_out_end = row.out_begin + out_length;
      p.out_cu_seqlens[(b + 1) * p.out_cu_seqlens_stride] = static_cast<int>(clamp(row_out_end, 0, p.total_out));
    }
    end = ends.total > end ? ends.total : end;
    out_end += outs.total;
    tiles += all_tiles.total;
  }
  if (out_end > p.total_out) flags |= kTruncated;
  if (flags != 0 && p.status != nullptr) atomicOr(p.status, flags);
  if (threadIdx.x == 0) {
    p.out_cu_seqlens[0] = 0;
    p.workspace.header->tiles = tiles;
  }
  for (int64_t i = out_end + static_cast<int64_t>(threadIdx.x); i < p.total_out; i += kPrepareThreads) {
    store_index(p.indices, 0, i, -1);
  }
  for (int64_t i = threadIdx.x; i < first_begin; i += kPrepareThreads) p.scores.data[i * p.scores.stride] = NAN;
  for (int64_t i = end + static_cast<int64_t>(threadIdx.x); i < p.tokens; i += kPrepareThreads) {
    p.scores.data[i * p.scores.stride] = NAN;
  }
}

}  // namespace vtkernels::cuda
