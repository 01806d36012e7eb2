// Score kernel for any processor: four lanes through the compiler's vector extension.
#include "../common/kernel.h"
#include "../common/target.h"
#include "score_isa.h"

namespace vtkernels::cpu {
namespace {

#include "../common/isa_baseline.h"
// after the vector type
#include "../common/tile.inl"
// after the register tile
#include "score_kernel.inl"

}  // namespace

void baseline::run_score(const ScoreWork& work, int64_t begin, int64_t end) { score<Float>(work, begin, end); }

}  // namespace vtkernels::cpu
