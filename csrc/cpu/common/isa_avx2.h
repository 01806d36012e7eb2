// AVX2 with FMA and F16C. Included inside a namespace, after VTK_TARGET_AVX2.

constexpr int kVectorBytes = 32;
using Vector = __m256;

inline Vector load_halves(const uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void store_halves(uint16_t* to, Vector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// For the register tile of tile.inl.
struct Float {
  using Reg = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kRows2 = 6;
  static constexpr int kRows3 = 4;
  static constexpr bool kPairs = false;
  static constexpr bool kRounded = false;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const uint32_t* from) { return _mm256_loadu_ps(reinterpret_cast<const float*>(from)); }
  static Reg broadcast(const uint32_t* from) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(from)); }
  static Reg dot(Reg a, Reg b, Reg acc) { return _mm256_fmadd_ps(a, b, acc); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static void store(float* to, Reg x) { _mm256_storeu_ps(to, x); }
};
