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

namespace baseline {
void run_score(const ScoreWork& work, int64_t begin, int64_t end);
}
namespace avx2 {
void run_score(const ScoreWork& work, int64_t begin, int64_t end);
}
namespace avx512 {
void run_score(const ScoreWork& work, int64_t begin, int64_t end);
}
namespace avx512bf16 {
void run_score(const ScoreWork& work, int64_t begin, int64_t end);
void run_shortlist(const ScoreWork& work, int64_t begin, int64_t end);
}  // namespace avx512bf16
namespace avx512bf16_emulated {
void run_score(const ScoreWork& work, int64_t begin, int64_t end);
void run_shortlist(const ScoreWork& work, int64_t begin, int64_t end);
}  // namespace avx512bf16_emulated

}  // namespace vtkernels::cpu
