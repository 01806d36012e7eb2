// Attention received by keys: the choice of the instruction set.
#include "attention_isa.h"

namespace vtkernels::cpu {
namespace {

AttentionKernel pick(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return attention_avx512;
  if (isa == Isa::kAvx2) return attention_avx2;
#endif
  return attention_baseline;
}

}  // namespace

void attention_scores(const Parallel& parallel, const AttentionProblem& problem, const AttentionSequence* sequences,
                      int64_t sequence_count) {
  pick(current_isa())(parallel, problem, sequences, sequence_count);
}

}  // namespace vtkernels::cpu
