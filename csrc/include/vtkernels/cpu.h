// The CPU kernels: no framework, raw pointers, threads through a pool that the caller brings.
#pragma once

#include <cstdint>
#include <vector>

namespace vtkernels::cpu {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Instruction sets of the score kernel, weakest first. kAvx512Bf16Emulated runs the bf16 kernel's layout with plain
// AVX-512 arithmetic, so that it can be tested where the processor has no bf16 instructions.
enum class Isa : int32_t { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAvx512Bf16Emulated = 4 };

// The best set of this processor, and the one in use: the fastest, which is not always the best, unless limited.
Isa supported_isa();
Isa current_isa();
void limit_isa(Isa highest);

// Calls body(context, begin, end) on disjoint ranges that cover [0, count), possibly from several threads. Without
// `run` everything happens on the calling thread, and so does work that fits one grain.
using ParallelBody = void (*)(void* context, int64_t begin, int64_t end);
struct Parallel {
  void (*run)(int64_t count, int64_t grain, ParallelBody body, void* context);

  template <typename F>
  void operator()(int64_t count, int64_t grain, F&& body) const {
    if (count <= 0) return;
    if (run == nullptr || count <= grain) return body(int64_t{0}, count);
    using Body = std::remove_reference_t<F>;
    run(
        count, grain, [](void* c, int64_t b, int64_t e) { (*static_cast<Body*>(c))(b, e); },
        const_cast<std::remove_const_t<Body>*>(&body));
  }
};

// `count` consecutive token rows that compete, and where their scores go.
struct Segment {
  int64_t first;   // row number, times Tokens::row_stride
  int64_t offset;  // elements before row 0 (the batch)
  int64_t count;
  int64_t scores;  // index of the first score
};

struct Matrix {
  const void* data;
  int64_t row_stride;  // in elements, like col_stride
  int64_t col_stride;
};

struct IndexOut {
  void* data;
  bool wide;  // int64, else int32

  void store(int64_t at, int64_t value) const {
    if (wide) {
      static_cast<int64_t*>(data)[at] = value;
    } else {
      static_cast<int32_t*>(data)[at] = static_cast<int32_t>(value);
    }
  }
};

// What becomes of the similarities of a token: the best one; the m best; the largest weight of a softmax over the
// prototypes, or, when token_sums are given, of that times the softmax over the tokens; or sums over tokens of their
// exponentials, kSumTokens rows at a time.
enum class ScoreMode : int32_t { kBest, kTop, kSoftmax, kTokenSums };
constexpr int64_t kSumTokens = 256;

struct ScoreProblem {
  DType dtype;
  Matrix tokens;
  Matrix prototypes;
  int64_t width;            // D
  int64_t prototype_count;  // P
  const float* rnorm;       // [P], or null: computed
  bool cosine;
  float* scores;
  IndexOut argmax;           // data may be null
  bool l2 = false;           // negative squared distances, without cosine
  int64_t score_stride = 1;  // between the scores of the tokens of a segment
  int64_t rnorm_stride = 1;
  ScoreMode mode = ScoreMode::kBest;
  int64_t m = 1;                // kTop: scores and argmax hold m entries for each token
  float* token_sums = nullptr;  // kSoftmax: [segments][P]; kTokenSums: [scores / kSumTokens][P], starting from zeros
};

// Scores of every row of every segment, by the rules of vtkernels.prototype_scores.
void prototype_scores(const Parallel& parallel, const ScoreProblem& problem, const Segment* segments,
                      int64_t segment_count);

// Softmax scores of rows of n tokens, by the rules of vtkernels.prototype_softmax_scores.
void prototype_softmax_scores(const Parallel& parallel, ScoreProblem problem, const Segment* segments,
                              int64_t segment_count, bool over_tokens);

// Positions of the k best of n scores, ascending, into out[at ..] with `base` added.
void select_row(const float* scores, int64_t stride, int64_t n, int64_t k, bool largest, int64_t base,
                const IndexOut& out, int64_t at);

// One tensor whose token rows move: [batch, outer, tokens, row], with strides in bytes. A row is `width` elements of
// `element` bytes, `src_step` bytes apart in the source, dense in the destination.
struct RowCopy {
  const char* src;
  char* dst;
  int64_t outer;
  int64_t width;
  int64_t element;
  int64_t src_step;
  int64_t src_batch, src_outer, src_token;
  int64_t dst_batch, dst_outer, dst_token;
};

struct Indices {
  const void* data;
  bool wide;
  int64_t batch_stride, token_stride;           // in elements
  int64_t tensor_stride = 0, outer_stride = 0;  // 0: shared

  int64_t at(int64_t batch, int64_t token) const { return load(batch * batch_stride + token * token_stride); }
  int64_t at(int64_t tensor, int64_t batch, int64_t outer, int64_t token) const {
    return load(tensor * tensor_stride + batch * batch_stride + outer * outer_stride + token * token_stride);
  }

 private:
  int64_t load(int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// dst row j of batch b = src row indices[b, j], zeros where that is outside [0, tokens). Returns whether one was.
bool gather_rows(const Parallel& parallel, const std::vector<RowCopy>& copies, const Indices& indices, int64_t batch,
                 int64_t kept, int64_t tokens);

// The same with dst == src and equal strides; zeros also where an index is below its j, for that row is gone by then.
bool gather_rows_inplace(const Parallel& parallel, const std::vector<RowCopy>& copies, const Indices& indices,
                         int64_t batch, int64_t kept, int64_t tokens);

}  // namespace vtkernels::cpu
