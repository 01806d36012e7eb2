// Entry points of the score kernel, one per instruction set.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct ScoreWork {
  const ScoreProblem* problem;
  const Segment* segments;
  const int64_t* row_begin;  // [segment_count + 1] rows before each segment
  int64_t segment_count;
};

// Scores of the rows [begin, end) of the concatenated segments.
using ScoreKernel = void (*)(const ScoreWork& work, int64_t begin, int64_t end);

void score_baseline(const ScoreWork& work, int64_t begin, int64_t end);
#if defined(__x86_64__)
void score_avx2(const ScoreWork& work, int64_t begin, int64_t end);
void score_avx512(const ScoreWork& work, int64_t begin, int64_t end);
void score_avx512bf16(const ScoreWork& work, int64_t begin, int64_t end);
void score_avx512bf16_emulated(const ScoreWork& work, int64_t begin, int64_t end);
#endif

}  // namespace vtkernels::cpu
