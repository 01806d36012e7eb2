// Score kernel for AVX2 with FMA and F16C.
#include "score_common.h"
#include "target.h"
#if defined(__x86_64__)
#include <immintrin.h>
VTK_TARGET("avx2,fma,f16c")

namespace vtkernels::cpu {
namespace {

#include "score_avx2.h"
#include "score_kernel.inl"

}  // namespace

void score_avx2(const ScoreWork& work, int64_t begin, int64_t end) { score<V>(work, begin, end); }

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
