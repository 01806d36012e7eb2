// Attention received by keys, on the CPU. No framework, as cpu.h.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

enum class Reduce : int32_t { kMean, kSum, kMax, kNone };

// Rows and keys of one sequence. Offsets are in elements of the problem's arrays.
struct AttentionSequence {
  int64_t query;         // row 0
  int64_t rows;          // Tq
  int64_t key;           // key 0; not for paged keys
  int64_t keys;          // S, all of which the softmax runs over
  const int32_t* table;  // paged: the blocks of this sequence
  int64_t first, count;  // keys that are scored
  int64_t scores;        // where the first of their scores goes
  int64_t weights;       // of row 0
  int64_t lse;           // of row 0
  int64_t offset;        // causal: row i sees the keys up to offset + i
};

struct AttentionProblem {
  DType dtype;
  const void* query;
  int64_t query_head, query_row, query_dim;  // strides in elements, like all others
  int64_t heads;
  const void* key;
  int64_t key_head, key_token, key_dim;
  int64_t key_heads;
  int64_t width;  // d
  // Paged keys, when block_size > 0: key p is row p % block_size of block table[p / block_size].
  int64_t block_size, block_stride, blocks, table_stride, table_length;
  const float* weights;  // or null: all 1
  int64_t weight_stride;
  const float* lse;  // or null: computed
  int64_t lse_head, lse_row;
  float scale;
  bool causal, logits;
  Reduce reduce_rows, reduce_heads;  // no kNone for rows
  float* out;
  int64_t out_head;  // from head to head, with kNone

  // The block that holds key p, or -1 when the table does not say.
  int64_t block_of(const AttentionSequence& s, int64_t p) const {
    const int64_t column = p / block_size;
    if (column >= table_length) return -1;
    const int64_t block = s.table[column * table_stride];
    return block >= 0 && block < blocks ? block : -1;
  }
};

// Scores by the rules of vtkernels.attention_scores. They do not depend on the number of threads.
void attention_scores(const Parallel& parallel, const AttentionProblem& problem, const AttentionSequence* sequences,
                      int64_t sequence_count);

}  // namespace vtkernels::cpu
