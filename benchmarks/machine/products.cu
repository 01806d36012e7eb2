// The rate of mma.sync on bfloat16 with all operands in registers, which is the ceiling of tiles below 64 rows.
#include "timing.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kSums = 8;  // independent products of a warp
constexpr int kTrips = 2000;

__global__ void __launch_bounds__(kThreads) product_kernel(unsigned seed, float* out) {
#if __CUDA_ARCH__ >= 800
  const unsigned a = seed * (threadIdx.x + 1), b = seed + threadIdx.x;
  float sums[kSums][4] = {};
  for (int trip = 0; trip < kTrips; ++trip) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
          : "r"(a), "r"(a ^ 1), "r"(b), "r"(b ^ 1), "r"(a + i), "r"(b + i));
    }
  }
  float total = 0;
  for (int i = 0; i < kSums; ++i) total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  out[blockIdx.x * kThreads + threadIdx.x] = total;
#endif
}

}  // namespace

int main() {
  const cudaDeviceProp properties = device();
  const int blocks = 2 * properties.multiProcessorCount;
  float* out = nullptr;
  CHECK(cudaMalloc(&out, sizeof(float) * blocks * kThreads));
  const double us = graph_us([&](cudaStream_t s) { product_kernel<<<blocks, kThreads, 0, s>>>(0x3f81u, out); }, 3);
  const double flops = 2.0 * 16 * 8 * 16 * kSums * kTrips * (kThreads / 32) * blocks;
  report("mma_sync_bf16", flops / us * 1e6, "FLOP/s");
}
