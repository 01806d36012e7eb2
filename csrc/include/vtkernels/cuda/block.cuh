// Collectives of a thread block.
#pragma once

#include <vtkernels/cuda/platform.cuh>

namespace vtkernels::cuda {

struct Sum {
  static constexpr int kIdentity = 0;
  __device__ int operator()(int a, int b) const { return a + b; }
};

struct Max {
  static constexpr int kIdentity = INT32_MIN;
  __device__ int operator()(int a, int b) const { return a > b ? a : b; }
};

struct Scanned {
  int before;  // of all lower threads
  int total;   // of all threads
};

// Exclusive scan in thread order. `warp_totals` has one word per warp; sync before it is used again.
template <int kThreads, class Op = Sum>
__device__ Scanned block_scan(int value, int* warp_totals, Op op = {}) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int inclusive = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int lower = __shfl_up_sync(kFullWarp, inclusive, distance);
    if (lane >= distance) inclusive = op(inclusive, lower);
  }
  if (lane == 31) warp_totals[warp] = inclusive;
  const int lower = __shfl_up_sync(kFullWarp, inclusive, 1);
  Scanned result{lane == 0 ? Op::kIdentity : lower, Op::kIdentity};
  __syncthreads();
  int before_warp = Op::kIdentity;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) before_warp = result.total;
    result.total = op(result.total, warp_totals[w]);
  }
  result.before = op(before_warp, result.before);
  return result;
}

}  // namespace vtkernels::cuda
