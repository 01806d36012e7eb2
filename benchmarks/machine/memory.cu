// Copy speed of device memory, of a set that stays in the L2, and the time of a dependent read of a row from the L2.
#include "timing.cuh"

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) copy_kernel(const uint4* from, uint4* to, size_t count) {
  const size_t step = size_t{gridDim.x} * kThreads;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) to[i] = from[i];
}

// One block walks rows of `units` times 16 bytes, each of which says where the next one is: load, reduce, broadcast.
__global__ void __launch_bounds__(kThreads) walk_kernel(const uint4* rows, int units, int steps, unsigned* last) {
  unsigned row = 0;
  for (int step = 0; step < steps; ++step) {
    unsigned found = 0;
    for (int i = threadIdx.x; i < units; i += kThreads) {
      const uint4 v = __ldcg(&rows[size_t{row} * units + i]);
      found |= v.x | v.y | v.z | v.w;
    }
    __shared__ unsigned next;
    if (threadIdx.x == 0) next = 0;
    __syncthreads();
    found = __reduce_or_sync(0xffffffffu, found);
    if (threadIdx.x % 32 == 0) atomicOr(&next, found);
    __syncthreads();
    row = next;
    __syncthreads();
  }
  if (threadIdx.x == 0) *last = row;
}

// Bytes read plus bytes written, per second.
double copy_rate(size_t bytes, int blocks) {
  uint4 *from = nullptr, *to = nullptr;
  CHECK(cudaMalloc(&from, bytes));
  CHECK(cudaMalloc(&to, bytes));
  CHECK(cudaMemset(from, 0x5a, bytes));
  CHECK(cudaDeviceSynchronize());
  const double us =
      graph_us([&](cudaStream_t s) { copy_kernel<<<blocks, kThreads, 0, s>>>(from, to, bytes / sizeof(uint4)); }, 5);
  CHECK(cudaFree(from));
  CHECK(cudaFree(to));
  return 2.0 * bytes / us * 1e6;
}

double row_read_us(int bytes) {
  constexpr int kRows = 1024;
  const int units = bytes / 16;
  std::vector<uint4> host(size_t{kRows} * units, uint4{0, 0, 0, 0});
  for (int row = 0; row < kRows; ++row) host[size_t(row) * units].x = (row + 389) % kRows;  // a walk through all rows
  uint4* rows = nullptr;
  unsigned* last = nullptr;
  CHECK(cudaMalloc(&rows, host.size() * sizeof(uint4)));
  CHECK(cudaMalloc(&last, sizeof(unsigned)));
  CHECK(cudaMemcpy(rows, host.data(), host.size() * sizeof(uint4), cudaMemcpyHostToDevice));
  const auto walk = [&](int steps) {
    return graph_us([&](cudaStream_t s) { walk_kernel<<<1, kThreads, 0, s>>>(rows, units, steps, last); }, 1);
  };
  const double us = (walk(3 * kRows) - walk(kRows)) / (2 * kRows);
  CHECK(cudaFree(rows));
  CHECK(cudaFree(last));
  return us;
}

}  // namespace

int main() {
  const cudaDeviceProp properties = device();
  const int blocks = 8 * properties.multiProcessorCount;
  report("copy", copy_rate(size_t{1} << 31, blocks), "B/s");
  report("copy_in_l2", copy_rate(properties.l2CacheSize / 8, blocks), "B/s");
  report("l2_row_read_2KB", row_read_us(2048), "us");
  report("l2_row_read_8KB", row_read_us(8192), "us");
}
