// Runs CUDA C++ sources on the CPU, for tests: the threads of a block as lanes.h says, blocks one after the other in
// random order.
//
// Shared memory is a heap block per thread block, filled with 0xff (NaN) first, so a sanitizer sees overruns and stale
// reads show. Every collective needs all lanes of the warp. What it cannot show: the GPU's memory model, divergence,
// races between blocks, the rounding of tensor cores, time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include "lanes.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

#ifdef SHIM_ARCH
#define VTK_ARCH SHIM_ARCH
#endif

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct Dim3 {
  unsigned x = 0;
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

namespace shim {

constexpr size_t kSlotBytes = 32;

struct Warp {
  Barrier barrier{32};
  alignas(16) unsigned char slots[32 * kSlotBytes];
};

struct Block {
  explicit Block(int threads) : barrier(threads), warps(threads / 32) {}
  Barrier barrier;
  std::vector<Warp> warps;
  unsigned char* shared = nullptr;
};

inline unsigned seed = 0;
inline int multiprocessors = 4;
inline long launches = 0;
// Of the block that runs, and of the lane: fibers share them, and set them anew after each collective.
inline thread_local Block* block = nullptr;
inline thread_local Warp* warp = nullptr;
inline thread_local int lane = 0;

}  // namespace shim

inline thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

inline void become(Block* now, int thread) {
  block = now;
  warp = &now->warps[thread / 32];
  lane = thread % 32;
  threadIdx.x = thread;
}

inline void meet(Barrier& barrier) {
  Block* const mine = block;
  const int thread = threadIdx.x;
  barrier.arrive_and_wait();
  become(mine, thread);
}

inline void* shared_memory() { return block->shared; }

inline void require_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    std::fprintf(stderr, "shim: access of %zu bytes at %p is misaligned\n", bytes, address);
    std::abort();
  }
}

// What every lane published, until warp_release.
template <class T>
const T* warp_publish(const T& value) {
  static_assert(sizeof(T) <= kSlotBytes);
  std::memcpy(warp->slots + lane * sizeof(T), &value, sizeof(T));
  meet(warp->barrier);
  return reinterpret_cast<const T*>(warp->slots);
}

inline void warp_release() { meet(warp->barrier); }

template <class T>
T warp_read(const T& value, int from) {
  const T result = warp_publish(value)[from];
  warp_release();
  return result;
}

template <class Kernel>
void launch(unsigned blocks, int threads, size_t shared_bytes, Kernel body) {
  ++launches;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed++));
  Block state(threads);
  run_lanes(threads, seed, [&](int thread) {
    become(&state, thread);
    blockDim.x = threads;
    gridDim.x = blocks;
    for (const unsigned b : order) {
      if (thread == 0) {
        state.shared = static_cast<unsigned char*>(::operator new(shared_bytes, std::align_val_t(16)));
        std::memset(state.shared, 0xff, shared_bytes);
      }
      meet(state.barrier);
      blockIdx.x = b;
      body();
      meet(state.barrier);
      if (thread == 0) ::operator delete(state.shared, std::align_val_t(16));
    }
  });
}

template <class T, class Combine>
T atomic_update(T* address, Combine combine) {
  std::atomic_ref<T> target(*address);
  T old = target.load(std::memory_order_relaxed);
  while (!target.compare_exchange_weak(old, combine(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace shim

inline void __syncthreads() { shim::meet(shim::block->barrier); }
inline void __threadfence() {}  // blocks run one after the other

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return shim::warp_read(value, shim::lane ^ mask);
}

template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  return shim::warp_read(value, shim::lane >= distance ? shim::lane - distance : shim::lane);
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const int* votes = shim::warp_publish(static_cast<int>(predicate));
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= static_cast<unsigned>(votes[i] != 0) << i;
  shim::warp_release();
  return result;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

template <class T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

inline int atomicOr(int* address, int value) {
  return std::atomic_ref<int>(*address).fetch_or(value, std::memory_order_relaxed);
}

inline unsigned atomicOr(unsigned* address, unsigned value) {
  return std::atomic_ref<unsigned>(*address).fetch_or(value, std::memory_order_relaxed);
}

inline unsigned atomicAnd(unsigned* address, unsigned value) {
  return std::atomic_ref<unsigned>(*address).fetch_and(value, std::memory_order_relaxed);
}

inline int atomicMax(int* address, int value) {
  return shim::atomic_update(address, [value](int old) { return old > value ? old : value; });
}

inline unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
  return shim::atomic_update(address, [value](unsigned long long old) { return old > value ? old : value; });
}

inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** p, size_t bytes) { return (*p = std::malloc(bytes)) == nullptr; }
inline cudaError_t cudaFree(void* p) {
  std::free(p);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(dst, src, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = shim::multiprocessors;
  return cudaSuccess;
}
