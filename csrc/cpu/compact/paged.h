// Compaction of paged caches: the plan of all rows from their metadata, then the moves of every pool.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct Ints {
  const int32_t* data;  // may be null where the argument is optional
  int64_t stride;

  int64_t operator[](int64_t i) const { return data[i * stride]; }
};

struct PageTable {
  const int32_t* data;  // [rows, width]
  int64_t width, row_stride, stride;

  int64_t at(int64_t row, int64_t i) const { return data[row * row_stride + i * stride]; }
};

// The positions that a row keeps: 0 .. prefix, then `listed` of the indices + base, then suffix .. its length.
struct KeptSpan {
  int64_t index_row, first, listed, base, prefix, suffix;
  int32_t flags;  // what is known to be wrong with the row
};

struct PagedProblem {
  int64_t rows, blocks, block_size;
  PageTable table, target;  // target.data is null in place
  Ints lengths;
  Indices indices;
  std::vector<KeptSpan> kept;  // prefix and suffix within the row's clamped length
  bool allow_shared;
};

struct PagedOutputs {
  int32_t* lengths;
  IndexOut slots;  // those of row b at slot_row[b] .. slot_row[b] + listed
  std::vector<int64_t> slot_row;
  int32_t* freed;  // [rows, width]
  int64_t freed_row;
};

// `count` tokens from slot `source` on go to slot `target` on; neither run leaves its page.
struct TokenRun {
  int64_t source, target, count;
};

struct PagedPlan {
  std::vector<std::vector<TokenRun>> runs;  // of each row, in the order of its tokens
  int32_t flags;
};

// A row's length as far as its table goes.
int64_t held_tokens(const PagedProblem& p, int64_t row);

// Checks every row, writes its outputs, and plans its moves: none for a row that is refused.
PagedPlan plan_pages(const PagedProblem& p, const PagedOutputs& out);

// A pool [blocks, block_size, outer, row], strides in bytes; a row is `width` elements, `step` bytes apart.
struct Pool {
  char* data;
  int64_t outer, width, element, step;
  int64_t block_stride, token_stride, outer_stride;
};

void move_pages(const Parallel& parallel, const PagedPlan& plan, const std::vector<Pool>& pools, int64_t block_size);

}  // namespace vtkernels::cpu
