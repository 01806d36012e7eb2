// The last block to finish by a ticket, a barrier of the whole grid, and a barrier of a cluster.
#include <cooperative_groups.h>

#include "timing.cuh"

namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr int kMany = 201;

// `tickets`: every block draws one once its work is done, and the last one goes on. Without, the same empty grid.
__global__ void __launch_bounds__(kThreads) ticket_kernel(unsigned* counter, unsigned* result, bool tickets) {
  if (!tickets) return;
  __shared__ bool last;
  __threadfence();
  if (threadIdx.x == 0) last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (last) {
    __threadfence();
    if (threadIdx.x == 0) *result = blockIdx.x;
  }
}

__global__ void __launch_bounds__(kThreads) grid_kernel(int barriers) {
  for (int i = 0; i < barriers; ++i) cg::this_grid().sync();
}

__global__ void __launch_bounds__(kThreads) cluster_kernel(int barriers) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < barriers; ++i) cg::this_cluster().sync();
#endif
}

double grid_us(int blocks, int barriers) {
  return graph_us(
      [&](cudaStream_t s) {
        void* arguments[] = {&barriers};
        CHECK(cudaLaunchCooperativeKernel(grid_kernel, dim3(blocks), dim3(kThreads), arguments, 0, s));
      },
      1);
}

double cluster_us(int size, int blocks, int barriers) {
  return graph_us(
      [&](cudaStream_t stream) {
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(blocks / size * size);
        config.blockDim = dim3(kThreads);
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = 1;
        CHECK(cudaLaunchKernelEx(&config, cluster_kernel, barriers));
      },
      1);
}

}  // namespace

int main() {
  const cudaDeviceProp properties = device();
  const int blocks = properties.multiProcessorCount;
  unsigned* words = nullptr;
  CHECK(cudaMalloc(&words, 2 * sizeof(unsigned)));
  CHECK(cudaMemset(words, 0, 2 * sizeof(unsigned)));
  const auto grid = [&](bool tickets) {
    return graph_us([&](cudaStream_t s) { ticket_kernel<<<2 * blocks, kThreads, 0, s>>>(words, words + 1, tickets); },
                    50);
  };
  report("ticket", grid(true) - grid(false), "us");
  report("grid_barrier", (grid_us(blocks, kMany) - grid_us(blocks, 1)) / (kMany - 1), "us");
  if (properties.major < 9) return 0;
  for (const int size : {2, 8}) {
    const double us = (cluster_us(size, blocks, kMany) - cluster_us(size, blocks, 1)) / (kMany - 1);
    report(size == 2 ? "cluster_barrier_2" : "cluster_barrier_8", us, "us");
  }
}
