// The CUDA kernels as host functions: no framework, raw device pointers, work queued on a stream of the current device.
// Strides and sizes count elements. A failed launch throws std::runtime_error.
#pragma once

#include <cstdint>
#include <vector>

struct CUstream_st;

namespace vtkernels::cuda {

using Stream = CUstream_st*;

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

enum StatusBit : int {
  kBadIndex = 1,
  kBadSpan = 2,
  kBadSeqlens = 4,
  kTruncated = 8,
  kBadPage = 16,
  kSharedPage = 32,
};

// Index buffer, int32 or int64, [batch, kept]; of a gather [tensors, batch, heads, kept], where 1 is shared by all.
struct IndexView {
  void* data;  // may be null where the output is not wanted
  bool wide;   // int64
  int64_t batch_stride;
  int64_t stride;
  int64_t tensors = 1, heads = 1;
  int64_t tensor_stride = 0, head_stride = 0;
};

struct ScoreView {
  float* data;
  int64_t batch_stride;
  int64_t stride;
};

struct TokenView {
  const void* data;
  int64_t batch_stride, token_stride, dim_stride;
};

struct PrototypeView {
  const void* data;
  int64_t count;  // P >= 1
  int64_t stride, dim_stride;
  const float* rnorm;  // [P] or null: computed
  int64_t rnorm_stride;
};

enum class ScoreMetric { kCosine, kDot, kL2 };

struct ScoreProblem {
  Dtype dtype;
  int64_t width;  // D, of one group
  TokenView tokens;
  PrototypeView prototypes;
  int64_t groups = 1;  // with prototypes of their own
  int64_t token_group_stride = 0, prototype_group_stride = 0;
};

// Groups lie side by side in the outputs, [batch, tokens, groups].
void prototype_scores(const ScoreProblem& problem, ScoreMetric metric, int64_t batch, int64_t tokens,
                      const ScoreView& scores, const IndexView& argmax, Stream stream);

// Frames of tokens, [batch, frames, tokens, width].
struct TemporalProblem {
  Dtype dtype;
  enum class Metric { kCosine, kL1, kL2 } metric;
  int64_t batch, frames, tokens, width;
  const void* data;
  int64_t batch_stride, frame_stride, token_stride, dim_stride;
  float first;  // the score of frame 0
  float* out;   // [batch, frames, tokens], last stride 1
  int64_t out_batch, out_frame;
};

// Each token against that in its place of the frame before.
void temporal_scores(const TemporalProblem& problem, Stream stream);

struct IntView {
  const int* data;  // may be null where the argument is optional
  int64_t stride;
};

// A tensor whose token rows are gathered, and where they go: same shape but for the token dimension.
struct GatherTensor {
  const void* src;
  void* dst;
  int64_t element_size;  // bytes
  std::vector<int64_t> sizes, src_strides, dst_strides;
  int batch_dim;  // -1: no batch dimension
  int token_dim;
  int head_dim = -1;  // where heads have indices of their own
};

// dst[b, .., j, ..] = src[b, .., indices[b, j], ..], zeros where an index is outside [0, tokens).
// A bad index sets kBadIndex in `status` unless that is null.
void gather(const std::vector<GatherTensor>& tensors, const IndexView& indices, int64_t batch, int64_t tokens,
            int64_t kept, int* status, Stream stream);

// The same with dst == src and equal strides; zeros also where an index is below its j, for that row is gone by then.
void gather_inplace(const std::vector<GatherTensor>& tensors, const IndexView& indices, int64_t batch, int64_t tokens,
                    int64_t kept, int* status, Stream stream);

// Keys [batch, heads, tokens, width] turned by the difference of two positions. `deltas` [axes, batch, tokens].
struct RotateProblem {
  Dtype dtype;
  int64_t batch, heads, tokens, width;
  const void* keys;
  int64_t key_batch, key_head, key_token, key_dim;
  void* out;  // may be the keys; last stride 1
  int64_t out_batch, out_head, out_token;
  int64_t axes, pairs;  // 2 * pairs <= width
  const void* deltas;
  bool wide;  // deltas are int64
  int64_t delta_axis, delta_batch, delta_token;
  const float* inv_freq;  // [axes, pairs]
  int64_t freq_axis, freq_pair;
  bool interleaved;
};

void rotate_keys(const RotateProblem& problem, Stream stream);

struct PageTable {
  const int* data;  // [batch, width]; null where there is none
  int64_t width, batch_stride, stride;
};

// A pool of pages: [blocks, block_size, heads, width], strides in elements.
struct PagePool {
  void* data;
  int64_t element_size, heads, width;
  int64_t block_stride, token_stride, head_stride, dim_stride;
};

// Packed tokens of rows that a prune has thinned out. Those of row b lie in its cache from position context[b] on, or
// at its end; what lies before and after them stays.
struct PackedRows {
  int64_t tokens;
  IntView bounds, kept_bounds;  // [batch + 1], of the tokens and of their kept indices; null where there are none
  IntView context;              // [batch]
};

struct PagedCompaction {
  int64_t batch, blocks, block_size, kept;
  PageTable table, target;  // target.data is null in place
  IntView lengths, counts;
  IndexView indices;  // [batch, kept], or [kept] of packed rows
  PackedRows packed;
  bool allow_shared;
  int* out_lengths;
  IndexView slots;  // as indices; of packed rows dense
  int* freed;       // [batch, table.width]
  int64_t freed_batch_stride;
  int* status;         // or null
  int* claims;         // scratch: page_claims(..) words, zeroed
  int64_t* row_plans;  // scratch: page_plans(batch) words
};

// int32 words of zeroed scratch that a compaction counts pages in.
constexpr int64_t page_claims(int64_t blocks, bool in_place) { return blocks * (in_place ? 1 : 2); }

// int64 words of scratch for the plans of the rows.
constexpr int64_t page_plans(int64_t batch) { return 8 * batch; }

// Keeps the indexed tokens of every row, in its own pages or in those of `target`. A row that is not in order is left.
void compact_pages(const PagedCompaction& problem, const std::vector<PagePool>& pools, Stream stream);

// int32 words of a zeroed workspace for `batch` rows; every call leaves it zeroed.
constexpr int64_t workspace_size(int64_t batch) { return 64 + 8 * batch; }
void clear_workspace(int* workspace, int64_t batch, Stream stream);
void clear_words(int* words, int64_t count, Stream stream);

struct PruneDense {
  ScoreProblem score;
  int64_t batch, tokens, span_start, span_len, k;
  const int* span_starts;  // [B] or null
  int64_t span_starts_stride;
  bool keep_similar;
  ScoreView scores;   // [B, span_len]
  IndexView indices;  // [B, tokens - span_len + k]
  int* workspace;
  int* status;  // or null
};

// Scores and kept indices in one launch; the rows are then moved by `gather`.
void prune_topk(const PruneDense& problem, Stream stream);

struct PruneVarlen {
  ScoreProblem score;
  int64_t batch, tokens, total_out;
  IntView cu_seqlens, k, span_starts, span_lens;
  bool keep_similar;
  ScoreView scores;   // [tokens]
  IndexView indices;  // [total_out]
  int* out_cu_seqlens;
  int64_t out_cu_seqlens_stride;
  int* workspace;
  int* status;  // or null
};

// Metadata in one launch, scores and kept indices in a second.
void prune_topk_varlen(const PruneVarlen& problem, Stream stream);

}  // namespace vtkernels::cuda
