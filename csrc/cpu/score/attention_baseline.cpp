// Attention kernel for any processor: four lanes through the compiler's vector extension.
#include "../common/kernel.h"
#include "../common/target.h"
#include "attention_isa.h"

namespace vtkernels::cpu {
namespace {

#include "../common/isa_baseline.h"
// after the vector type
#include "attention_exp2.inl"

struct V : Float {
  using Int = int32_t __attribute__((vector_size(16)));
  static constexpr int kKeys = 4;

  static Reg load(const float* from) {
    Reg x;
    memcpy(&x, from, sizeof x);
    return x;
  }
  static Reg load(const uint32_t* from) { return Float::load(from); }
  static Reg broadcast(const float* from) { return set1(*from); }
  static Reg set1(float x) { return Reg{x, x, x, x}; }
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static Reg nan_max(Reg a, Reg b) { return (b > a) | (b != b) ? b : a; }
  static Reg where_le(Reg a, Reg b, Reg yes, Reg no) { return a <= b ? yes : no; }
  static float sum(Reg x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static Reg exp2(Reg x) { return exp2_by_bits<V>(x); }
};

// after the vector operations
#include "../common/tile.inl"
// after the kernel whose loads it uses
#include "attention_kernel.inl"

}  // namespace

void baseline::run_attention(const Parallel& parallel, const AttentionProblem& problem,
                             const AttentionSequence* sequences, int64_t count) {
  attention<V>(parallel, problem, sequences, count);
}

}  // namespace vtkernels::cpu
