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
  static constexpr int kMaxEntries = 190;
  static constexpr int kMaxLayouts = 6;

  const void* indices;
  bool wide;
  int64_t index_batch_stride, index_stride;
  int64_t batch, tokens, kept;
  int* status;  // checked where not null
  int64_t tiles;
  int layout_count;
  GatherLayout layouts[kMaxLayouts];
  GatherEntry entries[kMaxEntries];

  __device__ int64_t index(int64_t b, int64_t j) const {
    const int64_t at = b * index_batch_stride + j * index_stride;
    return wide ? static_cast<const int64_t*>(indices)[at] : static_cast<const int32_t*>(indices)[at];
  }
};
static_assert(sizeof(GatherParams) <= 4096, "kernel parameters of every architecture end at 4 KB");

constexpr int kGatherThreads = 256;
constexpr int kGatherUnroll = 4;  // loads under way per thread

template <class V>
__device__ void copy_tile(const GatherParams& p, const GatherLayout& layout, const GatherEntry& entry, int64_t tile) {
  const int64_t inner_tiles = (layout.inner.size + layout.tile_inner - 1) / layout.tile_inner;
  const int64_t token_tiles = (p.kept + layout.tile_tokens - 1) / layout.tile_tokens;
  const int64_t first_inner = tile % inner_tiles * layout.tile_inner;
  tile /= inner_tiles;
  const int64_t first_token = tile % token_tiles * layout.tile_tokens;
  tile /= token_tiles;
  const int64_t outer0 = tile % layout.outer[0].size;
  tile /= layout.outer[0].size;
  const int64_t outer1 = tile % layout.outer[1].size;
  const int64_t b = tile / layout.outer[1].size;
  const char* src = entry.src + b * layout.src_batch + outer0 * layout.outer[0].src_stride +
                    outer1 * layout.outer[1].src_stride + first_inner * layout.inner.src_stride;
  char* dst = entry.dst + b * layout.dst_batch + outer0 * layout.outer[0].dst_stride +
              outer1 * layout.outer[1].dst_stride + first_inner * layout.inner.dst_stride;
  const int64_t inner_left = layout.inner.size - first_inner, tokens_left = p.kept - first_token;
  const unsigned inner = inner_left < layout.tile_inner ? static_cast<unsigned>(inner_left) : layout.tile_inner;
  const unsigned tokens = tokens_left < layout.tile_tokens ? static_cast<unsigned>(tokens_left) : layout.tile_tokens;

  for (unsigned first = threadIdx.x; first < tokens * inner; first += kGatherThreads * kGatherUnroll) {
    V values[kGatherUnroll];
#pragma unroll
    for (int i = 0; i < kGatherUnroll; ++i) {
      const unsigned unit = first + i * kGatherThreads;
      values[i] = V{};
      if (unit >= tokens * inner) continue;
      const int64_t index = p.index(b, first_token + unit / inner);
      if (index >= 0 && index < p.tokens) {
        values[i] = arch::load_streaming<V>(src + index * layout.src_token + unit % inner * layout.inner.src_stride);
      }
    }
#pragma unroll
    for (int i = 0; i < kGatherUnroll; ++i) {
      const unsigned unit = first + i * kGatherThreads;
      if (unit >= tokens * inner) continue;
      arch::store_streaming<V>(
          dst + (first_token + unit / inner) * layout.dst_token + unit % inner * layout.inner.dst_stride, values[i]);
    }
  }
}

__global__ void __launch_bounds__(kGatherThreads) gather_kernel(const __grid_constant__ GatherParams p) {
  if (p.status != nullptr) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kGatherThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x; i < p.batch * p.kept; i += step) {
      const int64_t index = p.index(i / p.kept, i % p.kept);
      if (index < 0 || index >= p.tokens) atomicOr(p.status, kBadIndex);
    }
  }
  int l = 0;
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    while (l + 1 < p.layout_count && tile >= p.layouts[l + 1].first_tile) ++l;
    const GatherLayout& layout = p.layouts[l];
    const int64_t in_layout = tile - layout.first_tile;
    const GatherEntry& entry = p.entries[layout.first_entry + in_layout / layout.tiles];
    const int64_t in_tensor = in_layout % layout.tiles;
    switch (layout.width) {
      case 16:
        copy_tile<uint4>(p, layout, entry, in_tensor);
        break;
      case 8:
        copy_tile<uint2>(p, layout, entry, in_tensor);
        break;
      case 4:
        copy_tile<unsigned>(p, layout, entry, in_tensor);
        break;
      case 2:
        copy_tile<unsigned short>(p, layout, entry, in_tensor);
        break;
      default:
        copy_tile<unsigned char>(p, layout, entry, in_tensor);
    }
  }
}

}  // namespace vtkernels::cuda
