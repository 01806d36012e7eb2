// Compaction of paged caches in three launches: count how often each page is named, check and plan every row, move the
// tokens of all pools. The table of pools travels by value in the kernel's parameters.
#pragma once

#include <vtkernels/cuda/launch.h>

#include <vtkernels/cuda/arch.cuh>
#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/workspace.cuh>

namespace vtkernels::cuda {

constexpr int kPagedThreads = 256;
constexpr int kPagedUnroll = 4;  // loads under way per thread

// The tokens that a row keeps: positions 0 .. prefix, `listed` of the indices + base, then suffix .. its length.
struct RowPlan {
  int64_t count, begin;  // all of them, and the first that moves (the same number where none does)
  int64_t first, listed, base;
  int64_t prefix, suffix;
  int64_t flags;  // what is known to be wrong with the row
};
static_assert(sizeof(RowPlan) == page_plans(1) * sizeof(int64_t));

struct PagedRows {
  PagedCompaction p;

  __device__ int64_t length(int64_t b) const { return p.lengths.data[b * p.lengths.stride]; }
  __device__ int64_t held(int64_t b) const {
    const int64_t most = p.table.width * p.block_size, n = length(b);
    return n < 0 ? 0 : n > most ? most : n;
  }
  __device__ int64_t index(int64_t b, int64_t j) const {
    const int64_t at = b * p.indices.batch_stride + j * p.indices.stride;
    return p.indices.wide ? static_cast<const int64_t*>(p.indices.data)[at]
                          : static_cast<const int*>(p.indices.data)[at];
  }
  __device__ static int64_t page(const PageTable& t, int64_t b, int64_t i) {
    return t.data[b * t.batch_stride + i * t.stride];
  }
  __device__ int64_t pages_of(int64_t tokens) const { return (tokens + p.block_size - 1) / p.block_size; }
  __device__ bool in_pool(int64_t page) const { return page >= 0 && page < p.blocks; }
  __device__ int64_t position(int64_t b, const RowPlan& plan, int64_t place) const {
    if (place < plan.prefix) return place;
    const int64_t j = place - plan.prefix;
    return j < plan.listed ? index(b, plan.first + j) + plan.base : plan.suffix + j - plan.listed;
  }
  __device__ RowPlan& plan(int64_t b) const { return reinterpret_cast<RowPlan*>(p.row_plans)[b]; }
  __device__ const PageTable& target() const { return p.target.data != nullptr ? p.target : p.table; }
};

struct ClaimShared {
  unsigned long long begin;  // of the row's packed tokens
  int listed;
};

// The kept positions of a row whose indices are positions.
__device__ inline RowPlan indexed_row(const PagedRows& rows, ClaimShared& shared, int64_t b) {
  const PagedCompaction& p = rows.p;
  int64_t given = 0;
  if (p.counts.data != nullptr) {
    given = p.counts.data[b * p.counts.stride];
  } else {
    int mine = 0;
    for (int64_t j = threadIdx.x; j < p.kept; j += kPagedThreads) mine += rows.index(b, j) != -1;
    atomicAdd(&shared.listed, mine);
    __syncthreads();
    given = shared.listed;
  }
  const int64_t listed = clamp(given, 0, p.kept);
  return {listed, 0, 0, listed, 0, 0, rows.held(b), listed == given ? 0 : kBadIndex};
}

// The kept positions of a row of packed tokens. Every bound is at least the one before it.
__device__ inline RowPlan packed_row(const PagedRows& rows, ClaimShared& shared, int64_t b) {
  const PackedRows& packed = rows.p.packed;
  const auto bound = [&](int64_t i) { return clamp(packed.bounds.data[i * packed.bounds.stride], 0, packed.tokens); };
  int64_t mine = 0;
  for (int64_t i = threadIdx.x; i <= b; i += kPagedThreads) mine = bound(i) > mine ? bound(i) : mine;
  atomicMax(&shared.begin, static_cast<unsigned long long>(mine));
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(shared.begin), end = bound(b + 1), tokens = end > begin ? end - begin : 0;
  const int64_t context =
      packed.context.data != nullptr ? packed.context.data[b * packed.context.stride] : rows.length(b) - tokens;
  const int64_t held = rows.held(b), prefix = clamp(context, 0, held), suffix = clamp(context + tokens, prefix, held);
  const int64_t first = packed.kept_bounds.data[b * packed.kept_bounds.stride];
  const int64_t listed = packed.kept_bounds.data[(b + 1) * packed.kept_bounds.stride] - first;
  const bool fits = prefix == context && suffix == context + tokens;
  return {prefix + listed + held - suffix, 0, first, listed, context - begin, prefix, suffix, fits ? 0 : kBadSeqlens};
}

// One block per row: the tokens that it keeps, and a count for each page that it names.
__global__ void __launch_bounds__(kPagedThreads) claim_pages_kernel(const __grid_constant__ PagedRows rows) {
  const PagedCompaction& p = rows.p;
  ClaimShared& shared = shared_memory<ClaimShared>();
  const int64_t b = blockIdx.x;
  if (threadIdx.x == 0) shared = {0, 0};
  __syncthreads();
  const RowPlan plan = p.packed.bounds.data != nullptr ? packed_row(rows, shared, b) : indexed_row(rows, shared, b);
  if (threadIdx.x == 0) rows.plan(b) = plan;
  const int64_t held = rows.held(b);
  // A row whose length is bad may hold any page of its table.
  const int64_t named = held == rows.length(b) ? rows.pages_of(held) : p.table.width;
  for (int64_t i = threadIdx.x; i < named; i += kPagedThreads) {
    const int64_t page = rows.page(p.table, b, i);
    if (rows.in_pool(page)) atomicAdd(p.claims + page, 1);
  }
  if (p.target.data == nullptr) return;
  const int64_t wanted = clamp(rows.pages_of(plan.count), 0, p.target.width);
  for (int64_t i = threadIdx.x; i < wanted; i += kPagedThreads) {
    const int64_t page = rows.page(p.target, b, i);
    if (rows.in_pool(page)) atomicAdd(p.claims + p.blocks + page, 1);
  }
}

struct PlanShared {
  unsigned long long moved;  // tokens from the first that moves on
  int flags;
};

// One block per row: decides about the row and writes its outputs.
__global__ void __launch_bounds__(kPagedThreads) plan_pages_kernel(const __grid_constant__ PagedRows rows) {
  const PagedCompaction& p = rows.p;
  PlanShared& shared = shared_memory<PlanShared>();
  const int64_t b = blockIdx.x, held = rows.held(b);
  const RowPlan plan = rows.plan(b);
  const int64_t count = plan.count, listed_end = plan.prefix + plan.listed;
  const bool in_place = p.target.data == nullptr;
  if (threadIdx.x == 0) shared = {0, 0};
  __syncthreads();
  int flags = static_cast<int>(plan.flags) | (held != rows.length(b) ? kBadSeqlens : 0);
  int64_t moved = plan.suffix == listed_end ? 0 : count - listed_end;
  for (int64_t place = listed_end - 1 - threadIdx.x; place >= plan.prefix; place -= kPagedThreads) {
    const int64_t position = rows.position(b, plan, place);
    const int64_t before = place > plan.prefix ? rows.position(b, plan, place - 1) : place - 1;
    if (position <= before || position < 0 || position >= plan.suffix) flags |= kBadIndex;
    if (position != place) moved = count - place;
  }
  if (moved != 0) atomicMax(&shared.moved, static_cast<unsigned long long>(moved));
  __syncthreads();
  const int64_t stay = count - static_cast<int64_t>(shared.moved);
  const int64_t live = rows.pages_of(held), used = rows.pages_of(count);
  const int64_t own = !in_place ? 0 : stay < count ? stay / p.block_size : used;
  for (int64_t i = threadIdx.x; i < live; i += kPagedThreads) {
    const int64_t page = rows.page(p.table, b, i);
    if (!rows.in_pool(page)) {
      flags |= kBadPage;
    } else if (!p.allow_shared && i >= own && p.claims[page] > 1) {
      flags |= kSharedPage;
    }
  }
  if (!in_place) {
    if (used > p.target.width) flags |= kBadSeqlens;
    for (int64_t i = threadIdx.x; i < used && i < p.target.width; i += kPagedThreads) {
      const int64_t page = rows.page(p.target, b, i);
      if (!rows.in_pool(page)) {
        flags |= kBadPage;
      } else if (p.claims[page] > 0 || p.claims[p.blocks + page] > 1) {
        flags |= kSharedPage;
      }
    }
  }
  if (flags != 0) atomicOr(&shared.flags, flags);
  __syncthreads();
  const bool done = shared.flags == 0;
  if (threadIdx.x == 0) {
    if (!done && p.status != nullptr) atomicOr(p.status, shared.flags);
    rows.plan(b).begin = !done ? count : in_place ? stay : 0;
    p.out_lengths[b] = static_cast<int>(done ? count : in_place ? rows.length(b) : 0);
  }
  const int64_t unused = in_place ? used : 0;
  for (int64_t i = threadIdx.x; i < p.table.width; i += kPagedThreads) {
    p.freed[b * p.freed_batch_stride + i] =
        done && unused + i < live ? static_cast<int>(rows.page(p.table, b, unused + i)) : -1;
  }
  const int64_t places = p.packed.bounds.data != nullptr ? plan.listed : p.kept;
  for (int64_t j = threadIdx.x; j < places; j += kPagedThreads) {
    const int64_t place = plan.prefix + j;
    int64_t slot = -1;
    if (done && j < plan.listed) {
      slot = rows.page(rows.target(), b, place / p.block_size) * p.block_size + place % p.block_size;
    }
    store_index(p.slots, b, plan.first + j, slot);
  }
}

// Pools of one shape: two outer axes and a run of `inner` vectors per token. Strides in bytes.
struct PoolLayout {
  int64_t block_stride, token_stride;
  int64_t outer[2], outer_stride[2];
  int64_t inner, inner_stride;
  int64_t columns;  // stripes that the run is cut into
  int64_t items;    // per pool
  int64_t first_item;
  int first_pool;
  int width;  // bytes of a vector: 1, 2, 4, 8 or 16
  int tile_tokens, tile_inner;
};

struct MoveParams {
  static constexpr int kMaxPools = 320;
  static constexpr int kMaxLayouts = 8;

  PagedRows rows;
  int64_t row_items, chunks;
  int layout_count;
  PoolLayout layouts[kMaxLayouts];
  char* pools[kMaxPools];
};
static_assert(sizeof(MoveParams) <= 4096, "kernel parameters of every architecture end at 4 KB");

// Tokens of a row in order, tile after tile, as far as this stripe of their bytes goes.
template <class V>
__device__ void move_tokens(const MoveParams& params, const PoolLayout& layout, char* pool, int64_t b, int64_t column,
                            int64_t chunk) {
  const PagedRows& rows = params.rows;
  const PagedCompaction& p = rows.p;
  const bool in_place = p.target.data == nullptr;
  const PageTable& target = rows.target();
  const RowPlan plan = rows.plan(b);
  pool += column * layout.tile_inner * layout.inner_stride;
  const int64_t inner_left = layout.inner - column * layout.tile_inner;
  const unsigned inner = inner_left < layout.tile_inner ? static_cast<unsigned>(inner_left) : layout.tile_inner;
  const int64_t step = params.chunks * layout.tile_tokens;
  const unsigned size = static_cast<unsigned>(p.block_size);  // the launcher has checked that it fits
  for (int64_t first = plan.begin + chunk * layout.tile_tokens; first < plan.count; first += step) {
    const int64_t left = plan.count - first;
    const unsigned tokens = left < layout.tile_tokens ? static_cast<unsigned>(left) : layout.tile_tokens;
    V values[kPagedUnroll];
    char* to[kPagedUnroll];
#pragma unroll
    for (int i = 0; i < kPagedUnroll; ++i) {
      const unsigned unit = threadIdx.x + i * kPagedThreads;
      to[i] = nullptr;
      values[i] = V{};
      if (unit >= tokens * inner) continue;
      const unsigned place = static_cast<unsigned>(first) + unit / inner;
      const unsigned position = static_cast<unsigned>(rows.position(b, plan, place));  // within a length, below 2^31
      const int64_t byte = unit % inner * layout.inner_stride;
      const char* from = pool + rows.page(p.table, b, position / size) * layout.block_stride +
                         position % size * layout.token_stride + byte;
      to[i] =
          pool + rows.page(target, b, place / size) * layout.block_stride + place % size * layout.token_stride + byte;
      values[i] = arch::load_streaming<V>(from);
    }
    // A token may go where another of this tile came from. It never goes past its own place, so what later tiles read
    // has not been written.
    if (in_place) __syncthreads();
#pragma unroll
    for (int i = 0; i < kPagedUnroll; ++i) {
      if (to[i] != nullptr) arch::store_streaming<V>(to[i], values[i]);
    }
  }
}

__global__ void __launch_bounds__(kPagedThreads) move_pages_kernel(const __grid_constant__ MoveParams params) {
  const int64_t chunk = blockIdx.x % params.chunks, row_item = blockIdx.x / params.chunks;
  const int64_t b = row_item / params.row_items;
  int64_t item = row_item % params.row_items;
  int l = 0;
  while (l + 1 < params.layout_count && item >= params.layouts[l + 1].first_item) ++l;
  const PoolLayout& layout = params.layouts[l];
  item -= layout.first_item;
  char* pool = params.pools[layout.first_pool + item / layout.items];
  item %= layout.items;
  const int64_t column = item % layout.columns;
  item /= layout.columns;
  pool += item % layout.outer[0] * layout.outer_stride[0] + item / layout.outer[0] * layout.outer_stride[1];
  switch (layout.width) {
    case 16:
      move_tokens<uint4>(params, layout, pool, b, column, chunk);
      break;
    case 8:
      move_tokens<uint2>(params, layout, pool, b, column, chunk);
      break;
    case 4:
      move_tokens<unsigned>(params, layout, pool, b, column, chunk);
      break;
    case 2:
      move_tokens<unsigned short>(params, layout, pool, b, column, chunk);
      break;
    default:
      move_tokens<unsigned char>(params, layout, pool, b, column, chunk);
  }
}

}  // namespace vtkernels::cuda
