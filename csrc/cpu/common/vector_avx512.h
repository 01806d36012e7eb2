// The AVX-512 vector type. Included inside a namespace, under a target pragma.

struct Float {
  using Reg = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kRows2 = 14;
  static constexpr int kRows3 = 9;
  static constexpr bool kPairs = false;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const uint32_t* from) { return _mm512_loadu_ps(from); }
  static Reg broadcast(const uint32_t* from) { return _mm512_set1_ps(*reinterpret_cast<const float*>(from)); }
  static Reg dot(Reg a, Reg b, Reg acc) { return _mm512_fmadd_ps(a, b, acc); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static void store(float* to, Reg x) { _mm512_storeu_ps(to, x); }
  static void halves(const uint16_t* from, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
    }
    for (; i < n; ++i) to[i] = half_to_float(from[i]);
  }
};
