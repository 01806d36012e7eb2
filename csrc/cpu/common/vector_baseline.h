// Four lanes through the compiler's vector extension, for any processor. Included inside a namespace.

struct V {
  using Reg = float __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static constexpr int kRows2 = 4;
  static constexpr int kRows3 = 3;
  static constexpr bool kPairs = false;

  static Reg zero() { return Reg{}; }
  static Reg load(const uint32_t* from) {
    Reg x;
    memcpy(&x, from, sizeof x);
    return x;
  }
  static Reg broadcast(const uint32_t* from) {
    const float x = bits_float(*from);
    return Reg{x, x, x, x};
  }
  static Reg dot(Reg a, Reg b, Reg acc) { return acc + a * b; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static void store(float* to, Reg x) { memcpy(to, &x, sizeof x); }
  static void halves(const uint16_t* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = half_to_float(from[i]);
  }
};
