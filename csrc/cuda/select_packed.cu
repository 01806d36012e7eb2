#include <algorithm>
#include <vtkernels/cuda/masks.cuh>
#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/workspace.cuh>

namespace vtkernels::cuda {
namespace {

struct Segment {
  int begin, end, count, out_begin;  // all in range; `out_begin` may lie past `total_out`
};

__device__ Segment* segments_of(const SelectPacked& p) { return reinterpret_cast<Segment*>(p.scratch); }

// Positions within the segment, where segments are ranked.
__device__ int* chosen_of(const SelectPacked& p, const Segment& segment) {
  return p.scratch + 4 * p.batch + segment.begin;
}

__device__ SelectRow row_of(const SelectPacked& p, const Segment& segment) {
  return select_row(p.scores, p.masks, p.largest, 0, segment.begin);
}

constexpr int kPlanThreads = 256;

// Clamps bounds and counts and flags what was out of range. Runs as one block.
__device__ void plan_bounds(const SelectPacked& p, int* warp_totals) {
  const int tokens = static_cast<int>(p.tokens);
  const auto bound = [&](int64_t i) {
    const int asked = p.cu_seqlens.data[i * p.cu_seqlens.stride];
    return asked < 0 ? 0 : asked > tokens ? tokens : asked;
  };
  int end = bound(0);  // of all segments before `base`
  int flags = p.cu_seqlens.data[0] != 0 ? kBadSeqlens : 0;
  for (int64_t base = 0; base < p.batch; base += kPlanThreads) {
    const int64_t b = base + threadIdx.x;
    const int own_end = b < p.batch ? bound(b + 1) : 0;
    const Scanned ends = block_scan<kPlanThreads, Max>(own_end, warp_totals);
    __syncthreads();
    if (b < p.batch) {
      Segment segment{};
      segment.begin = ends.before > end ? ends.before : end;
      segment.end = own_end > segment.begin ? own_end : segment.begin;
      if (segment.end != p.cu_seqlens.data[(b + 1) * p.cu_seqlens.stride]) flags |= kBadSeqlens;
      const int asked = p.k.data[b * p.k.stride];
      segment.count = static_cast<int>(clamp(asked, 0, segment.end - segment.begin));
      if (segment.count != asked) flags |= kBadSpan;
      segments_of(p)[b] = segment;
    }
    end = ends.total > end ? ends.total : end;
  }
  if (flags != 0 && p.status != nullptr) atomicOr(p.status, flags);
}

// Lays out what is selected. Runs as one block, of which every thread has the same segments as before.
__device__ void plan_outputs(const SelectPacked& p, int* warp_totals) {
  int out_end = 0;
  for (int64_t base = 0; base < p.batch; base += kPlanThreads) {
    const int64_t b = base + threadIdx.x;
    const int count = b < p.batch ? segments_of(p)[b].count : 0;
    const Scanned outs = block_scan<kPlanThreads>(count, warp_totals);
    __syncthreads();
    if (b < p.batch) {
      segments_of(p)[b].out_begin = out_end + outs.before;
      p.out_cu_seqlens[b + 1] = static_cast<int>(clamp(out_end + outs.before + count, 0, p.total_out));
    }
    out_end += outs.total;
  }
  if (threadIdx.x == 0) {
    p.out_cu_seqlens[0] = 0;
    if (out_end > p.total_out && p.status != nullptr) atomicOr(p.status, kTruncated);
  }
  for (int64_t i = out_end + static_cast<int64_t>(threadIdx.x); i < p.total_out; i += kPlanThreads) {
    store_index(p.out, 0, i, -1);
  }
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const SelectPacked p, bool bounds, bool outputs) {
  int* warp_totals = &shared_memory<int>();
  if (bounds) plan_bounds(p, warp_totals);
  if (outputs) plan_outputs(p, warp_totals);
}

// A segment selects no more than it has tokens that are not excluded.
__global__ void __launch_bounds__(kPlanThreads) census_kernel(const SelectPacked p) {
  Segment& segment = segments_of(p)[blockIdx.x];
  const Census census = take_census(row_of(p, segment), static_cast<unsigned>(segment.end - segment.begin),
                                    *reinterpret_cast<unsigned (*)[2]>(&shared_memory<unsigned>()));
  const int eligible = static_cast<int>(census.ordinary + census.protected_tokens);
  if (threadIdx.x == 0 && eligible < segment.count) segment.count = eligible;
}

template <int kThreads, bool kMasked>
__global__ void __launch_bounds__(kThreads) select_packed_kernel(const SelectPacked p) {
  using Select = TopK<kThreads, 16>;
  auto& s = shared_memory<MaskedShared<Select>>();
  const Segment segment = segments_of(p)[blockIdx.x];
  select_from<Select, kMasked>(
      s.select, s.counts, row_of(p, segment), static_cast<unsigned>(segment.end - segment.begin),
      static_cast<unsigned>(segment.count), [&](unsigned rank, unsigned position) {
        if (p.by_score) {
          chosen_of(p, segment)[rank] = static_cast<int>(position);
        } else if (segment.out_begin + static_cast<int64_t>(rank) < p.total_out) {
          store_index(p.out, 0, segment.out_begin + static_cast<int64_t>(rank), segment.begin + position);
        }
      });
}

__global__ void __launch_bounds__(kRankThreads) rank_packed_kernel(const SelectPacked p, unsigned parts) {
  const Segment segment = segments_of(p)[blockIdx.x / parts];
  rank_selected(&shared_memory<unsigned long long>(), row_of(p, segment), chosen_of(p, segment),
                static_cast<unsigned>(segment.count), blockIdx.x % parts, parts, [&](unsigned rank, int position) {
                  const int64_t at = segment.out_begin + static_cast<int64_t>(rank);
                  if (at < p.total_out) store_index(p.out, 0, at, segment.begin + position);
                });
}

template <int kThreads>
void launch_select(const SelectPacked& p, bool masked, Stream stream) {
  launch(masked ? select_packed_kernel<kThreads, true> : select_packed_kernel<kThreads, false>, p.batch, kThreads,
         sizeof(MaskedShared<TopK<kThreads, 16>>), stream, p);
}

}  // namespace

void select_topk_varlen(const SelectPacked& p, Stream stream) {
  if (p.tokens > INT32_MAX) throw std::runtime_error("select_topk_varlen: more than 2^31 - 1 packed scores");
  const bool excluded = p.masks.excluded.data != nullptr;
  const auto plan = [&](bool bounds, bool outputs) {
    launch(plan_kernel, int64_t{1}, kPlanThreads, kPlanThreads / 32 * sizeof(int), stream, p, bounds, outputs);
  };
  plan(true, !excluded);
  if (excluded) {
    if (p.batch > 0) launch(census_kernel, p.batch, kPlanThreads, 2 * sizeof(unsigned), stream, p);
    plan(false, true);
  }
  if (p.batch == 0 || p.total_out == 0) return;
  // Lengths are on the device: most segments are expected to be of the mean one.
  const int64_t length = (p.tokens + p.batch - 1) / p.batch;
  const bool masked = excluded || p.masks.protected_tokens.data != nullptr;
  length <= TopK<256, 16>::kChunk ? launch_select<256>(p, masked, stream) : launch_select<1024>(p, masked, stream);
  if (!p.by_score) return;
  const auto parts =
      static_cast<unsigned>(std::clamp<int64_t>((length + kRankThreads - 1) / kRankThreads, 1, kRankParts));
  launch(rank_packed_kernel, p.batch * parts, kRankThreads, kRankThreads * sizeof(unsigned long long), stream, p,
         parts);
}

}  // namespace vtkernels::cuda
