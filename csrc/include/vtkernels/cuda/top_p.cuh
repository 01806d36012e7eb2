// How many of the best scores hold a part of the row's sum: a radix search like that of TopK, on sums of integer
// weights in place of counts, so the result is exact whatever the order of the additions.
#pragma once

#include <vtkernels/key.h>

#include <vtkernels/cuda/block.cuh>

namespace vtkernels::cuda {

// Bits of a score above 0, which order such scores and are 0 for all others; from its key, the largest first.
__device__ inline unsigned positive_bits(unsigned selection_key) {
  return selection_key > 0x80000000u ? selection_key & 0x7fffffffu : 0u;
}

// trunc(w * 2^(30 - e)), e the exponent of the largest weight `top`, at least -126. With infinities each of them counts
// 1, everything else 0.
__device__ inline unsigned integer_weight(unsigned bits, unsigned top) {
  constexpr unsigned kInfinity = 0x7f800000u;
  if (top == kInfinity) return bits == kInfinity;
  const unsigned exponent = bits >> 23 > 0 ? bits >> 23 : 1, top_exponent = top >> 23 > 0 ? top >> 23 : 1;
  const unsigned significand = (bits & 0x7fffffu) | (bits >> 23 > 0 ? 0x800000u : 0u);
  const unsigned shift = top_exponent - exponent;
  return (significand << 7) >> (shift < 31 ? shift : 31);
}

template <int kThreads>
struct TopP {
  static constexpr int kDigitBits = kThreads == 256 ? 8 : 10;  // one bin per thread
  static_assert(kThreads == 1 << kDigitBits);

  struct Shared {
    unsigned long long weights[kThreads];
    unsigned long long warp_weights[kThreads / 32];
    unsigned long long above;
    int warp_totals[kThreads / 32];
    int digit;
  };

  // `row` holds keys of selection_key, the largest first; `part` is in units of 2^-31. The keys above *cut hold the
  // part together with the first `return value` of those equal to it. Where nothing weighs anything *cut stays as it
  // is.
  template <class Row>
  __device__ static unsigned find(Shared& s, Row& row, unsigned long long part, unsigned* cut) {
    int most = 0, least = -INT32_MAX;  // the least is negated
    row.for_each([&](unsigned key) {
      const int bits = static_cast<int>(positive_bits(key));
      most = bits > most ? bits : most;
      least = bits > 0 && -bits > least ? -bits : least;
    });
    most = block_scan<kThreads, Max>(most, s.warp_totals).total;
    __syncthreads();
    least = -block_scan<kThreads, Max>(least, s.warp_totals).total;
    if (most <= 0) return 0;  // of the whole block
    const unsigned top = static_cast<unsigned>(most);

    unsigned long long sum = 0;
    row.for_each([&](unsigned key) { sum += integer_weight(positive_bits(key), top); });
    const unsigned long long total = block_scan<kThreads>(sum, s.warp_weights).total;
    // ceil(total * part / 2^31) without leaving 64 bits
    unsigned long long need = (total >> 31) * part + (((total & 0x7fffffffu) * part + 0x7fffffffu) >> 31);

    // All bits above these are those of `top`.
    int bits = 32 - __clz(static_cast<int>(top ^ static_cast<unsigned>(least)));
    unsigned prefix = top & ~low_bits(bits);
    while (bits > 0) {
      const int shift = bits > kDigitBits ? bits - kDigitBits : 0;
      s.weights[threadIdx.x] = 0;
      __syncthreads();
      row.for_each([&](unsigned key) {
        const unsigned value = positive_bits(key);
        if (value > 0 && ((value ^ prefix) & ~low_bits(bits)) == 0) {
          atomicAdd(&s.weights[(value & low_bits(bits)) >> shift],
                    static_cast<unsigned long long>(integer_weight(value, top)));
        }
      });
      __syncthreads();
      const int digit = kThreads - 1 - static_cast<int>(threadIdx.x);  // best digits first
      const unsigned long long weight = s.weights[digit];
      const unsigned long long above = block_scan<kThreads>(weight, s.warp_weights).before;
      if (above < need && need - above <= weight) {
        s.digit = digit;
        s.above = above;
      }
      __syncthreads();
      prefix |= static_cast<unsigned>(s.digit) << shift;
      need -= s.above;
      bits = shift;
    }
    *cut = prefix | 0x80000000u;
    const unsigned long long each = integer_weight(prefix, top);
    return static_cast<unsigned>((need + each - 1) / each);
  }

 private:
  __device__ static unsigned low_bits(int count) { return count >= 32 ? ~0u : (1u << count) - 1; }
};

}  // namespace vtkernels::cuda
