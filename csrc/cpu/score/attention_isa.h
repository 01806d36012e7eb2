// Entry points of the attention kernel, one per instruction set.
#pragma once

#include "vtkernels/cpu_attention.h"

namespace vtkernels::cpu {

using AttentionKernel = void (*)(const Parallel&, const AttentionProblem&, const AttentionSequence*, int64_t);

void attention_baseline(const Parallel&, const AttentionProblem&, const AttentionSequence*, int64_t);
#if defined(__x86_64__)
void attention_avx2(const Parallel&, const AttentionProblem&, const AttentionSequence*, int64_t);
void attention_avx512(const Parallel&, const AttentionProblem&, const AttentionSequence*, int64_t);
#endif

}  // namespace vtkernels::cpu
