// Score kernel for AVX-512 (F, BW, DQ, VL), and the bf16-pair layout of the AVX512_BF16 kernel in plain AVX-512.
#include "../common/kernel.h"
#include "../common/target.h"
#include "score_isa.h"
#if defined(__x86_64__)
VTK_TARGET_AVX512

namespace vtkernels::cpu {
namespace {

#include "../common/isa_avx512.h"
// after the vector type
#include "../common/tile.inl"
// after the register tile
#include "score_kernel.inl"

}  // namespace

void avx512::run_score(const ScoreWork& work, int64_t begin, int64_t end) { score<Float>(work, begin, end); }

void avx512bf16_emulated::run_score(const ScoreWork& work, int64_t begin, int64_t end) {
  score<EmulatedPairs>(work, begin, end);
}

void avx512bf16_emulated::run_shortlist(const ScoreWork& work, int64_t begin, int64_t end) {
  score_by_shortlist<EmulatedRoundedPairs>(work, begin, end);
}

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
