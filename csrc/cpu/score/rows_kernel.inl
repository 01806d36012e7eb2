// The kernels of rows.cpp for one instruction set, in the compiler's vectors. Compiled by isa_kernels.inl.
//
// A sum over a row has four chains of lanes that are added in a fixed order at its end. So a result depends on neither
// other rows nor the number of threads.

using Words = int32_t __attribute__((vector_size(kVectorBytes)));

inline Vector load(const Half* from) { return load_halves(&from->bits); }

inline Vector load(const BFloat16* from) {
  using Shorts = uint16_t __attribute__((vector_size(kVectorBytes / 2)));
  Shorts x;
  memcpy(&x, from, sizeof x);
  return reinterpret_cast<Vector>(__builtin_convertvector(x, Words) << 16);
}

inline Vector absolute(Vector x) { return reinterpret_cast<Vector>(reinterpret_cast<Words>(x) & 0x7fffffff); }

struct Chains {
  Vector of[4] = {};
  float sum() const { return total((of[0] + of[1]) + (of[2] + of[3])); }
};

// body(chain, offset of a vector) for all whole vectors of `count` elements. Returns how many elements they are.
template <class Body>
inline int64_t for_each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    body(0, i);
    body(1, i + kLanes);
    body(2, i + 2 * kLanes);
    body(3, i + 3 * kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) body(0, i);
  return i;
}

// The last elements of a row, with zeros behind.
template <class T>
struct Tail {
  Tail(const T* row, int64_t begin, int64_t end) { memcpy(values, row + begin, (end - begin) * sizeof(T)); }
  T values[kLanes] = {};
};

template <TemporalMetric kMetric>
inline void accumulate(Vector x, Vector y, Vector& sum, Vector& squares) {
  if (kMetric == TemporalMetric::kCosine) {
    sum += x * y;
    squares += x * x;
  } else if (kMetric == TemporalMetric::kL1) {
    sum += absolute(x - y);
  } else {
    sum += (x - y) * (x - y);
  }
}

// The sum over x and y, and that of the squares of x where the metric needs it. `next` is read soon.
template <TemporalMetric kMetric, class T>
float compare(const T* x, const T* y, int64_t width, const T* next, float* squares_of_x) {
  Chains sum, squares;
  const int64_t done = for_each_vector(width, [&](int chain, int64_t i) __attribute__((always_inline)) {
    __builtin_prefetch(next + i, 0, 2);
    accumulate<kMetric>(load(x + i), load(y + i), sum.of[chain], squares.of[chain]);
  });
  if (done < width) {
    const Tail<T> a(x, done, width), b(y, done, width);
    accumulate<kMetric>(load(a.values), load(b.values), sum.of[0], squares.of[0]);
  }
  *squares_of_x = squares.sum();
  return sum.sum();
}

// The tokens [place, place + count) of the frames [begin, end) of one batch row: frame by frame, so that the previous
// frame's tokens are still in the cache. `dense`: rows can be read where they lie.
template <TemporalMetric kMetric, class T>
void compare_frames(const TemporalProblem& p, int64_t batch, int64_t place, int64_t count, int64_t begin, int64_t end) {
  const bool dense = p.dim_stride == 1;
  T* copies = reinterpret_cast<T*>(thread_scratch(dense ? 0 : 2 * p.width));
  float squares[kBlockTokens];
  const auto row = [&](int64_t frame, int64_t token, T* copy) -> const T* {
    const T* from = reinterpret_cast<const T*>(p.tokens) + batch * p.batch_stride + frame * p.frame_stride +
                    (place + token) * p.token_stride;
    if (dense) return from;
    for (int64_t i = 0; i < p.width; ++i) copy[i] = from[i * p.dim_stride];
    return copy;
  };
  float* out = p.out + batch * p.out_batch + place;
  if (begin == 0) {
    for (int64_t t = 0; t < count; ++t) out[t] = p.first;
    begin = 1;
  }
  if (kMetric == TemporalMetric::kCosine && begin < end) {
    for (int64_t t = 0; t < count; ++t) {
      const T* x = row(begin - 1, t, copies);
      compare<kMetric>(x, x, p.width, x, &squares[t]);
    }
  }
  for (int64_t frame = begin; frame < end; ++frame) {
    for (int64_t t = 0; t < count; ++t) {
      const T* x = row(frame, t, copies);
      const T* y = row(frame - 1, t, copies + p.width);
      const bool more = t + 1 < count;
      const T* next = dense && (more || frame + 1 < end) ? row(more ? frame : frame + 1, more ? t + 1 : 0, copies) : x;
      float now = 0, score = compare<kMetric>(x, y, p.width, next, &now);
      if (kMetric == TemporalMetric::kCosine) {
        score = score * reciprocal_norm(squares[t]) * reciprocal_norm(now);
        squares[t] = now;
      } else if (kMetric == TemporalMetric::kL2) {
        score = std::sqrt(score);
      }
      out[frame * p.out_frame + t] = score + 0.0f;
    }
  }
}

// ln of a normal float: the exponent, and a polynomial around 1 on [sqrt(1/2), sqrt(2)).
inline Vector logarithm(Vector x) {
  const Words bits = reinterpret_cast<Words>(x);
  const Words shifted = bits - 0x3f3504f3;  // of sqrt(1/2)
  const Words exponent = shifted >> 23;
  const Vector e = __builtin_convertvector(exponent, Vector);
  const Vector m = reinterpret_cast<Vector>(bits - (exponent << 23)) - 1.0f;
  const Vector square = m * m;
  Vector y = m * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * square - e * 2.12194440e-4f - 0.5f * square;
  return m + y + e * 0.693359375f;
}

constexpr float kLogScale = 128;  // x ln x / 128 is in range for every x

inline float scalar_logarithm(float x) { return logarithm(Vector{} + x)[0]; }

template <class T>
void row_sums(const T* row, int64_t width, float* l1, float* l2, float* entropy) {
  Chains size, squares, sum, weighted;
  const auto add = [&](int chain, Vector x) __attribute__((always_inline)) {
    const Words counts = x >= std::numeric_limits<float>::min();
    const Vector weight = reinterpret_cast<Vector>(reinterpret_cast<Words>(x) & counts);
    const Words one = reinterpret_cast<Words>(Vector{} + 1.0f) & ~counts;
    size.of[chain] += absolute(x);
    squares.of[chain] += x * x;
    sum.of[chain] += weight;
    const Vector log = logarithm(reinterpret_cast<Vector>(reinterpret_cast<Words>(weight) | one));
    weighted.of[chain] += weight * (log * (1 / kLogScale));
  };
  const int64_t done = for_each_vector(
      width, [&](int chain, int64_t i) __attribute__((always_inline)) { add(chain & 1, load(row + i)); });
  if (done < width) add(0, load(Tail<T>(row, done, width).values));
  *l1 = size.sum();
  *l2 = std::sqrt(squares.sum());
  const float s = sum.sum();
  *entropy = s > 0 ? std::max(0.0f, scalar_logarithm(s) - weighted.sum() / s * kLogScale) : 0.0f;
  if (!std::isfinite(*l1)) *entropy = NAN;
}

template <class T>
void statistics(const StatisticsProblem& p, int64_t begin, int64_t end) {
  T* copy = reinterpret_cast<T*>(thread_scratch(p.dim_stride == 1 ? 0 : p.width));
  for (int64_t i = begin; i < end; ++i) {
    const T* row = reinterpret_cast<const T*>(p.rows) + p.row.offset(i);
    if (p.dim_stride != 1) {
      for (int64_t k = 0; k < p.width; ++k) copy[k] = row[k * p.dim_stride];
      row = copy;
    }
    row_sums(row, p.width, p.out[0] + p.at[0].offset(i), p.out[1] + p.at[1].offset(i), p.out[2] + p.at[2].offset(i));
  }
}

// A row as float32, zeros up to `padded`, a multiple of kLanes.
template <class T>
void widen_padded(const T* row, int64_t width, int64_t step, int64_t padded, float* to) {
  for (int64_t i = 0; i < padded; i += kLanes) {
    if (step == 1 && i + kLanes <= width) {
      const Vector x = load(row + i);
      memcpy(to + i, &x, sizeof x);
      continue;
    }
    T part[kLanes] = {};
    for (int64_t k = 0; k < std::min(kLanes, width - i); ++k) part[k] = row[(i + k) * step];
    const Vector x = load(part);
    memcpy(to + i, &x, sizeof x);
  }
}

// |x - B^T B x| of kRows rows [kRows][padded]; the basis has an even number of rows, the last of them may be zero.
template <int kRows>
void residuals(const float* x, const float* basis, int64_t rank, int64_t padded, float* coordinates, float* out) {
  for (int64_t j = 0; j < rank; j += 2) {
    const float* b = basis + j * padded;
    Vector sums[kRows][2] = {};
    for (int64_t k = 0; k < padded; k += kLanes) {
      const Vector b0 = load(b + k), b1 = load(b + padded + k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vector value = load(x + r * padded + k);
        sums[r][0] += value * b0;
        sums[r][1] += value * b1;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < 2; ++i) coordinates[(j + i) * kRows + r] = total(sums[r][i]);
    }
  }
  Vector squares[kRows] = {};
  for (int64_t k = 0; k < padded; k += 2 * kLanes) {
    Vector left[kRows][2];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      left[r][0] = load(x + r * padded + k);
      left[r][1] = load(x + r * padded + k + kLanes);
    }
    for (int64_t j = 0; j < rank; ++j) {
      const Vector b0 = load(basis + j * padded + k), b1 = load(basis + j * padded + k + kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        left[r][0] -= b0 * coordinates[j * kRows + r];
        left[r][1] -= b1 * coordinates[j * kRows + r];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      squares[r] += left[r][0] * left[r][0];
      squares[r] += left[r][1] * left[r][1];
    }
  }
  for (int r = 0; r < kRows; ++r) out[r] = std::sqrt(total(squares[r]));
}

// The tokens [begin, end) of all batch rows.
template <class T>
void residual_range(const ResidualProblem& p, int64_t begin, int64_t end) {
  constexpr int64_t kRows = 4;
  const int64_t padded = ceil_div(p.width, 2 * kLanes) * 2 * kLanes, rank = ceil_div(p.rank, 2) * 2;
  Scratch scratch((kRows + rank) * padded + kRows * rank);
  float* basis = scratch.take<float>(rank * padded);
  float* rows = scratch.take<float>(kRows * padded);
  float* coordinates = scratch.take<float>(kRows * rank);
  for (int64_t b = begin / p.n; b * p.n < end; ++b) {
    const T* from = reinterpret_cast<const T*>(p.basis) + b * p.basis_batch;
    for (int64_t j = 0; j < p.rank; ++j) {
      widen_padded(from + j * p.basis_stride, p.width, p.basis_dim_stride, padded, basis + j * padded);
    }
    std::fill_n(basis + p.rank * padded, (rank - p.rank) * padded, 0.0f);
    const T* tokens = reinterpret_cast<const T*>(p.tokens) + b * p.batch_stride;
    const int64_t last = std::min(p.n, end - b * p.n);
    for (int64_t t = std::max<int64_t>(0, begin - b * p.n); t < last;) {
      const int64_t count = std::min(kRows, last - t);
      for (int64_t r = 0; r < count; ++r) {
        widen_padded(tokens + (t + r) * p.token_stride, p.width, p.dim_stride, padded, rows + r * padded);
      }
      float* out = p.out + b * p.out_batch + t;
      if (count == kRows) {
        residuals<kRows>(rows, basis, rank, padded, coordinates, out);
      } else {
        for (int64_t r = 0; r < count; ++r) {
          residuals<1>(rows + r * padded, basis, rank, padded, coordinates, out + r);
        }
      }
      t += count;
    }
  }
}

constexpr RowKernels kKernels = {
    {{compare_frames<TemporalMetric::kCosine, float>, compare_frames<TemporalMetric::kL1, float>,
      compare_frames<TemporalMetric::kL2, float>},
     {compare_frames<TemporalMetric::kCosine, Half>, compare_frames<TemporalMetric::kL1, Half>,
      compare_frames<TemporalMetric::kL2, Half>},
     {compare_frames<TemporalMetric::kCosine, BFloat16>, compare_frames<TemporalMetric::kL1, BFloat16>,
      compare_frames<TemporalMetric::kL2, BFloat16>}},
    {statistics<float>, statistics<Half>, statistics<BFloat16>},
    {residual_range<float>, residual_range<Half>, residual_range<BFloat16>}};
