// float16 for any processor. Included inside a namespace.

inline void halves_to_floats(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = half_to_float(from[i]);
}
inline void floats_to_halves(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = float_to_half(from[i]);
}
