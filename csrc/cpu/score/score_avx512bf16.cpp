// Score kernel for processors with AVX512_BF16: exact products of pairs, added in float32, for bf16 inputs, and to find
// the prototypes that are worth exact products, for others.
#include "../common/kernel.h"
#include "../common/target.h"
#include "score_isa.h"
#if defined(__x86_64__)
VTK_TARGET_AVX512BF16

namespace vtkernels::cpu {
namespace {

#include "../common/isa_avx512bf16.h"
// after the vector type
#include "../common/tile.inl"
// after the register tile
#include "score_kernel.inl"

}  // namespace

void avx512bf16::run_score(const ScoreWork& work, int64_t begin, int64_t end) { score<Pairs>(work, begin, end); }

void avx512bf16::run_shortlist(const ScoreWork& work, int64_t begin, int64_t end) {
  score_by_shortlist<RoundedPairs>(work, begin, end);
}

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
