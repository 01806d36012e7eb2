// The CUDA kernels that select and match tokens, as host functions. See launch.h.
#pragma once

#include <vtkernels/cuda/launch.h>

namespace vtkernels::cuda {

// Bytes of a bool tensor, [batch, n] or [n].
struct MaskView {
  const unsigned char* data;  // null where not given
  int64_t batch_stride, stride;
};

// Protected tokens come before all others, excluded ones are never selected.
struct SelectMasks {
  MaskView protected_tokens, excluded;
};

struct SelectDense {
  ScoreView scores;  // [batch, n]
  int64_t batch, n, k;
  bool largest;
  IntView ks;  // [batch]: how many of its k a row selects
  SelectMasks masks;
  bool by_score;  // the best first, else ascending positions
  IndexView out;  // [batch, k], -1 after the last one
  int* scratch;   // select_scratch(..) words where by_score
};

// int32 words of scratch that `select_topk` wants for an order by score, of any content.
constexpr int64_t select_scratch(int64_t batch, int64_t k) { return batch * (k + 1); }

// Positions of the k best scores of every row.
void select_topk(const SelectDense& problem, Stream stream);

struct SelectPacked {
  ScoreView scores;  // [tokens]
  int64_t batch, tokens, total_out;
  IntView cu_seqlens, k;  // [batch + 1], [batch]
  bool largest;
  SelectMasks masks;
  bool by_score;
  IndexView out;        // [total_out], -1 after the last one
  int* out_cu_seqlens;  // [batch + 1]
  int* scratch;         // select_packed_scratch(..) words
  int* status;          // or null
};

// int32 words of scratch of `select_topk_varlen`, of any content.
constexpr int64_t select_packed_scratch(int64_t batch, int64_t tokens, bool by_score) {
  return 4 * batch + (by_score ? tokens : 0);
}

// Positions of the best scores of packed segments, each with its own count.
void select_topk_varlen(const SelectPacked& problem, Stream stream);

// What rows of different lengths are written to.
struct RaggedView {
  IndexView indices;  // [batch, n], ascending in a row, then -1
  int* counts;        // [batch]
  int* cu_seqlens;    // [batch + 1]
};

struct SelectThreshold {
  ScoreView scores;  // [batch, n]
  int64_t batch, n, min_keep;
  bool largest;
  float threshold;
  const float* thresholds;  // [batch] or null: one per row in place of `threshold`
  int64_t thresholds_stride;
  RaggedView out;
};

// Positions of the scores on the far side of a threshold, or of the `min_keep` best where there are fewer.
void select_threshold(const SelectThreshold& problem, Stream stream);

struct SelectTopP {
  ScoreView scores;  // [batch, n]
  int64_t batch, n, min_keep;
  int64_t part;  // of the sum, in units of 2^-31
  RaggedView out;
};

// Positions of the fewest scores that hold a part of the row's sum, at least `min_keep`.
void select_top_p(const SelectTopP& problem, Stream stream);

struct MatchProblem {
  Dtype dtype;
  int64_t batch, n, width;
  TokenView tokens;
  int64_t merged;           // of a row's sources
  int64_t stride, guarded;  // every stride-th token is a target, but none of the first `guarded`, nor are they sources
  const float* bias;        // [batch, n], or null
  int64_t bias_batch, bias_token;
  IndexView sources, targets, kept;  // [batch, merged], [batch, merged], [batch, n - merged]
  ScoreView scores;                  // [batch, merged]
  int* scratch;                      // match_scratch(..) words

  int64_t target_count() const { return n / stride - guarded / stride; }
  int64_t source_count() const { return target_count() > 0 ? n - guarded - target_count() : 0; }
};

// int32 words of scratch of `match_bipartite`, of any content.
constexpr int64_t match_scratch(int64_t batch, int64_t sources, int64_t merged) {
  return batch * (2 * sources + merged);
}

// The sources most similar to a target, and the target of each.
void match_bipartite(const MatchProblem& problem, Stream stream);

}  // namespace vtkernels::cuda
