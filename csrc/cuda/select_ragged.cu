#include <vtkernels/cuda/launch_select.h>

#include <algorithm>
#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/select.cuh>
#include <vtkernels/cuda/top_p.cuh>

namespace vtkernels::cuda {
namespace {

constexpr unsigned kNothing = ~0u;  // above every key

template <int kThreads>
struct RaggedShared {
  typename TopK<kThreads, 16>::Shared select;
  typename TopP<kThreads>::Shared top_p;
  unsigned count;
};

// Writes the keys above `cut` and the first `ties` of those equal to it, or the `min_keep` best where these are fewer.
template <int kThreads, class Row>
__device__ void finish_row(RaggedShared<kThreads>& s, Row& row, unsigned cut, unsigned ties, unsigned min_keep,
                           const RaggedView& out) {
  using Select = TopK<kThreads, 16>;
  const int64_t b = blockIdx.x;
  if (threadIdx.x == 0) s.count = ties;
  __syncthreads();
  unsigned above = 0;
  row.for_each([&](unsigned key) { above += key > cut; });
  atomicAdd(&s.count, above);
  __syncthreads();
  unsigned count = s.count;
  if (count < min_keep) {
    count = min_keep;
    ties = Select::find_threshold(s.select, row, min_keep, &cut);
  }
  Select::emit_from(s.select, row, cut, ties,
                    [&](unsigned rank, unsigned position) { store_index(out.indices, b, rank, position); });
  for (unsigned i = count + threadIdx.x; i < row.n; i += kThreads) store_index(out.indices, b, i, -1);
  if (threadIdx.x == 0) out.counts[b] = static_cast<int>(count);
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) threshold_kernel(const SelectThreshold p) {
  auto& s = shared_memory<RaggedShared<kThreads>>();
  const int64_t b = blockIdx.x;
  const float limit = p.thresholds == nullptr ? p.threshold : p.thresholds[b * p.thresholds_stride];
  const float* scores = p.scores.data + b * p.scores.batch_stride;
  const auto key_of = [&](unsigned i) { return selection_key(scores[i * p.scores.stride], p.largest); };
  typename TopK<kThreads, 16>::template Row<decltype(key_of)> row(static_cast<unsigned>(p.n), key_of);
  const unsigned cut = limit != limit ? kNothing : selection_key(limit, p.largest);
  finish_row(s, row, cut, 0, static_cast<unsigned>(p.min_keep), p.out);
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) top_p_kernel(const SelectTopP p) {
  auto& s = shared_memory<RaggedShared<kThreads>>();
  const float* scores = p.scores.data + blockIdx.x * p.scores.batch_stride;
  const auto key_of = [&](unsigned i) { return selection_key(scores[i * p.scores.stride], true); };
  typename TopK<kThreads, 16>::template Row<decltype(key_of)> row(static_cast<unsigned>(p.n), key_of);
  unsigned cut = kNothing;
  const unsigned ties = TopP<kThreads>::find(s.top_p, row, static_cast<uint64_t>(p.part), &cut);
  finish_row(s, row, cut, ties, static_cast<unsigned>(p.min_keep), p.out);
}

constexpr int kPrefixThreads = 256;

// Runs as one block.
__global__ void __launch_bounds__(kPrefixThreads) prefix_kernel(const RaggedView out, int64_t batch) {
  int* warp_totals = &shared_memory<int>();
  int end = 0;
  if (threadIdx.x == 0) out.cu_seqlens[0] = 0;
  for (int64_t base = 0; base < batch; base += kPrefixThreads) {
    const int64_t b = base + threadIdx.x;
    const int count = b < batch ? out.counts[b] : 0;
    const Scanned ends = block_scan<kPrefixThreads>(count, warp_totals);
    __syncthreads();
    if (b < batch) out.cu_seqlens[b + 1] = end + ends.before + count;
    end += ends.total;
  }
}

template <class Problem>
void launch_rows(void (*small)(Problem), void (*large)(Problem), const Problem& p, Stream stream) {
  if (p.n > INT32_MAX) throw std::runtime_error("a row has more than 2^31 - 1 scores");
  if (p.batch > 0 && p.n <= TopK<256, 16>::kChunk) {
    launch(small, p.batch, 256, sizeof(RaggedShared<256>), stream, p);
  } else if (p.batch > 0) {
    launch(large, p.batch, 1024, sizeof(RaggedShared<1024>), stream, p);
  }
  launch(prefix_kernel, int64_t{1}, kPrefixThreads, kPrefixThreads / 32 * sizeof(int), stream, p.out, p.batch);
}

}  // namespace

void select_threshold(const SelectThreshold& problem, Stream stream) {
  launch_rows(threshold_kernel<256>, threshold_kernel<1024>, problem, stream);
}

void select_top_p(const SelectTopP& problem, Stream stream) {
  SelectTopP p = problem;
  p.min_keep = std::min(p.min_keep, p.n);
  launch_rows(top_p_kernel<256>, top_p_kernel<1024>, p, stream);
}

}  // namespace vtkernels::cuda
