// Four lanes through the compiler's vector extension, for any processor. Included inside a namespace.

constexpr int kVectorBytes = 16;
using Vector = float __attribute__((vector_size(kVectorBytes)));

inline Vector load_halves(const uint16_t* from) {
  return Vector{half_to_float(from[0]), half_to_float(from[1]), half_to_float(from[2]), half_to_float(from[3])};
}
inline void store_halves(uint16_t* to, Vector x) {
  for (int i = 0; i < 4; ++i) to[i] = float_to_half(x[i]);
}

// For the register tile of tile.inl.
struct Float {
  using Reg = Vector;
  static constexpr int kWidth = 4;
  static constexpr int kRows2 = 4;
  static constexpr int kRows3 = 3;
  static constexpr bool kPairs = false;
  static constexpr bool kRounded = false;

  static Reg zero() { return Reg{}; }
  static Reg load(const uint32_t* from) {
    Reg x;
    memcpy(&x, from, sizeof x);
    return x;
  }
  static Reg broadcast(const uint32_t* from) {
    float x;
    memcpy(&x, from, sizeof x);
    return Reg{x, x, x, x};
  }
  static Reg dot(Reg a, Reg b, Reg acc) { return acc + a * b; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static void store(float* to, Reg x) { memcpy(to, &x, sizeof x); }
};
