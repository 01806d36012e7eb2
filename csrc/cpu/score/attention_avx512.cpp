// Attention kernel for AVX-512 (F, BW, DQ, VL).
#include "../common/kernel.h"
#include "../common/target.h"
#include "attention_isa.h"
#if defined(__x86_64__)
VTK_TARGET_AVX512

namespace vtkernels::cpu {
namespace {

#include "../common/isa_avx512.h"
// after the vector type
#include "attention_exp2.inl"

struct V : Float {
  static constexpr int kKeys = 14;

  static Reg load(const float* from) { return _mm512_loadu_ps(from); }
  static Reg broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg nan_max(Reg a, Reg b) {
    const __mmask16 take = _mm512_cmp_ps_mask(b, a, _CMP_GT_OQ) | _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(a, take, b);
  }
  static Reg where_le(Reg a, Reg b, Reg yes, Reg no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), yes);
  }
  static float sum(Reg x) { return _mm512_reduce_add_ps(x); }
  // What would be denormal is 0; NaN stays NaN, +inf stays +inf.
  static Reg exp2(Reg x) {
    const __mmask16 normal = _mm512_cmp_ps_mask(x, set1(-126.0f), _CMP_NLT_UQ);
    x = _mm512_min_ps(set1(200.0f), x);
    const Reg n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_maskz_scalef_ps(normal, exp2_polynomial<V>(_mm512_sub_ps(x, n)), n);
  }
};

// after the vector operations
#include "../common/tile.inl"
// after the kernel whose loads it uses
#include "attention_kernel.inl"

}  // namespace

void avx512::run_attention(const Parallel& parallel, const AttentionProblem& problem,
                           const AttentionSequence* sequences, int64_t count) {
  attention<V>(parallel, problem, sequences, count);
}

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
