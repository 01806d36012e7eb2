#include <algorithm>
#include <vtkernels/cuda/masks.cuh>
#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/workspace.cuh>

namespace vtkernels::cuda {
namespace {

// Scratch, where rows are ranked: how many each selected, then their positions.
__device__ int* chosen_of(const SelectDense& p, int64_t b) { return p.scratch + p.batch + b * p.k; }

template <int kThreads, bool kMasked>
__global__ void __launch_bounds__(kThreads) select_kernel(const SelectDense p) {
  using Select = TopK<kThreads, 16>;
  auto& s = shared_memory<MaskedShared<Select>>();
  const int64_t b = blockIdx.x;
  const SelectRow row = select_row(p.scores, p.masks, p.largest, b, 0);
  const unsigned k = static_cast<unsigned>(p.k);
  const unsigned wanted = p.ks.data == nullptr ? k : static_cast<unsigned>(clamp(p.ks.data[b * p.ks.stride], 0, k));
  const unsigned count = select_from<Select, kMasked>(s.select, s.counts, row, static_cast<unsigned>(p.n), wanted,
                                                      [&](unsigned rank, unsigned position) {
                                                        if (p.by_score) {
                                                          chosen_of(p, b)[rank] = static_cast<int>(position);
                                                        } else {
                                                          store_index(p.out, b, rank, position);
                                                        }
                                                      });
  for (unsigned i = count + threadIdx.x; i < k; i += kThreads) store_index(p.out, b, i, -1);
  if (p.by_score && threadIdx.x == 0) p.scratch[b] = static_cast<int>(count);
}

__global__ void __launch_bounds__(kRankThreads) rank_kernel(const SelectDense p, unsigned parts) {
  const int64_t b = blockIdx.x / parts;
  rank_selected(&shared_memory<unsigned long long>(), select_row(p.scores, p.masks, p.largest, b, 0), chosen_of(p, b),
                static_cast<unsigned>(p.scratch[b]), blockIdx.x % parts, parts,
                [&](unsigned rank, int position) { store_index(p.out, b, rank, position); });
}

template <int kThreads>
void launch_select(const SelectDense& p, Stream stream) {
  const bool masked = p.masks.protected_tokens.data != nullptr || p.masks.excluded.data != nullptr;
  launch(masked ? select_kernel<kThreads, true> : select_kernel<kThreads, false>, p.batch, kThreads,
         sizeof(MaskedShared<TopK<kThreads, 16>>), stream, p);
}

}  // namespace

void select_topk(const SelectDense& p, Stream stream) {
  if (p.batch == 0 || p.k == 0) return;
  if (p.n > INT32_MAX) throw std::runtime_error("select_topk: a row has more than 2^31 - 1 scores");
  p.n <= TopK<256, 16>::kChunk ? launch_select<256>(p, stream) : launch_select<1024>(p, stream);
  if (!p.by_score) return;
  const auto parts = static_cast<unsigned>(std::min<int64_t>(kRankParts, (p.k + kRankThreads - 1) / kRankThreads));
  launch(rank_kernel, p.batch * parts, kRankThreads, kRankThreads * sizeof(unsigned long long), stream, p, parts);
}

}  // namespace vtkernels::cuda
