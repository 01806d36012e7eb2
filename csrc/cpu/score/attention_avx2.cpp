// Attention kernel for AVX2 with FMA and F16C.
#include "../common/kernel.h"
#include "../common/target.h"
#include "attention_isa.h"
#if defined(__x86_64__)
VTK_TARGET_AVX2

namespace vtkernels::cpu {
namespace {

#include "../common/isa_avx2.h"
// after the vector type
#include "attention_exp2.inl"

struct V : Float {
  using Int = int32_t __attribute__((vector_size(32)));
  static constexpr int kKeys = 6;

  static Reg load(const float* from) { return _mm256_loadu_ps(from); }
  static Reg load(const uint32_t* from) { return Float::load(from); }
  static Reg broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg nan_max(Reg a, Reg b) {
    const Reg take = _mm256_or_ps(_mm256_cmp_ps(b, a, _CMP_GT_OQ), _mm256_cmp_ps(b, b, _CMP_UNORD_Q));
    return _mm256_blendv_ps(a, b, take);
  }
  static Reg where_le(Reg a, Reg b, Reg yes, Reg no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LE_OQ));
  }
  static float sum(Reg x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  static Reg exp2(Reg x) { return exp2_by_bits<V>(x); }
};

// after the vector operations
#include "../common/tile.inl"
// after the kernel whose loads it uses
#include "attention_kernel.inl"

}  // namespace

void avx2::run_attention(const Parallel& parallel, const AttentionProblem& problem, const AttentionSequence* sequences,
                         int64_t count) {
  attention<V>(parallel, problem, sequences, count);
}

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
