// Entry points of the attention kernel, one per instruction set.
#pragma once

#include "vtkernels/cpu_attention.h"

namespace vtkernels::cpu {

namespace baseline {
void run_attention(const Parallel&, const AttentionProblem&, const AttentionSequence*, int64_t);
}
namespace avx2 {
void run_attention(const Parallel&, const AttentionProblem&, const AttentionSequence*, int64_t);
}
namespace avx512 {
void run_attention(const Parallel&, const AttentionProblem&, const AttentionSequence*, int64_t);
}

}  // namespace vtkernels::cpu
