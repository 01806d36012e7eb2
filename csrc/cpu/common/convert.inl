// Rows of a dtype to float32 and back, for one instruction set. Included inside a namespace, after the functions that
// convert float16: halves_to_floats and floats_to_halves(from, count, to).

// `count` elements, `step` apart.
inline void widen(const char* from, DType dtype, int64_t count, int64_t step, float* to) {
  const auto* floats = reinterpret_cast<const float*>(from);
  const auto* shorts = reinterpret_cast<const uint16_t*>(from);
  if (dtype == DType::kFloat32) {
    if (step == 1) {
      memcpy(to, from, count * sizeof(float));
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = floats[i * step];
    }
  } else if (dtype == DType::kBFloat16) {
    auto* bits = reinterpret_cast<uint32_t*>(to);
    if (step == 1) {
      for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint32_t>(shorts[i]) << 16;
    } else {
      for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint32_t>(shorts[i * step]) << 16;
    }
  } else if (step == 1) {
    halves_to_floats(shorts, count, to);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = half_to_float(shorts[i * step]);
  }
}

inline void narrow(const float* from, DType dtype, int64_t count, char* to) {
  if (dtype == DType::kFloat32) {
    memcpy(to, from, count * sizeof(float));
  } else if (dtype == DType::kFloat16) {
    floats_to_halves(from, count, reinterpret_cast<uint16_t*>(to));
  } else {
    auto* shorts = reinterpret_cast<uint16_t*>(to);
    const auto* bits = reinterpret_cast<const uint32_t*>(from);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t x = bits[i];
      const uint32_t nan = x >> 16 | 0x40, rounded = (x + 0x7fff + (x >> 16 & 1)) >> 16;
      shorts[i] = static_cast<uint16_t>((x & 0x7fffffff) > 0x7f800000 ? nan : rounded);
    }
  }
}
