#include <vtkernels/cuda/launch.h>

#include <algorithm>
#include <vtkernels/cuda/temporal.cuh>

namespace vtkernels::cuda {
namespace {

constexpr int64_t kFewestFrames = 8;  // that a block walks, for it reads one more

template <class T, int kGroup>
void launch_temporal(const TemporalProblem& problem, Stream stream) {
  constexpr int kTokens = kTemporalThreads / kGroup;
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const auto aligned = [](int64_t stride) { return stride * static_cast<int64_t>(sizeof(T)) % 16 == 0; };
  TemporalParams p{};
  p.problem = problem;
  p.vectors = (problem.dim_stride == 1 || problem.width <= 1) && reinterpret_cast<uintptr_t>(problem.data) % 16 == 0 &&
              aligned(problem.batch_stride) && aligned(problem.frame_stride) && aligned(problem.token_stride);
  p.tiles = (problem.tokens + kTokens - 1) / kTokens;
  const int64_t filled = int64_t{16} * multiprocessors;  // blocks that keep the GPU busy
  const int64_t wanted = (filled + problem.batch * p.tiles - 1) / (problem.batch * p.tiles);
  p.frames_per_block = std::max(kFewestFrames, (problem.frames + wanted - 1) / wanted);
  p.chunks = (problem.frames + p.frames_per_block - 1) / p.frames_per_block;
  launch(temporal_kernel<T, kGroup>, problem.batch * p.chunks * p.tiles, kTemporalThreads, sizeof(TemporalShared),
         stream, p);
}

template <class T>
void launch_of_type(const TemporalProblem& problem, Stream stream) {
  const bool narrow = problem.width * static_cast<int64_t>(sizeof(T)) <= 32 * kHeldUnits * 16;
  narrow ? launch_temporal<T, 32>(problem, stream) : launch_temporal<T, kTemporalThreads>(problem, stream);
}

}  // namespace

void temporal_scores(const TemporalProblem& problem, Stream stream) {
  if (problem.batch == 0 || problem.frames == 0 || problem.tokens == 0) return;
  if (problem.width > INT32_MAX) throw std::runtime_error("temporal_scores: a token has more than 2^31 - 1 elements");
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return launch_of_type<float>(problem, stream);
    case Dtype::kFloat16:
      return launch_of_type<Half>(problem, stream);
    case Dtype::kBFloat16:
      return launch_of_type<BFloat16>(problem, stream);
  }
}

}  // namespace vtkernels::cuda
