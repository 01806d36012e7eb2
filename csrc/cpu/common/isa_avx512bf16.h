// AVX-512 with AVX512_BF16. Included inside a namespace, after VTK_TARGET_AVX512BF16.

#include "isa_avx512.h"

// Exact products of pairs of bf16, added in float32.
struct Pairs : Float {
  static constexpr bool kPairs = true;

  static Reg dot(Reg a, Reg b, Reg acc) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

// Floats rounded to bf16, multiplied as pairs.
struct RoundedPairs : Pairs {
  static constexpr bool kRounded = true;

  static Reg round(Reg low, Reg high) { return reinterpret_cast<Reg>(_mm512_cvtne2ps_pbh(high, low)); }
  static Reg rounded(Reg pairs, int half) { return widen_half(pairs, half); }
};
