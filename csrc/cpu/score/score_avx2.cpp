// Score kernel for AVX2 with FMA and F16C.
#include "../common/kernel.h"
#include "../common/target.h"
#include "score_isa.h"
#if defined(__x86_64__)
VTK_TARGET_AVX2

namespace vtkernels::cpu {
namespace {

#include "../common/isa_avx2.h"
// after the vector type
#include "../common/tile.inl"
// after the register tile
#include "score_kernel.inl"

}  // namespace

void avx2::run_score(const ScoreWork& work, int64_t begin, int64_t end) { score<Float>(work, begin, end); }

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
