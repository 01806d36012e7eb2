// Score kernel for any processor: four lanes through the compiler's vector extension.
#include "score_common.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace vtkernels::cpu {
namespace {

#include "score_baseline.h"
#include "score_kernel.inl"

}  // namespace

void score_baseline(const ScoreWork& work, int64_t begin, int64_t end) { score<V>(work, begin, end); }

}  // namespace vtkernels::cpu
