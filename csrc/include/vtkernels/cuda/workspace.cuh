// Workspace of the fused ops, int32 words: a header of 64, then 8 for each row. All are zero between calls.
#pragma once

#include <vtkernels/cuda/platform.cuh>

namespace vtkernels::cuda {

struct WorkspaceHeader {
  int blocks_done;
  int tiles;  // of all rows, packed sequences only
  int unused[62];
};

struct WorkspaceRow {
  int tiles_done;
  // Of packed sequences only, all in range:
  int begin, end;           // the sequence
  int first, length, kept;  // its span, and how many tokens of it stay
  int out_begin;
  int first_tile;
};
static_assert(sizeof(WorkspaceHeader) == 64 * sizeof(int) && sizeof(WorkspaceRow) == 8 * sizeof(int));

struct Workspace {
  WorkspaceHeader* header;
  WorkspaceRow* rows;
};

inline Workspace workspace_at(int* words) {
  auto* header = reinterpret_cast<WorkspaceHeader*>(words);
  return {header, reinterpret_cast<WorkspaceRow*>(header + 1)};
}

__device__ inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

}  // namespace vtkernels::cuda
