// One token of all heads, for one instruction set. Compiled by isa_kernels.inl.

// float32 cosines and sines of float64 angles of any size: polynomials on a quarter turn around 0.
inline void cos_sin(const double* angle, int64_t count, float* cosine, float* sine) {
  for (int64_t i = 0; i < count; ++i) {
    const double quarters = angle[i] * 0.63661977236758134308;
    const double whole = __builtin_floor(quarters + 0.5);
    const float x = static_cast<float>((quarters - whole) * 1.57079632679489661923);
    const float quadrant = static_cast<float>(whole - 4.0 * __builtin_floor(whole * 0.25));
    const float z = x * x;
    const float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
    const float c =
        1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const bool odd = quadrant == 1.0f || quadrant == 3.0f;
    const float cos_size = odd ? s : c, sin_size = odd ? c : s;
    cosine[i] = quadrant == 1.0f || quadrant == 2.0f ? -cos_size : cos_size;
    sine[i] = quadrant >= 2.0f ? -sin_size : sin_size;
  }
}

inline void rotate_token(const RotateProblem& p, const double* freq, int64_t b, int64_t n, RotateScratch& scratch) {
  const int64_t size = element_size(p.dtype), turning = 2 * p.pairs;
  double* angle = scratch.angle.data();
  std::fill_n(angle, p.pairs, 0.0);
  for (int64_t axis = 0; axis < p.axes; ++axis) {
    const auto delta = static_cast<double>(p.deltas.at(axis, b, 0, n));
    for (int64_t i = 0; i < p.pairs; ++i) angle[i] += delta * freq[axis * p.pairs + i];
  }
  const int64_t still = std::count(angle, angle + p.pairs, 0.0);
  float* cosine = scratch.cosine.data();
  float* sine = scratch.sine.data();
  if (still < p.pairs) cos_sin(angle, p.pairs, cosine, sine);

  float* row = scratch.row.data();
  char* result = scratch.result.data();  // apart from the output, which may be the keys
  for (int64_t h = 0; h < p.heads; ++h) {
    const char* from = p.keys + (b * p.key_batch + h * p.key_head + n * p.key_token) * size;
    char* to = p.out + (b * p.out_batch + h * p.out_head + n * p.out_token) * size;
    const auto keep = [&](int64_t dim) { memmove(to + dim * size, from + dim * p.key_dim * size, size); };
    if (still == p.pairs) {
      if (p.key_dim == 1) {
        memmove(to, from, p.width * size);
      } else if (to != from) {
        for (int64_t i = 0; i < p.width; ++i) keep(i);
      }
      continue;
    }
    widen(from, p.dtype, turning, p.key_dim, row);
    if (p.interleaved) {
      for (int64_t i = 0; i < p.pairs; ++i) {
        const float x = row[2 * i], y = row[2 * i + 1];
        row[2 * i] = x * cosine[i] - y * sine[i];
        row[2 * i + 1] = y * cosine[i] + x * sine[i];
      }
    } else {
      for (int64_t i = 0; i < p.pairs; ++i) {
        const float x = row[i], y = row[p.pairs + i];
        row[i] = x * cosine[i] - y * sine[i];
        row[p.pairs + i] = y * cosine[i] + x * sine[i];
      }
    }
    narrow(row, p.dtype, turning, result);
    for (int64_t i = 0; still > 0 && i < p.pairs; ++i) {  // through float32 a NaN would not keep its bytes
      if (angle[i] != 0.0) continue;
      const int64_t first = p.interleaved ? 2 * i : i, second = p.interleaved ? first + 1 : p.pairs + i;
      for (const int64_t dim : {first, second}) memcpy(result + dim * size, from + dim * p.key_dim * size, size);
    }
    for (int64_t i = turning; i < p.width; ++i) keep(i);
    memcpy(to, result, turning * size);
  }
}
