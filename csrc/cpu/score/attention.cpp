// Attention received by keys: the choice of the instruction set.
#include "../common/target.h"
#include "attention_isa.h"

namespace vtkernels::cpu {

void attention_scores(const Parallel& parallel, const AttentionProblem& problem, const AttentionSequence* sequences,
                      int64_t sequence_count) {
  VTK_PICK(run_attention)(parallel, problem, sequences, sequence_count);
}

}  // namespace vtkernels::cpu
