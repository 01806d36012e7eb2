// Rows of a dtype to float32 and back, for one instruction set. Included inside a namespace, after its isa_<name>.h.

constexpr int64_t kLanes = kVectorBytes / 4;

inline Vector load(const float* from) {
  Vector x;
  memcpy(&x, from, sizeof x);
  return x;
}

// Lane after lane.
inline float total(Vector x) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

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
    if (step == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = bits_float(static_cast<uint32_t>(shorts[i]) << 16);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = bits_float(static_cast<uint32_t>(shorts[i * step]) << 16);
    }
  } else {
    int64_t i = 0;
    for (; step == 1 && i + kLanes <= count; i += kLanes) {
      const Vector x = load_halves(shorts + i);
      memcpy(to + i, &x, sizeof x);
    }
    for (; i < count; ++i) to[i] = half_to_float(shorts[i * step]);
  }
}

// The same, in place where the row is dense float32; else in `scratch`.
inline const float* floats_of(const char* from, DType dtype, int64_t count, int64_t step, float* scratch) {
  if (dtype == DType::kFloat32 && step == 1) return reinterpret_cast<const float*>(from);
  widen(from, dtype, count, step, scratch);
  return scratch;
}

inline void narrow(const float* from, DType dtype, int64_t count, char* to) {
  auto* shorts = reinterpret_cast<uint16_t*>(to);
  if (dtype == DType::kFloat32) {
    memcpy(to, from, count * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) shorts[i] = float_to_bfloat16(from[i]);
  } else {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store_halves(shorts + i, load(from + i));
    for (; i < count; ++i) shorts[i] = float_to_half(from[i]);
  }
}
