// CUDA as the kernels see it: nvcc's, or the CPU shim that the tests put on the include path.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define VTK_ARCH __CUDA_ARCH__
#else
#include <cuda_shim.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

namespace vtkernels::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

// The block's dynamic shared memory. Kernels have no static shared memory.
template <class T>
__device__ T& shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char vtkernels_shared[];
  return *reinterpret_cast<T*>(vtkernels_shared);
#else
  return *static_cast<T*>(shim::shared_memory());
#endif
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <class... Params>
void launch(void (*kernel)(Params...), int64_t blocks, int threads, size_t shared_bytes,
            [[maybe_unused]] cudaStream_t stream, Params... params) {
  if (blocks > INT32_MAX) throw std::runtime_error("the problem needs more than 2^31 - 1 thread blocks");
#ifdef __CUDACC__
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params...);
  check(cudaGetLastError());
#else
  shim::launch(static_cast<unsigned>(blocks), threads, shared_bytes, [&] { kernel(params...); });
#endif
}

}  // namespace vtkernels::cuda
