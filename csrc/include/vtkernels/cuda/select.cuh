// Exact top-k of one row by one thread block: a radix search for the k-th key, then one pass that emits positions in
// order.
#pragma once

#include <vtkernels/key.h>

#include <vtkernels/cuda/block.cuh>

namespace vtkernels::cuda {

// Keys of a row with at most kThreads * kItems scores stay in registers; longer rows are read again in every pass.
template <int kThreads, int kItems>
struct TopK {
  static constexpr int kChunk = kThreads * kItems;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kDigitBits = kThreads == 256 ? 8 : 10;  // one histogram bin per thread
  static_assert(kThreads == 1 << kDigitBits && kItems <= 32 && kChunk < 1 << 16);

  struct Shared {
    unsigned histogram[kThreads];
    int slice_counts[kItems * kWarps];
    int warp_totals[kWarps];
    unsigned any_bits, all_bits;
    int digit;
    unsigned digit_count, above;
  };

  // Calls emit(rank, position) for the k largest keys, 0 <= k <= n < 2^31, ranks by position; equal keys prefer the
  // lower one. key_of(position) is called for positions in [0, n). The whole block takes part.
  template <class KeyOf, class Emit>
  __device__ static void run(Shared& s, unsigned n, unsigned k, KeyOf key_of, Emit emit) {
    if (k == n) {
      for (unsigned i = threadIdx.x; i < n; i += kThreads) emit(i, i);
      return;
    }
    if (k == 0) return;
    Row<KeyOf> row(n, key_of);
    unsigned threshold = 0;
    const unsigned ties = find_threshold(s, row, k, &threshold);
    emit_from(s, row, threshold, ties, emit);
  }

  // Keys of a row, or a window on them.
  template <class KeyOf>
  struct Row {
    unsigned n;
    KeyOf key_of;
    unsigned keys[kItems];

    __device__ Row(unsigned n, KeyOf key_of) : n(n), key_of(key_of) {
      if (n <= kChunk) load(0);
    }

    __device__ unsigned position(unsigned chunk, int item) const { return chunk + item * kThreads + threadIdx.x; }

    // How many of its items the block has in a chunk; the same for all threads.
    __device__ int items(unsigned chunk) const {
      const unsigned left = n - chunk;
      return left >= kChunk ? kItems : static_cast<int>((left + kThreads - 1) / kThreads);
    }

    __device__ void load(unsigned chunk) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) keys[i] = position(chunk, i) < n ? key_of(position(chunk, i)) : 0u;
    }

    template <class Visit>
    __device__ void for_each(Visit visit) {
      for (unsigned chunk = 0; chunk < n; chunk += kChunk) {
        if (n > kChunk) load(chunk);
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          if (position(chunk, i) < n) visit(keys[i]);
        }
      }
    }
  };

  // Calls emit(rank, position) for all keys above `threshold` and the first `ties` of those equal to it.
  template <class KeyOf, class Emit>
  __device__ static void emit_from(Shared& s, Row<KeyOf>& row, unsigned threshold, unsigned ties, Emit emit) {
    const unsigned n = row.n;
    const unsigned lower_lanes = (1u << (threadIdx.x % 32)) - 1;
    unsigned above_base = 0, equal_base = 0;
    for (unsigned chunk = 0; chunk < n; chunk += kChunk) {
      if (n > kChunk) row.load(chunk);
      const int items = row.items(chunk);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (i >= items) break;
        const bool valid = row.position(chunk, i) < n;
        const int above = __popc(__ballot_sync(kFullWarp, valid && row.keys[i] > threshold));
        const int equal = __popc(__ballot_sync(kFullWarp, valid && row.keys[i] == threshold));
        if (threadIdx.x % 32 == 0) s.slice_counts[i * kWarps + threadIdx.x / 32] = above << 16 | equal;
      }
      __syncthreads();
      const bool has_slice = threadIdx.x < static_cast<unsigned>(items * kWarps);
      const Scanned counts = block_scan<kThreads>(has_slice ? s.slice_counts[threadIdx.x] : 0, s.warp_totals);
      if (has_slice) s.slice_counts[threadIdx.x] = counts.before;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (i >= items) break;
        const unsigned position = row.position(chunk, i);
        const bool is_above = position < n && row.keys[i] > threshold;
        const bool is_equal = position < n && row.keys[i] == threshold;
        const unsigned above_lanes = __ballot_sync(kFullWarp, is_above);
        const unsigned equal_lanes = __ballot_sync(kFullWarp, is_equal);
        const int before = s.slice_counts[i * kWarps + threadIdx.x / 32];
        const unsigned above = above_base + (before >> 16) + __popc(above_lanes & lower_lanes);
        const unsigned equal = equal_base + (before & 0xffff) + __popc(equal_lanes & lower_lanes);
        if (is_above || (is_equal && equal < ties)) emit(above + (equal < ties ? equal : ties), position);
      }
      above_base += counts.total >> 16;
      equal_base += counts.total & 0xffff;
      __syncthreads();
    }
  }

  // The k best keys, 1 <= k <= n: those above *threshold, and the first `return value` of those equal to it.
  template <class KeyOf>
  __device__ static unsigned find_threshold(Shared& s, Row<KeyOf>& row, unsigned k, unsigned* threshold) {
    // The search starts under the highest bit in which keys differ: scores crowd together, so the digits that they
    // share would waste rounds and put every count into one bin.
    if (threadIdx.x == 0) {
      s.any_bits = 0;
      s.all_bits = ~0u;
    }
    unsigned any_bits = 0, all_bits = ~0u;
    row.for_each([&](unsigned key) {
      any_bits |= key;
      all_bits &= key;
    });
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      any_bits |= __shfl_xor_sync(kFullWarp, any_bits, distance);
      all_bits &= __shfl_xor_sync(kFullWarp, all_bits, distance);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      atomicOr(&s.any_bits, any_bits);
      atomicAnd(&s.all_bits, all_bits);
    }
    __syncthreads();
    int bits = 32 - __clz(static_cast<int>(s.any_bits ^ s.all_bits));
    unsigned prefix = s.all_bits & ~low_bits(bits);
    unsigned wanted = k;
    while (bits > 0) {
      const int shift = bits > kDigitBits ? bits - kDigitBits : 0;
      s.histogram[threadIdx.x] = 0;
      __syncthreads();
      row.for_each([&](unsigned key) {
        if (((key ^ prefix) & ~low_bits(bits)) == 0) atomicAdd(&s.histogram[(key & low_bits(bits)) >> shift], 1u);
      });
      __syncthreads();
      const int digit = kThreads - 1 - static_cast<int>(threadIdx.x);  // best digits first
      const unsigned count = s.histogram[digit];
      const unsigned above = block_scan<kThreads>(static_cast<int>(count), s.warp_totals).before;
      if (above < wanted && wanted - above <= count) {
        s.digit = digit;
        s.digit_count = count;
        s.above = above;
      }
      __syncthreads();
      prefix |= static_cast<unsigned>(s.digit) << shift;
      wanted -= s.above;
      bits = shift;
      if (s.digit_count == wanted) break;  // the whole bin wins, and `prefix` is its lowest key
    }
    *threshold = prefix;
    return wanted;
  }

  __device__ static unsigned low_bits(int count) { return count >= 32 ? ~0u : (1u << count) - 1; }
};

}  // namespace vtkernels::cuda
