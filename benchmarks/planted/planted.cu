// A bug of each kind that compute-sanitizer has a tool for, by the tool's name: each tool has to find its own.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

__global__ void out_of_bounds(int* p) { p[threadIdx.x + 1] = 1; }

__global__ void shared_race(int* p) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = p[threadIdx.x];
  p[threadIdx.x] = values[(threadIdx.x + 32) % kThreads];  // the other warp's, without a barrier
}

__global__ void uninitialised_read(const int* p, int* q) { q[threadIdx.x] = p[threadIdx.x] + 1; }

__global__ void divergent_barrier(int* p) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  p[threadIdx.x] = 1;
}

}  // namespace

int main(int argc, char** argv) {
  const char* tool = argc > 1 ? argv[1] : "";
  const size_t bytes = kThreads * sizeof(int);
  int *p = nullptr, *q = nullptr;
  if (cudaMalloc(&p, bytes) != cudaSuccess || cudaMalloc(&q, bytes) != cudaSuccess) {
    std::printf("no CUDA device\n");
    return 3;
  }
  cudaMemset(q, 0, bytes);
  if (!std::strcmp(tool, "memcheck")) {
    out_of_bounds<<<1, kThreads>>>(q);
  } else if (!std::strcmp(tool, "racecheck")) {
    shared_race<<<1, kThreads>>>(q);
  } else if (!std::strcmp(tool, "initcheck")) {
    uninitialised_read<<<1, kThreads>>>(p, q);
  } else if (!std::strcmp(tool, "synccheck")) {
    divergent_barrier<<<1, kThreads>>>(q);
  } else {
    std::printf("planted: tool is '%s', allowed: memcheck, racecheck, initcheck, synccheck\n", tool);
    return 2;
  }
  cudaDeviceSynchronize();
  std::printf("planted: %s ran\n", tool);
  return 0;
}
