// The AVX2 vector type. Included inside a namespace, under a target pragma.

struct V {
  using Reg = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kRows2 = 6;
  static constexpr int kRows3 = 4;
  static constexpr bool kPairs = false;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const uint32_t* from) { return _mm256_loadu_ps(reinterpret_cast<const float*>(from)); }
  static Reg broadcast(const uint32_t* from) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(from)); }
  static Reg dot(Reg a, Reg b, Reg acc) { return _mm256_fmadd_ps(a, b, acc); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static void store(float* to, Reg x) { _mm256_storeu_ps(to, x); }
  static void halves(const uint16_t* from, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    }
    for (; i < n; ++i) to[i] = half_to_float(from[i]);
  }
};
