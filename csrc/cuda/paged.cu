// Plans the launches of `compact_pages`: axes merged, the widest vector that every address allows, pools grouped.
#include <algorithm>
#include <cstring>
#include <vtkernels/cuda/paged.cuh>

namespace vtkernels::cuda {
namespace {

constexpr int64_t kTileUnits = kPagedThreads * kPagedUnroll;
constexpr int64_t kStripeBytes = 512;  // of a token that one block moves; more blocks hide more latency
constexpr int64_t kMaxChunks = 64;     // blocks that share a row's tokens, when they go to new pages

struct Planned {
  PoolLayout layout;  // no first_item, no first_pool
  std::vector<char*> pools;
};

static_assert(std::has_unique_object_representations_v<PoolLayout>);

struct Axis {
  int64_t size, stride;
};

PoolLayout layout_of(const PagePool& pool, bool one_page, bool one_token) {
  std::vector<Axis> axes;  // outermost first, bytes; the bytes of an element last
  const auto push = [&](int64_t size, int64_t stride) {
    if (size == 1) return;
    if (!axes.empty() && axes.back().stride == size * stride) {
      axes.back() = {axes.back().size * size, stride};
    } else {
      axes.push_back({size, stride});
    }
  };
  const int64_t element = pool.element_size;
  push(pool.heads, pool.head_stride * element);
  push(pool.width, pool.dim_stride * element);
  push(element, 1);
  PoolLayout layout{};
  layout.block_stride = one_page ? 0 : pool.block_stride * element;
  layout.token_stride = one_token ? 0 : pool.token_stride * element;
  const bool bytes_last = !axes.empty() && axes.back().stride == 1;
  const int64_t run = bytes_last ? axes.back().size : 1;
  uint64_t alignment = 16 | static_cast<uint64_t>(run) | reinterpret_cast<uintptr_t>(pool.data) |
                       static_cast<uint64_t>(layout.block_stride) | static_cast<uint64_t>(layout.token_stride);
  for (size_t i = 0; i + bytes_last < axes.size(); ++i) alignment |= static_cast<uint64_t>(axes[i].stride);
  layout.width = static_cast<int>(alignment & (~alignment + 1));  // lowest bit
  if (bytes_last) {
    axes.pop_back();
    if (run > layout.width) axes.push_back({run / layout.width, layout.width});
  }
  const auto take = [&]() -> Axis {
    if (axes.empty()) return {1, 0};
    const Axis axis = axes.back();
    axes.pop_back();
    return axis;
  };
  const Axis inner = take(), first = take(), second = take();  // at most heads, elements and bytes
  layout.inner = inner.size;
  layout.inner_stride = inner.stride;
  layout.outer[0] = first.size;
  layout.outer[1] = second.size;
  layout.outer_stride[0] = first.stride;
  layout.outer_stride[1] = second.stride;
  layout.tile_inner = static_cast<int>(std::min(inner.size, std::max<int64_t>(1, kStripeBytes / layout.width)));
  layout.tile_tokens = static_cast<int>(kTileUnits / layout.tile_inner);
  layout.columns = (inner.size + layout.tile_inner - 1) / layout.tile_inner;
  layout.items = layout.outer[0] * layout.outer[1] * layout.columns;
  return layout;
}

}  // namespace

void compact_pages(const PagedCompaction& problem, const std::vector<PagePool>& pools, Stream stream) {
  const bool packed = problem.packed.bounds.data != nullptr;
  if (packed && problem.kept > 0) {  // those of no row
    check(cudaMemsetAsync(problem.slots.data, 0xff, problem.kept * (problem.slots.wide ? 8 : 4), stream));
  }
  if (problem.batch == 0) return;
  if (problem.block_size > INT32_MAX) throw std::runtime_error("compact_kv_paged: a page of more than 2^31 - 1 tokens");
  const PagedRows rows{problem};
  launch(claim_pages_kernel, problem.batch, kPagedThreads, sizeof(ClaimShared), stream, rows);
  launch(plan_pages_kernel, problem.batch, kPagedThreads, sizeof(PlanShared), stream, rows);
  std::vector<Planned> all;
  for (const PagePool& pool : pools) {
    if (pool.heads == 0 || pool.width == 0) continue;
    const PoolLayout layout = layout_of(pool, problem.blocks == 1, problem.block_size == 1);
    const auto same = std::find_if(all.begin(), all.end(), [&](const Planned& planned) {
      return memcmp(&planned.layout, &layout, sizeof layout) == 0;
    });
    (same != all.end() ? *same : (all.push_back({layout, {}}), all.back()))
        .pools.push_back(static_cast<char*>(pool.data));
  }
  MoveParams params{};
  params.rows = rows;
  params.chunks = 1;
  if (problem.target.data != nullptr) {
    const int64_t least = all.empty() ? 1 : all.front().layout.tile_tokens;
    const int64_t most = packed ? problem.table.width * problem.block_size : problem.kept;
    params.chunks = std::clamp<int64_t>((most + least - 1) / least, 1, kMaxChunks);
  }
  int pool_count = 0;
  const auto flush = [&] {
    launch(move_pages_kernel, problem.batch * params.row_items * params.chunks, kPagedThreads, 0, stream, params);
    params.row_items = 0;
    params.layout_count = pool_count = 0;
  };
  for (const Planned& planned : all) {
    for (size_t next = 0; next < planned.pools.size();) {
      if (params.layout_count == MoveParams::kMaxLayouts || pool_count == MoveParams::kMaxPools) flush();
      const size_t count =
          std::min(planned.pools.size() - next, static_cast<size_t>(MoveParams::kMaxPools - pool_count));
      PoolLayout& layout = params.layouts[params.layout_count++];
      layout = planned.layout;
      layout.first_pool = pool_count;
      layout.first_item = params.row_items;
      for (size_t i = 0; i < count; ++i) params.pools[pool_count++] = planned.pools[next++];
      params.row_items += layout.items * static_cast<int64_t>(count);
    }
  }
  if (params.row_items > 0 && (problem.kept > 0 || packed)) flush();
}

}  // namespace vtkernels::cuda
