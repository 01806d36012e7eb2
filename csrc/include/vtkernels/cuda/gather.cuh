// Moves token rows of many tensors in one launch. The table of tensors travels by value in the kernel's parameters, so
// a captured graph keeps its own copy.
#pragma once

#include <vtkernels/cuda/launch.h>

#include <vtkernels/cuda/arch.cuh>

namespace vtkernels::cuda {

struct GatherAxis {
  int64_t size, src_stride, dst_stride;  // bytes
};

// Shape and strides of one or more tensors: batch, two outer axes, tokens, and a run of `inner.size` vectors per token.
struct GatherLayout {
  int64_t src_batch, dst_batch, src_token, dst_token;
  GatherAxis outer[2];
  GatherAxis inner;
  int64_t tiles;  // per tensor
  int64_t first_tile;
  int first_entry;
  int width;  // bytes of a vector: 1, 2, 4, 8 or 16
  int tile_tokens, tile_inner;
};

struct GatherEntry {
  const char* src;
  char* dst;
};

struct GatherParams {
  static constexpr int kMaxEntries = 168;
  static constexpr int kMaxLayouts = 6;

  const void* indices;
  bool wide;
  int64_t index_batch_stride, index_stride;
  int64_t index_tensor_stride, index_head_stride;  // 0: shared
  int64_t index_tensors, index_heads;
  int64_t batch, tokens, kept;
  int* status;  // checked where not null
  int64_t tiles;
  int layout_count;
  GatherLayout layouts[kMaxLayouts];
  GatherEntry entries[kMaxEntries];
  uint16_t tensors[kMaxEntries];  // whose indices an entry has

  __device__ int64_t index(int64_t tensor, int64_t b, int64_t head, int64_t j) const {
    const int64_t at =
        tensor * index_tensor_stride + b * index_batch_stride + head * index_head_stride + j * index_stride;
    return wide ? static_cast<const int64_t*>(indices)[at] : static_cast<const int32_t*>(indices)[at];
  }
};
static_assert(sizeof(GatherParams) <= 4096, "kernel parameters of every architecture end at 4 KB");

constexpr int kGatherThreads = 256;
constexpr int kGatherUnroll = 4;  // loads under way per thread

// One tile of tokens and of the run of vectors of each. Heads with indices of their own are the axis outer[1].
template <class V, bool kInPlace>
__device__ void copy_tile(const GatherParams& p, const GatherLayout& layout, const GatherEntry& entry, int64_t tensor,
                          int64_t tile) {
  const int64_t inner_tiles = (layout.inner.size + layout.tile_inner - 1) / layout.tile_inner;
  const int64_t token_tiles = (p.kept + layout.tile_tokens - 1) / layout.tile_tokens;
  const int64_t first_inner = tile % inner_tiles * layout.tile_inner;
  tile /= inner_tiles;
  int64_t token_tile = 0;
  if constexpr (!kInPlace) {
    token_tile = tile % token_tiles;
    tile /= token_tiles;
  }
  const int64_t outer0 = tile % layout.outer[0].size;
  tile /= layout.outer[0].size;
  const int64_t outer1 = tile % layout.outer[1].size;
  const int64_t b = tile / layout.outer[1].size;
  const char* src = entry.src + b * layout.src_batch + outer0 * layout.outer[0].src_stride +
                    outer1 * layout.outer[1].src_stride + first_inner * layout.inner.src_stride;
  char* dst = entry.dst + b * layout.dst_batch + outer0 * layout.outer[0].dst_stride +
              outer1 * layout.outer[1].dst_stride + first_inner * layout.inner.dst_stride;
  const int64_t inner_left = layout.inner.size - first_inner;
  const unsigned inner = inner_left < layout.tile_inner ? static_cast<unsigned>(inner_left) : layout.tile_inner;

  // In place a block walks all tiles of tokens in order: it reads a tile before it stores one, and no row of a later
  // tile comes from an earlier place.
  const int64_t end = kInPlace ? token_tiles : token_tile + 1;
  for (; token_tile < end; ++token_tile) {
    const int64_t first_token = token_tile * layout.tile_tokens, tokens_left = p.kept - first_token;
    const unsigned tokens = tokens_left < layout.tile_tokens ? static_cast<unsigned>(tokens_left) : layout.tile_tokens;
    V values[kGatherUnroll];
#pragma unroll
    for (int i = 0; i < kGatherUnroll; ++i) {
      const unsigned unit = threadIdx.x + i * kGatherThreads;
      values[i] = V{};
      if (unit >= tokens * inner) continue;
      const int64_t token = first_token + unit / inner, index = p.index(tensor, b, outer1, token);
      if (index >= (kInPlace ? token : 0) && index < p.tokens) {
        values[i] = arch::load_streaming<V>(src + index * layout.src_token + unit % inner * layout.inner.src_stride);
      }
    }
    if constexpr (kInPlace) __syncthreads();
#pragma unroll
    for (int i = 0; i < kGatherUnroll; ++i) {
      const unsigned unit = threadIdx.x + i * kGatherThreads;
      if (unit >= tokens * inner) continue;
      arch::store_streaming<V>(
          dst + (first_token + unit / inner) * layout.dst_token + unit % inner * layout.inner.dst_stride, values[i]);
    }
  }
}

template <bool kInPlace>
__global__ void __launch_bounds__(kGatherThreads) gather_kernel(const __grid_constant__ GatherParams p) {
  if (p.status != nullptr) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kGatherThreads;
    const int64_t count = p.index_tensors * p.batch * p.index_heads * p.kept;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x; i < count; i += step) {
      const int64_t j = i % p.kept, row = i / p.kept, head = row % p.index_heads, b = row / p.index_heads % p.batch;
      const int64_t index = p.index(row / p.index_heads / p.batch, b, head, j);
      if (index < (kInPlace ? j : 0) || index >= p.tokens) atomicOr(p.status, kBadIndex);
    }
  }
  int l = 0;
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    while (l + 1 < p.layout_count && tile >= p.layouts[l + 1].first_tile) ++l;
    const GatherLayout& layout = p.layouts[l];
    const int64_t in_layout = tile - layout.first_tile, at = layout.first_entry + in_layout / layout.tiles;
    const GatherEntry& entry = p.entries[at];
    const int64_t tensor = p.tensors[at], in_tensor = in_layout % layout.tiles;
    switch (layout.width) {
      case 16:
        copy_tile<uint4, kInPlace>(p, layout, entry, tensor, in_tensor);
        break;
      case 8:
        copy_tile<uint2, kInPlace>(p, layout, entry, tensor, in_tensor);
        break;
      case 4:
        copy_tile<unsigned, kInPlace>(p, layout, entry, tensor, in_tensor);
        break;
      case 2:
        copy_tile<unsigned short, kInPlace>(p, layout, entry, tensor, in_tensor);
        break;
      default:
        copy_tile<unsigned char, kInPlace>(p, layout, entry, tensor, in_tensor);
    }
  }
}

}  // namespace vtkernels::cuda
