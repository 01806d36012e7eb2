// Rotary keys turned by the difference of two positions: a thread turns one pair of one token, in some of the heads.
#include <vtkernels/cuda/launch.h>

#include <algorithm>
#include <vtkernels/cuda/arch.cuh>

namespace vtkernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kHeads = 8;  // of one thread, which takes the sine once for all of them
constexpr int64_t kMaxBlocks = 1 << 20;

struct CosSin {
  float cosine, sine;
};

// Of an angle of any size: polynomials on a quarter turn around 0.
__device__ CosSin cos_sin(double angle) {
  const double quarters = angle * 0.63661977236758134308;
  const double whole = floor(quarters + 0.5);
  const float x = static_cast<float>((quarters - whole) * 1.57079632679489661923);
  const int quadrant = static_cast<int>(whole - 4.0 * floor(whole * 0.25));
  const float z = x * x;
  const float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  const float c =
      1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  const bool odd = quadrant % 2 == 1;
  const float cos_size = odd ? s : c, sin_size = odd ? c : s;
  return {quadrant == 1 || quadrant == 2 ? -cos_size : cos_size, quadrant >= 2 ? -sin_size : sin_size};
}

// Columns of a key: its pairs, then the dimensions that no pair turns.
template <class T>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const __grid_constant__ RotateProblem p, int64_t items) {
  const int64_t columns = p.width - p.pairs, head_groups = (p.heads + kHeads - 1) / kHeads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < items; item += step) {
    const int64_t column = item % columns, n = item / columns % p.tokens, group = item / columns / p.tokens;
    const int64_t first_head = group % head_groups * kHeads, b = group / head_groups;
    const int64_t last_head = first_head + kHeads < p.heads ? first_head + kHeads : p.heads;
    double angle = 0.0;
    for (int64_t axis = 0; column < p.pairs && axis < p.axes; ++axis) {
      const int64_t at = axis * p.delta_axis + b * p.delta_batch + n * p.delta_token;
      const int64_t delta =
          p.wide ? static_cast<const int64_t*>(p.deltas)[at] : static_cast<const int32_t*>(p.deltas)[at];
      angle += static_cast<double>(delta) * p.inv_freq[axis * p.freq_axis + column * p.freq_pair];
    }
    const bool turns = angle != 0.0;
    const CosSin turn = turns ? cos_sin(angle) : CosSin{};
    const int64_t x_dim = column >= p.pairs ? column + p.pairs : p.interleaved ? 2 * column : column;
    const int64_t y_dim = column >= p.pairs ? x_dim : p.interleaved ? x_dim + 1 : x_dim + p.pairs;
    const T* keys = static_cast<const T*>(p.keys) + b * p.key_batch + n * p.key_token;
    T* out = static_cast<T*>(p.out) + b * p.out_batch + n * p.out_token;
    for (int64_t h = first_head; h < last_head; ++h) {
      const T x = keys[h * p.key_head + x_dim * p.key_dim], y = keys[h * p.key_head + y_dim * p.key_dim];
      const float left = arch::to_float(x), right = arch::to_float(y);
      out[h * p.out_head + x_dim] = turns ? arch::from_float<T>(left * turn.cosine - right * turn.sine) : x;
      out[h * p.out_head + y_dim] = turns ? arch::from_float<T>(right * turn.cosine + left * turn.sine) : y;
    }
  }
}

}  // namespace

void rotate_keys(const RotateProblem& p, Stream stream) {
  const int64_t items = p.batch * ((p.heads + kHeads - 1) / kHeads) * p.tokens * (p.width - p.pairs);
  if (items == 0) return;
  const int64_t blocks = std::min((items + kThreads - 1) / kThreads, kMaxBlocks);
  switch (p.dtype) {
    case Dtype::kFloat32:
      return launch(rotate_kernel<float>, blocks, kThreads, 0, stream, p, items);
    case Dtype::kFloat16:
      return launch(rotate_kernel<Half>, blocks, kThreads, 0, stream, p, items);
    case Dtype::kBFloat16:
      return launch(rotate_kernel<BFloat16>, blocks, kThreads, 0, stream, p, items);
  }
}

}  // namespace vtkernels::cuda
