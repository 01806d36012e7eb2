// A CUDA runtime that runs nothing: linked to the smoke program it prints every kernel launch, a line each, with the
// number of threads and the bytes of dynamic shared memory. Memory is the host's; the device looks like an H100.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

Configuration pending;

std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> kernels;
  return kernels;
}

cudaError_t print(const void* kernel, dim3 block, size_t shared) {
  std::printf("launch %s %u %zu\n", names()[kernel].c_str(), block.x * block.y * block.z, shared);
  return cudaSuccess;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) { return reinterpret_cast<void**>(&pending); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  names()[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pending = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pending.grid;
  *block = pending.block;
  *shared = pending.shared;
  *static_cast<cudaStream_t*>(stream) = pending.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3 block, void**, size_t shared, cudaStream_t) {
  return print(kernel, block, shared);
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3 block, void**, size_t shared, cudaStream_t) {
  return print(kernel, block, shared);
}

cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3, dim3 block, void**, size_t shared, cudaStream_t) {
  return print(kernel, block, shared);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  return print(kernel, config->blockDim, config->dynamicSmemBytes);
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  static const std::map<cudaDeviceAttr, int> h100{{cudaDevAttrMultiProcessorCount, 132},
                                                  {cudaDevAttrComputeCapabilityMajor, 9},
                                                  {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
                                                  {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
                                                  {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
                                                  {cudaDevAttrL2CacheSize, 50 << 20},
                                                  {cudaDevAttrCooperativeLaunch, 1}};
  const auto found = h100.find(attribute);
  *value = found == h100.end() ? 0 : found->second;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t size) {
  *pointer = std::calloc(1, size);
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  std::memset(to, value, size);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t size) { return cudaMemsetAsync(to, value, size, nullptr); }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "none"; }

}  // extern "C"
