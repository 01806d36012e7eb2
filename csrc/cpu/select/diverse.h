// Greedy selection of tokens that differ from each other, by the rules of vtkernels.select_diverse.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

enum class Objective { kMaxMin, kMaxSum, kDpp };

// One image.
struct DiverseProblem {
  Objective objective;
  DType dtype;
  Matrix features;  // [tokens, width]
  int64_t tokens;
  int64_t width;
  int64_t k;
  const float* relevance;  // [tokens], or null: 1
  int64_t relevance_stride;
  Indices seeds;
  int64_t batch;  // of the seeds
  int64_t seed_count;
};

// The k tokens in the order of picking. Returns whether a seed was out of range or repeated, and so ignored.
bool select_diverse(const Parallel& parallel, const DiverseProblem& problem, std::vector<int64_t>& order);

}  // namespace vtkernels::cpu
