// Collectives of a thread block.
#pragma once

#include <type_traits>
#include <vtkernels/cuda/platform.cuh>

namespace vtkernels::cuda {

struct Sum {
  static constexpr int kIdentity = 0;
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  static constexpr int kIdentity = INT32_MIN;
  __device__ int operator()(int a, int b) const { return a > b ? a : b; }
};

template <class T>
struct ScannedOf {
  T before;  // of all lower threads
  T total;   // of all threads
};
using Scanned = ScannedOf<int>;

// Exclusive scan in thread order. `warp_totals` has one word per warp; sync before it is used again.
template <int kThreads, class Op = Sum, class T>
__device__ ScannedOf<T> block_scan(std::common_type_t<T> value, T* warp_totals, Op op = {}) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T inclusive = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const T lower = __shfl_up_sync(kFullWarp, inclusive, distance);
    if (lane >= distance) inclusive = op(inclusive, lower);
  }
  if (lane == 31) warp_totals[warp] = inclusive;
  const T lower = __shfl_up_sync(kFullWarp, inclusive, 1);
  ScannedOf<T> result{lane == 0 ? Op::kIdentity : lower, Op::kIdentity};
  __syncthreads();
  T before_warp = Op::kIdentity;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) before_warp = result.total;
    result.total = op(result.total, warp_totals[w]);
  }
  result.before = op(before_warp, result.before);
  return result;
}

}  // namespace vtkernels::cuda
