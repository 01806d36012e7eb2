// AVX-512 (F, BW, DQ, VL). Included inside a namespace, after VTK_TARGET_AVX512.

constexpr int kVectorBytes = 64;
using Vector = __m512;

inline Vector load_halves(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void store_halves(uint16_t* to, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// For the register tile of tile.inl.
struct Float {
  using Reg = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kRows2 = 14;
  static constexpr int kRows3 = 9;
  static constexpr bool kPairs = false;
  static constexpr bool kRounded = false;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const uint32_t* from) { return _mm512_loadu_ps(from); }
  static Reg broadcast(const uint32_t* from) { return _mm512_set1_ps(*reinterpret_cast<const float*>(from)); }
  static Reg dot(Reg a, Reg b, Reg acc) { return _mm512_fmadd_ps(a, b, acc); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static void store(float* to, Reg x) { _mm512_storeu_ps(to, x); }
};

// The pairs of AVX512_BF16 in plain AVX-512.
struct EmulatedPairs : Float {
  static constexpr bool kPairs = true;

  static Reg dot(Reg a, Reg b, Reg acc) {
    const __m512i x = _mm512_castps_si512(a), y = _mm512_castps_si512(b), high = _mm512_set1_epi32(-65536);
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)),
                          acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, high)),
                           _mm512_castsi512_ps(_mm512_and_si512(y, high)), acc);
  }
};

// Lower or upper half of 32 bf16, as floats.
inline Vector widen_half(Vector pairs, int half) {
  const __m512i bits = _mm512_castps_si512(pairs);
  const __m256i shorts = half == 0 ? _mm512_castsi512_si256(bits) : _mm512_extracti64x4_epi64(bits, 1);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(shorts), 16));
}

// Floats rounded to bf16, ties to even, and those pairs. A NaN need not stay one.
struct EmulatedRoundedPairs : EmulatedPairs {
  static constexpr bool kRounded = true;

  static Reg round(Reg low, Reg high) {
    const __m256i shorts[2] = {round(low), round(high)};
    return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(shorts[0]), shorts[1], 1));
  }
  static Reg rounded(Reg pairs, int half) { return widen_half(pairs, half); }

 private:
  static __m256i round(Reg x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, half), 16));
  }
};
