// Access to the small per-row outputs, whatever their strides and index width.
#pragma once

#include <vtkernels/cuda/launch.h>

#include <vtkernels/cuda/platform.cuh>

namespace vtkernels::cuda {

__device__ inline void store_index_at(const IndexView& out, int64_t offset, int64_t value) {
  if (out.wide) {
    static_cast<int64_t*>(out.data)[offset] = value;
  } else {
    static_cast<int32_t*>(out.data)[offset] = static_cast<int32_t>(value);
  }
}

__device__ inline void store_index(const IndexView& out, int64_t b, int64_t at, int64_t value) {
  store_index_at(out, b * out.batch_stride + at * out.stride, value);
}

}  // namespace vtkernels::cuda
