// Selection with protected and excluded tokens: a census of the row tells which class is cut, and keys do the rest.
#pragma once

#include <vtkernels/cuda/launch_select.h>

#include <vtkernels/cuda/select.cuh>

namespace vtkernels::cuda {

enum Standing : int { kExcluded, kOrdinary, kProtected };

// The scores of one row, and who may be selected.
struct SelectRow {
  const float* scores;
  int64_t stride;
  bool largest;
  MaskView protected_tokens, excluded;

  __device__ unsigned key(unsigned i) const { return selection_key(scores[i * stride], largest); }

  __device__ int standing(unsigned i) const {
    if (excluded.data != nullptr && excluded.data[i * excluded.stride] != 0) return kExcluded;
    return protected_tokens.data != nullptr && protected_tokens.data[i * protected_tokens.stride] != 0 ? kProtected
                                                                                                       : kOrdinary;
  }
};

__device__ inline SelectRow select_row(const ScoreView& scores, const SelectMasks& masks, bool largest, int64_t b,
                                       int64_t first) {
  const auto from = [&](const MaskView& mask) {
    const unsigned char* data =
        mask.data == nullptr ? nullptr : mask.data + b * mask.batch_stride + first * mask.stride;
    return MaskView{data, 0, mask.stride};
  };
  return {scores.data + b * scores.batch_stride + first * scores.stride, scores.stride, largest,
          from(masks.protected_tokens), from(masks.excluded)};
}

struct Census {
  unsigned ordinary, protected_tokens;
};

// By the whole block, whose `counts` are its own until the next barrier.
__device__ inline Census take_census(const SelectRow& row, unsigned n, unsigned (&counts)[2]) {
  if (threadIdx.x < 2) counts[threadIdx.x] = 0;
  Census mine{0, 0};
  for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
    const int standing = row.standing(i);
    mine.ordinary += standing == kOrdinary;
    mine.protected_tokens += standing == kProtected;
  }
  __syncthreads();
  atomicAdd(&counts[0], mine.ordinary);
  atomicAdd(&counts[1], mine.protected_tokens);
  __syncthreads();
  return {counts[0], counts[1]};
}

// Calls emit(rank, position) for the k best of n scores, or as many as are not excluded. Returns how many.
template <class Select, bool kMasked, class Emit>
__device__ unsigned select_from(typename Select::Shared& s, unsigned (&counts)[2], const SelectRow& row, unsigned n,
                                unsigned k, Emit emit) {
  if constexpr (kMasked) {
    const Census census = take_census(row, n, counts);
    const unsigned eligible = census.ordinary + census.protected_tokens, kept = k < eligible ? k : eligible;
    const int cut = kept <= census.protected_tokens ? kProtected : kOrdinary;
    // No score has the keys 1 and ~0: the class that is cut has those of its scores, NaN one above the worse classes.
    Select::run(
        s, n, kept,
        [&](unsigned i) {
          const int standing = row.standing(i);
          const unsigned key = row.key(i);
          return standing > cut ? ~0u : standing < cut ? 0u : key == 0 ? 1u : key;
        },
        emit);
    return kept;
  } else {
    Select::run(s, n, k, [&](unsigned i) { return row.key(i); }, emit);
    return k;
  }
}

template <class Select>
struct MaskedShared {
  typename Select::Shared select;
  unsigned counts[2];
};

constexpr int kRankThreads = 256;
constexpr int kRankParts = 64;

// Protected tokens first, then by score, then by position: no two are equal, none is 0.
__device__ inline unsigned long long rank_key(const SelectRow& row, int position) {
  const unsigned long long key = row.key(position);
  const unsigned long long first = row.standing(position) == kProtected;
  return first << 63 | key << 31 | static_cast<unsigned>(INT32_MAX - position);
}

// Calls emit(rank, position) for every parts-th tile of a row's selected positions, ranks best first.
template <class Emit>
__device__ void rank_selected(unsigned long long* tile, const SelectRow& row, const int* chosen, unsigned count,
                              unsigned part, unsigned parts, Emit emit) {
  for (unsigned first = part * kRankThreads; first < count; first += parts * kRankThreads) {
    const unsigned mine = first + threadIdx.x;
    const unsigned long long key = mine < count ? rank_key(row, chosen[mine]) : ~0ull;
    unsigned ahead = 0;
    for (unsigned start = 0; start < count; start += kRankThreads) {
      const unsigned other = start + threadIdx.x;
      __syncthreads();
      tile[threadIdx.x] = other < count ? rank_key(row, chosen[other]) : 0;
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kRankThreads; ++i) ahead += tile[i] > key;
    }
    if (mine < count) emit(ahead, chosen[mine]);
  }
}

}  // namespace vtkernels::cuda
