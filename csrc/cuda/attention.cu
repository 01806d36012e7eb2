// Attention scores in two passes over the keys: denominators of the rows, unless they are given, then what each key
// receives. Blocks split the keys; what several of them find is added in a fixed order.
#include <vtkernels/cuda/launch_attention.h>

#include <cmath>
#include <vtkernels/cuda/received.cuh>
#include <vtkernels/cuda/row_sums.cuh>
#include <vtkernels/cuda/score_launch.cuh>

namespace vtkernels::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool computes_sums(const AttentionProblem& a) { return a.lse == nullptr && !a.logits; }

int64_t sums_words(const AttentionProblem& a) {
  return computes_sums(a) ? ceil_div(a.keys, kSplitKeys) * a.batch * a.heads * a.rows : 0;
}

bool has_partial(const AttentionProblem& a) { return a.key_heads > 1 && a.reduce_heads != Reduce::kNone; }

AttentionParams params_of(const AttentionProblem& a) {
  const auto source = [&](const HeadsView& view) {
    return score_source(a.dtype, view.data, a.width, view.dim_stride,
                        {view.batch_stride, view.head_stride, view.token_stride});
  };
  AttentionParams p{};
  p.problem = a;
  p.query = source(a.query);
  p.key = source(a.key);
  p.group = static_cast<unsigned>(a.heads / a.key_heads);
  p.rows = static_cast<unsigned>(a.rows);
  p.key_heads = static_cast<unsigned>(a.key_heads);
  p.splits = static_cast<unsigned>(ceil_div(a.keys, kSplitKeys));
  p.factor = static_cast<float>(a.logits ? a.scale : a.scale / std::log(2.0));
  const int64_t words = sums_words(a);
  if (computes_sums(a)) {
    p.maxima = a.scratch;
    p.sums = a.scratch + words;
  }
  if (has_partial(a)) p.partial = a.scratch + 2 * words;
  // Packed tiles hold rows of several heads, which cannot be left out together where none of a head sees a key.
  const bool max_rows = a.reduce_rows == Reduce::kMax, max_heads = a.reduce_heads == Reduce::kMax;
  const bool together = a.reduce_heads != Reduce::kNone && max_rows == max_heads &&
                        (!a.causal || a.rows <= AttentionTile<float>::kColumns);
  p.heads_together = together ? p.group : 1;
  return p;
}

template <class T>
void launch_attention(const AttentionParams& p, Stream stream) {
  using Tile = AttentionTile<T>;
  const AttentionProblem& a = p.problem;
  const int64_t heads = a.batch * a.key_heads, rows = a.batch * a.heads * a.rows;
  if (p.sums != nullptr && rows > 0) {
    const int64_t tiles = ceil_div(static_cast<int64_t>(p.group) * p.rows, Tile::kRows);
    launch(row_sums_kernel<Tile>, heads * p.splits * tiles, Tile::kThreads, sizeof(RowSumsShared<Tile>), stream, p,
           static_cast<unsigned>(tiles));
    if (p.splits > 1) {
      launch(combine_rows_kernel, ceil_div(rows, kCombineThreads), kCombineThreads, 0, stream, p, rows);
    }
  }
  const int64_t tiles = ceil_div(a.count, Tile::kRows);
  const bool max = a.reduce_rows == Reduce::kMax;
  launch(max ? received_kernel<Tile, true> : received_kernel<Tile, false>, heads * tiles, Tile::kThreads,
         sizeof(ReceivedShared<Tile, false>), stream, p, static_cast<unsigned>(tiles));
  if (p.partial != nullptr) {
    launch(combine_heads_kernel, ceil_div(a.batch * a.count, kCombineThreads), kCombineThreads, 0, stream, p);
  }
}

}  // namespace

int64_t attention_scratch(const AttentionProblem& a) {
  return 2 * sums_words(a) + (has_partial(a) ? a.key_heads * a.batch * a.count : 0);
}

void attention_scores(const AttentionProblem& a, Stream stream) {
  if (a.batch == 0 || a.count == 0) return;
  if (a.rows > 0 && a.heads / a.key_heads > INT32_MAX / a.rows) {
    throw std::runtime_error("attention_scores: a key head serves more than 2^31 - 1 query rows");
  }
  const AttentionParams p = params_of(a);
  switch (a.dtype) {
    case Dtype::kFloat32:
      return launch_attention<float>(p, stream);
    case Dtype::kFloat16:
      return launch_attention<Half>(p, stream);
    case Dtype::kBFloat16:
      return launch_attention<BFloat16>(p, stream);
  }
}

}  // namespace vtkernels::cuda
