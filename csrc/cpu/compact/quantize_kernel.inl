// Ranges, levels and bytes of rows, for one instruction set. Compiled by isa_kernels.inl. Rows are float32 in scratch
// memory, padded to kPad elements, so that loops over them have no remainder.

// What a channel or a token has seen: its range, and in `poison` 0 or, once an element was not finite, NaN.
inline void widen_range(const float* __restrict x, int64_t count, float* __restrict low, float* __restrict high,
                        float* __restrict poison) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = x[i], least = low[i], most = high[i];
    low[i] = value < least ? value : least;
    high[i] = value > most ? value : most;
    poison[i] += value * 0.0f;
  }
}

inline void largest_finite(const float* x, int64_t count, float* largest) {
  for (int64_t i = 0; i < count; ++i) {
    const float size = std::fabs(x[i]) <= std::numeric_limits<float>::max() ? std::fabs(x[i]) : 0.0f;
    largest[i] = size > largest[i] ? size : largest[i];
  }
}

inline Range row_range(const float* x, int64_t count, float most) {
  using Lanes = float __attribute__((vector_size(kPad * sizeof(float))));
  Lanes low = Lanes{} + INFINITY, high = -low, poison = {};
  const auto see = [&](const Lanes& value) __attribute__((always_inline)) {
    low = value < low ? value : low;
    high = value > high ? value : high;
    poison += value * 0.0f;
  };
  int64_t i = 0;
  for (; i + kPad <= count; i += kPad) {
    Lanes value;
    memcpy(&value, x + i, sizeof value);
    see(value);
  }
  if (i < count) {
    Lanes value = Lanes{} + x[i];  // behind the end stands a member
    memcpy(&value, x + i, (count - i) * sizeof(float));
    see(value);
  }
  for (int64_t half = kPad / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) {
      low[k] = std::min(low[k], low[k + half]);
      high[k] = std::max(high[k], high[k + half]);
      poison[k] += poison[k + half];
    }
  }
  return finish_range(low[0], high[0], poison[0], most);
}

// The bytes of a row from its levels, `each` of them in a byte, `bytes` apart.
inline void pack(const uint8_t* levels, int64_t bytes, int bits, uint8_t* out) {
  if (bits == 8) {
    memcpy(out, levels, bytes);
  } else if (bits == 4) {
    for (int64_t i = 0; i < bytes; ++i) out[i] = static_cast<uint8_t>(levels[i] | levels[bytes + i] << 4);
  } else {
    for (int64_t i = 0; i < bytes; ++i) {
      out[i] = static_cast<uint8_t>(levels[i] | levels[bytes + i] << 2 | levels[2 * bytes + i] << 4 |
                                    levels[3 * bytes + i] << 6);
    }
  }
}

inline uint8_t level(float x, float low, float inverse, float most) {
  float t = (x - low) * inverse;
  t = t > 0 ? t : 0.0f;  // NaN is 0, too
  t = t < most ? t : most;
  return static_cast<uint8_t>(static_cast<int32_t>(t + 0.5f));
}

inline void unpack(const uint8_t* packed, int64_t bytes, int bits, float* out) {
  if (bits == 8) {
    for (int64_t i = 0; i < bytes; ++i) out[i] = packed[i];
    return;
  }
  const int mask = (1 << bits) - 1;
  for (int part = 0; part * bits < 8; ++part) {
    float* to = out + part * bytes;
    const int shift = part * bits;
    for (int64_t i = 0; i < bytes; ++i) to[i] = static_cast<float>(packed[i] >> shift & mask);
  }
}

// One head of one class.
inline bool quantize_head(const QuantizeProblem& p, const QuantizedClass& c, int64_t batch, int64_t head) {
  const int64_t d = p.width, padded = ceil_div(d, kPad) * kPad, bytes = ceil_div(d * c.bits, 8);
  const float most = static_cast<float>((1 << c.bits) - 1);
  Scratch scratch(8 * padded);
  float* low = scratch.take<float>(padded);
  float* high = scratch.take<float>(padded);
  float* poison = scratch.take<float>(padded);
  float* inverse = scratch.take<float>(padded);
  float* scale = scratch.take<float>(padded);
  float* reciprocal = scratch.take<float>(padded);
  float* x = scratch.take<float>(padded);
  auto* levels = reinterpret_cast<uint8_t*>(scratch.take<uint32_t>(padded));
  const int64_t size = element_size(p.dtype);
  bool bad = false;
  const auto token = [&](int64_t j) {
    const int64_t t = c.tokens.at(batch, j);
    return t >= 0 && t < p.tokens ? t : -1;
  };
  const auto load = [&](const HeadRows& cache, int64_t t) {
    widen(row_of(cache, batch, head, t, size), p.dtype, d, cache.dim_stride, x);
  };

  std::fill_n(low, d, INFINITY);
  std::fill_n(high, d, -INFINITY);
  std::fill_n(poison, d, 0.0f);
  std::fill_n(scale, d, 0.0f);
  for (int64_t j = 0; j < c.count; ++j) {
    const int64_t t = token(j);
    if (t < 0) {
      bad = true;
      continue;
    }
    load(p.key, t);
    widen_range(x, d, low, high, poison);
    load(p.value, t);
    largest_finite(x, d, scale);
  }
  float* params = floats(c.key_params, batch, head, 0, 0);
  float* steps = floats(c.key_params, batch, head, 1, 0);
  float* scales = floats(c.value_scales, batch, head, 0, 0);
  for (int64_t i = 0; i < d; ++i) {
    const Range range = finish_range(low[i], high[i], poison[i], most);
    params[i] = low[i] = range.low;
    steps[i] = range.step;
    inverse[i] = range.inverse;
    scales[i] = scale[i] = scale[i] == 0 ? 1.0f : std::sqrt(scale[i]);
    reciprocal[i] = 1.0f / scale[i];
  }

  memset(levels, 0, padded * sizeof(uint32_t));
  for (int64_t j = 0; j < c.count; ++j) {
    const int64_t t = token(j);
    auto* key_codes = bytes_of(c.key_codes, batch, head, j);
    auto* value_codes = bytes_of(c.value_codes, batch, head, j);
    float* token_params = floats(c.value_params, batch, head, j, 0);
    if (t < 0) {
      memset(key_codes, 0, bytes);
      memset(value_codes, 0, bytes);
      token_params[0] = token_params[1] = 0.0f;
      continue;
    }
    load(p.key, t);
    for (int64_t i = 0; i < d; ++i) levels[i] = level(x[i], low[i], inverse[i], most);
    pack(levels, bytes, c.bits, key_codes);
    load(p.value, t);
    for (int64_t i = 0; i < d; ++i) x[i] *= reciprocal[i];
    const Range range = row_range(x, d, most);
    token_params[0] = range.low;
    token_params[1] = range.step;
    for (int64_t i = 0; i < d; ++i) levels[i] = level(x[i], range.low, range.inverse, most);
    pack(levels, bytes, c.bits, value_codes);
  }
  return bad;
}

// The tokens [begin, end) of one head; owner[t] says which row of which class stands for a token.
inline void dequantize_rows(const QuantizeProblem& p, const Owner* owner, int64_t batch, int64_t head, int64_t begin,
                            int64_t end) {
  const int64_t d = p.width, padded = ceil_div(d, kPad) * kPad, size = element_size(p.dtype);
  const int64_t classes = static_cast<int64_t>(p.classes.size());
  Scratch scratch((3 * classes + 2) * padded + 3 * kPad);
  float* x = scratch.take<float>(padded + kPad);
  auto* packed = reinterpret_cast<uint8_t*>(scratch.take<uint32_t>(padded));
  float* of_class = scratch.take<float>(3 * classes * padded);  // smallest value, step, scale of each channel
  for (int64_t k = 0; k < classes; ++k) {
    const QuantizedClass& c = p.classes[k];
    float* dense = of_class + 3 * k * padded;
    for (int64_t i = 0; i < d; ++i) {
      dense[i] = *floats(c.key_params, batch, head, 0, i);
      dense[padded + i] = *floats(c.key_params, batch, head, 1, i);
      dense[2 * padded + i] = *floats(c.value_scales, batch, head, 0, i);
    }
  }
  const auto load = [&](const HeadRows& codes, int64_t row, int64_t bytes, int bits) {
    const uint8_t* from = bytes_of(codes, batch, head, row);
    if (codes.dim_stride != 1) {
      for (int64_t i = 0; i < bytes; ++i) packed[i] = from[i * codes.dim_stride];
      from = packed;
    }
    unpack(from, bytes, bits, x);
  };
  for (int64_t t = begin; t < end; ++t) {
    char* key = row_of(p.key, batch, head, t, size);
    char* value = row_of(p.value, batch, head, t, size);
    if (owner[t].row < 0) {
      memset(key, 0, d * size);
      memset(value, 0, d * size);
      continue;
    }
    const QuantizedClass& c = p.classes[owner[t].of_class];
    const int64_t row = owner[t].row, bytes = ceil_div(d * c.bits, 8);
    const float *low = of_class + 3 * owner[t].of_class * padded, *step = low + padded, *scale = step + padded;
    load(c.key_codes, row, bytes, c.bits);
    for (int64_t i = 0; i < d; ++i) x[i] = low[i] + x[i] * step[i];
    narrow(x, p.dtype, d, key);
    load(c.value_codes, row, bytes, c.bits);
    const float least = *floats(c.value_params, batch, head, row, 0);
    const float token_step = *floats(c.value_params, batch, head, row, 1);
    for (int64_t i = 0; i < d; ++i) x[i] = (least + x[i] * token_step) * scale[i];
    narrow(x, p.dtype, d, value);
  }
}
