// Tokens against those of the frame before. A group of threads walks the frames of one place with the last token in
// registers, so that each is read once; rows that are too wide for that are read twice.
#pragma once

#include <vtkernels/cuda/launch.h>

#include <cmath>
#include <vtkernels/cuda/arch.cuh>
#include <vtkernels/cuda/score.cuh>

namespace vtkernels::cuda {

constexpr int kTemporalThreads = 256;
constexpr int kTemporalWarps = kTemporalThreads / 32;
constexpr int kHeldUnits = 4;  // of 16 bytes per thread

struct TemporalParams {
  TemporalProblem problem;
  bool vectors;  // rows are contiguous and start on 16-byte boundaries
  int64_t tiles, frames_per_block, chunks;
};

struct TemporalShared {
  float sums[2][2][kTemporalWarps];  // of every other frame
};

// What two tokens of a place add up to, and the square of the later one.
struct TemporalSums {
  float score = 0.0f, squares = 0.0f;

  template <class T>
  __device__ void add(const uint4& now, const uint4& before, TemporalProblem::Metric metric) {
    constexpr int kElements = 16 / sizeof(T);
    float x[kElements], y[kElements];
    arch::unpack<T>(now, x);
    arch::unpack<T>(before, y);
    if (metric == TemporalProblem::Metric::kCosine) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        score = fmaf(x[e], y[e], score);
        squares = fmaf(x[e], x[e], squares);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const float difference = x[e] - y[e];
        score =
            metric == TemporalProblem::Metric::kL1 ? score + fabsf(difference) : fmaf(difference, difference, score);
      }
    }
  }

  // The sums of a group of threads, for its first thread. `parity` alternates from call to call.
  template <int kGroup>
  __device__ void reduce(TemporalShared& s, int parity) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      score += __shfl_xor_sync(kFullWarp, score, distance);
      squares += __shfl_xor_sync(kFullWarp, squares, distance);
    }
    if constexpr (kGroup > 32) {
      static_assert(kGroup == kTemporalThreads);
      const int warp = threadIdx.x / 32;
      if (threadIdx.x % 32 == 0) {
        s.sums[parity][0][warp] = score;
        s.sums[parity][1][warp] = squares;
      }
      __syncthreads();
      if (threadIdx.x != 0) return;
#pragma unroll
      for (int w = 1; w < kTemporalWarps; ++w) {
        score += s.sums[parity][0][w];
        squares += s.sums[parity][1][w];
      }
    }
  }
};

// The 16 bytes of a row with this number, zeros past its end.
template <class T>
__device__ uint4 load_row_unit(const TemporalParams& p, const T* row, int unit) {
  constexpr int kElements = 16 / sizeof(T);
  const int64_t first = int64_t{unit} * kElements;
  const int left = static_cast<int>(p.problem.width - first);
  if (p.vectors && left >= kElements) return arch::load<uint4>(row + first);
  T values[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) values[e] = e < left ? row[(first + e) * p.problem.dim_stride] : T{};
  uint4 packed;
  static_assert(sizeof values == sizeof packed);
  memcpy(&packed, values, sizeof packed);
  return packed;
}

// kGroup threads, a warp or the whole block, share a place.
template <class T, int kGroup>
__global__ void __launch_bounds__(kTemporalThreads, 2) temporal_kernel(const __grid_constant__ TemporalParams params) {
  const TemporalProblem& p = params.problem;
  using Metric = TemporalProblem::Metric;
  constexpr int kElements = 16 / sizeof(T);
  auto& s = shared_memory<TemporalShared>();
  const int64_t b = blockIdx.x / (params.tiles * params.chunks);
  const int64_t begin = blockIdx.x / params.tiles % params.chunks * params.frames_per_block;
  const int64_t place = blockIdx.x % params.tiles * (kTemporalThreads / kGroup) + threadIdx.x / kGroup;
  if (place >= p.tokens) return;  // the whole group, of one warp then
  const int lane = threadIdx.x % kGroup;
  const T* rows = static_cast<const T*>(p.data) + b * p.batch_stride + place * p.token_stride;
  float* out = p.out + b * p.out_batch + place;
  const int units = static_cast<int>((p.width + kElements - 1) / kElements);
  const bool is_held = units <= kGroup * kHeldUnits;
  const int64_t start = begin > 0 ? begin : 1;
  const int64_t end = begin + params.frames_per_block < p.frames ? begin + params.frames_per_block : p.frames;
  if (begin == 0 && lane == 0) *out = p.first;
  if (start >= end) return;

  uint4 held[kHeldUnits];
  TemporalSums sums;
  const auto each_unit = [&](auto visit) {
    if (is_held) {
#pragma unroll
      for (int i = 0; i < kHeldUnits; ++i) {
        const int unit = lane + i * kGroup;
        if (unit < units) visit(unit, held[i]);
      }
    } else {
      uint4 before;
      for (int unit = lane; unit < units; unit += kGroup) visit(unit, before);
    }
  };
  const T* row = rows + (start - 1) * p.frame_stride;
  each_unit([&](int unit, uint4& before) {
    before = load_row_unit(params, row, unit);
    sums.add<T>(before, before, p.metric);
  });
  int parity = 0;
  sums.reduce<kGroup>(s, parity);
  float before_norm = reciprocal_norm(sums.squares);
  for (int64_t frame = start; frame < end; ++frame) {
    row += p.frame_stride;
    sums = {};
    each_unit([&](int unit, uint4& before) {
      if (!is_held) before = load_row_unit(params, row - p.frame_stride, unit);
      const uint4 now = load_row_unit(params, row, unit);
      sums.add<T>(now, before, p.metric);
      before = now;
    });
    parity ^= 1;
    sums.reduce<kGroup>(s, parity);
    if (lane != 0) continue;
    float score = sums.score;
    if (p.metric == Metric::kCosine) {
      const float norm = reciprocal_norm(sums.squares);
      score = score * before_norm * norm;
      before_norm = norm;
    } else if (p.metric == Metric::kL2) {
      score = sqrtf(score);
    }
    out[frame * p.out_frame] = score + 0.0f;  // -0 becomes +0
  }
}

}  // namespace vtkernels::cuda
