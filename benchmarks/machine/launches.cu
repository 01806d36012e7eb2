// What a launch costs: an empty kernel in a graph and from the host, and the gap that programmatic launches close.
#include <chrono>

#include "timing.cuh"

namespace {

__global__ void null_kernel() {}

__global__ void dependent_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

double host_us() {
  constexpr int kLaunches = 2000;
  for (int i = 0; i < 100; ++i) null_kernel<<<1, 32>>>();
  CHECK(cudaDeviceSynchronize());
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kLaunches; ++i) null_kernel<<<1, 32>>>();
  CHECK(cudaDeviceSynchronize());
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / kLaunches;
}

double chain_us(int blocks, bool programmatic) {
  return graph_us(
      [&](cudaStream_t stream) {
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(blocks);
        config.blockDim = dim3(256);
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = programmatic ? 1 : 0;
        CHECK(cudaLaunchKernelEx(&config, dependent_kernel));
      },
      100);
}

}  // namespace

int main() {
  const cudaDeviceProp properties = device();
  const int blocks = properties.multiProcessorCount;
  report("null_kernel_graph", graph_us([](cudaStream_t s) { null_kernel<<<1, 32, 0, s>>>(); }, 100), "us");
  report("null_kernel_alone", graph_us([](cudaStream_t s) { null_kernel<<<1, 32, 0, s>>>(); }, 1), "us");
  report("null_kernel_host", host_us(), "us");
  const double plain = chain_us(blocks, false);
  report("kernel_of_a_chain", plain, "us");
  if (properties.major < 9) return 0;
  const double programmatic = chain_us(blocks, true);
  report("kernel_of_a_pdl_chain", programmatic, "us");
  report("pdl_gap", plain - programmatic, "us");
}
