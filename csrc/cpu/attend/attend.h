// Attention inside the cells of a grid, and attention that takes one key.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

// [B, H, rows, d] with strides in elements.
struct Heads {
  const char* data;
  int64_t batch, head, row, dim;
};

struct CellProblem {
  DType dtype;
  Heads query, key, value;
  int64_t batch, heads, cells, width;  // width: d
  int64_t columns;                     // cells in a row of the grid
  int64_t cell;                        // side of a cell
  float scale;
  char* out;  // rows dense
  int64_t out_batch, out_head, out_row;
};

// By the rules of vtkernels.cell_attention.
void cell_attention(const Parallel& parallel, const CellProblem& problem);

struct ArgmaxProblem {
  DType dtype;
  Heads query, key;
  int64_t batch, heads, rows, keys, width;
  const bool* allowed;  // [batch, rows, keys], or null: all
  int64_t allowed_batch, allowed_row, allowed_key;
  char* out;  // rows dense
  int64_t out_batch, out_head, out_row;
  IndexOut indices;
  int64_t index_batch, index_head;
};

// By the rules of vtkernels.argmax_attention.
void argmax_attention(const Parallel& parallel, const ArgmaxProblem& problem);

}  // namespace vtkernels::cpu
