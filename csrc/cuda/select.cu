#include <vtkernels/cuda/launch.h>

#include <vtkernels/cuda/rows.cuh>
#include <vtkernels/cuda/select.cuh>
#include <vtkernels/cuda/workspace.cuh>

namespace vtkernels::cuda {
namespace {

template <int kThreads, int kItems>
__global__ void __launch_bounds__(kThreads)
    select_kernel(const ScoreView scores, unsigned n, unsigned k, bool largest, const IntView ks, const IndexView out) {
  using Select = TopK<kThreads, kItems>;
  const int64_t b = blockIdx.x;
  const float* row = scores.data + b * scores.batch_stride;
  const unsigned wanted = ks.data == nullptr ? k : static_cast<unsigned>(clamp(ks.data[b * ks.stride], 0, k));
  for (unsigned i = wanted + threadIdx.x; i < k; i += kThreads) store_index(out, b, i, -1);
  Select::run(
      shared_memory<typename Select::Shared>(), n, wanted,
      [&](unsigned i) { return selection_key(row[i * scores.stride], largest); },
      [&](unsigned rank, unsigned position) { store_index(out, b, rank, position); });
}

}  // namespace

void select_topk(const ScoreView& scores, int64_t batch, int64_t n, int64_t k, bool largest, const IntView& ks,
                 const IndexView& out, Stream stream) {
  if (batch == 0 || k == 0) return;
  if (n > INT32_MAX) throw std::runtime_error("select_topk: a row has more than 2^31 - 1 scores");
  const unsigned row = static_cast<unsigned>(n), kept = static_cast<unsigned>(k);
  using Small = TopK<256, 16>;
  using Large = TopK<1024, 16>;
  if (n <= Small::kChunk) {
    launch(select_kernel<256, 16>, batch, 256, sizeof(Small::Shared), stream, scores, row, kept, largest, ks, out);
  } else {
    launch(select_kernel<1024, 16>, batch, 1024, sizeof(Large::Shared), stream, scores, row, kept, largest, ks, out);
  }
}

}  // namespace vtkernels::cuda
