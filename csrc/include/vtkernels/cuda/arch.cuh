// The one place for inline PTX and architecture tests. Everything here has a plain fallback, which the CPU shim runs.
#pragma once

#include <vtkernels/key.h>

#include <cstring>
#include <type_traits>
#include <vtkernels/cuda/platform.cuh>

namespace vtkernels::cuda {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

namespace arch {

__device__ inline float to_float(float x) { return x; }

__device__ inline float to_float(BFloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

__device__ inline float to_float(Half x) {
#ifdef __CUDACC__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude << 13));  // inf and NaN
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));         // exact, subnormals too
#endif
}

// Rounded to nearest, ties to even.
template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = float_bits(x);
    return {static_cast<uint16_t>(x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else {
#ifdef __CUDACC__
    uint16_t y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return {y};
#else
    const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    const auto half = [sign](uint32_t rest) { return Half{static_cast<uint16_t>(sign | rest)}; };
    if (magnitude > 0x7f800000u) return half(0x7e00);
    if (magnitude >= 0x477ff000u) return half(0x7c00);  // rounds past 65504
    // Subnormal: the sum with 0.5 shifts and rounds the mantissa into place.
    if (magnitude < 0x38800000u) return half(float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u);
    return half((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13);
#endif
  }
}

// Elements of a 16-byte unit in memory order.
template <class T>
__device__ void unpack(const uint4& unit, float (&values)[16 / sizeof(T)]) {
  T raw[16 / sizeof(T)];
  static_assert(sizeof raw == sizeof unit);
  memcpy(raw, &unit, sizeof raw);
#pragma unroll
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) values[i] = to_float(raw[i]);
}

// Vector access: V is uint4, uint2, unsigned, unsigned short or unsigned char, and the address a multiple of its size.
template <class V>
__device__ V load(const void* address) {
#ifndef __CUDACC__
  shim::require_aligned(address, sizeof(V));
#endif
  return *static_cast<const V*>(address);
}

template <class V>
__device__ void store(void* address, V value) {
#ifndef __CUDACC__
  shim::require_aligned(address, sizeof(V));
#endif
  *static_cast<V*>(address) = value;
}

// For bytes that are used once: evicted first.
template <class V>
__device__ V load_streaming(const void* address) {
#ifdef __CUDACC__
  return __ldcs(static_cast<const V*>(address));
#else
  return load<V>(address);
#endif
}

template <class V>
__device__ void store_streaming(void* address, V value) {
#ifdef __CUDACC__
  __stcs(static_cast<V*>(address), value);
#else
  store<V>(address, value);
#endif
}

// For values that other blocks of this launch wrote before a fence: not from the first-level cache.
__device__ inline float load_shared_by_blocks(const float* address) {
#ifdef __CUDACC__
  return __ldcg(address);
#else
  return *address;
#endif
}

// Starts a copy of a 16-byte unit from global to shared memory. Only the first `valid` bytes are read, the rest is
// zero.
__device__ inline void copy_async(void* shared, const void* global, int valid) {
#ifdef __CUDACC__
#if VTK_ARCH >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid) : "memory");
  return;
#endif
#endif
  if (valid == 16) {
    store(shared, load<uint4>(global));
  } else {
    for (int i = 0; i < 16; ++i) {
      static_cast<unsigned char*>(shared)[i] = i < valid ? static_cast<const unsigned char*>(global)[i] : 0;
    }
  }
}

// Closes the group of copies that this thread started since the last call.
__device__ inline void copy_async_commit() {
#if defined(__CUDACC__) && VTK_ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kPending` groups of this thread are under way.
template <int kPending>
__device__ void copy_async_wait() {
#if defined(__CUDACC__) && VTK_ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

template <class T>
constexpr bool has_mma() {
#if defined(VTK_ARCH) && VTK_ARCH < 800
  return std::is_same_v<T, Half>;
#else
  return !std::is_same_v<T, float>;
#endif
}

// c[16, 8] += a[16, 16] * b[16, 8] by one warp, fp32 accumulators. Lane = 4 g + q holds
// a: rows g, g + 8, columns 2q.. then the same rows, columns 2q + 8..; b: rows 2q.., 2q + 8.., column g;
// c: row g columns 2q.., row g + 8 columns 2q...
template <class T>
__device__ void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
#if VTK_ARCH >= 800
  if constexpr (std::is_same_v<T, Half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
#else
  struct Fragments {
    T a[4][2], b[2][2];
  };
  Fragments mine;
  memcpy(mine.a, a, sizeof mine.a);
  memcpy(mine.b, b, sizeof mine.b);
  const Fragments* lanes = shim::warp_publish(mine);
  const int g = static_cast<int>(threadIdx.x % 32) / 4, q = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * q + i % 2;  // row g, then row g + 8
    for (int k = 0; k < 16; ++k) {
      const T left = lanes[4 * g + k % 8 / 2].a[i / 2 + 2 * (k / 8)][k % 2];
      const T right = lanes[4 * column + k % 8 / 2].b[k / 8][k % 2];
      c[i] += to_float(left) * to_float(right);
    }
  }
  shim::warp_release();
#endif
}

}  // namespace arch
}  // namespace vtkernels::cuda
