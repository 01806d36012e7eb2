// Greedy max-min selection, and the values that mark tokens out of the running in every greedy selection.
#pragma once

#include <limits>

#include "../common/kernel.h"
#include "../common/products.h"
#include "diverse.h"

namespace vtkernels::cpu {

// No distance, sum of distances or useful gain is as low.
constexpr float kPicked = -std::numeric_limits<float>::infinity();
constexpr float kNoNorm = -std::numeric_limits<float>::max();  // a NaN or infinite norm: picked last

// Adds to `order`, which may hold seeds, until it has k tokens.
void max_min(const Parallel& parallel, const DiverseProblem& problem, std::vector<int64_t>& order);

}  // namespace vtkernels::cpu
