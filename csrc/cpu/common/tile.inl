// Rows of 32-bit units and the register tile that multiplies them, for one instruction set. Included inside a
// namespace, after its isa_<name>.h. V is a vector type from there, or one derived from it:
//   kWidth lanes of 32 bits; a lane is a unit: one float, or a pair of bf16 when kPairs, rounded from floats when
//   kRounded
//   kRows2, kRows3, rows of the register tile for panels of two and three vectors
//   zero, load, broadcast, dot(a, b, acc) = acc + <a, b> per lane, add, store

#include "convert.inl"

constexpr int64_t kSum = 256;              // steps of D that one register accumulates before it is added to the tile
constexpr int64_t kMaxDepth = 2048;        // most steps of D packed at a time
constexpr int64_t kPackedUnits = 1 << 17;  // packed columns stay within half of a 1 MiB second-level cache
constexpr int64_t kLine = 16;              // steps of D between requests of lines
constexpr int64_t kRowStride = kMaxDepth + kLine;  // of a panel of rows: not a power of two, for the cache's sets

inline const char* element(const Matrix& m, int64_t offset, int64_t size) {
  return static_cast<const char*>(m.data) + offset * size;
}

// `count` elements as units, zero-padded to a whole number of vectors. Returns the number of units.
template <class V>
int64_t load_units(const char* src, DType dtype, int64_t count, int64_t step, uint32_t* dst) {
  int64_t units = count;
  if (V::kPairs && dtype != DType::kFloat32) {
    const auto* shorts = reinterpret_cast<const uint16_t*>(src);
    auto* out = reinterpret_cast<uint16_t*>(dst);
    if (step == 1) {
      memcpy(out, src, count * sizeof(uint16_t));
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = shorts[i * step];
    }
    if (count % 2) out[count] = 0;
    units = (count + 1) / 2;
  } else {
    widen(src, dtype, count, step, reinterpret_cast<float*>(dst));
  }
  for (int64_t i = units; i % V::kWidth; ++i) dst[i] = 0;
  return units;
}

// Adds the squares of a row's units to its kWidth partial sums, in four chains so that additions overlap.
template <class V>
void add_squares(const uint32_t* units, int64_t count, float* sums) {
  using Reg = typename V::Reg;
  Reg chain[4] = {V::load(reinterpret_cast<uint32_t*>(sums)), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 4 * V::kWidth <= count; i += 4 * V::kWidth) {
    for (int c = 0; c < 4; ++c) {
      const Reg x = V::load(units + i + c * V::kWidth);
      chain[c] = V::dot(x, x, chain[c]);
    }
  }
  for (; i < count; i += V::kWidth) {
    const Reg x = V::load(units + i);
    chain[0] = V::dot(x, x, chain[0]);
  }
  V::store(sums, V::add(V::add(chain[0], chain[1]), V::add(chain[2], chain[3])));
}

template <class V>
float total(const float* sums) {
  float sum = 0;
  for (int i = 0; i < V::kWidth; ++i) sum += sums[i];
  return sum;
}

// rows[column][k] -> packed[k][column], k < depth <= kSum.
template <int kColumns>
void transpose(const uint32_t* rows, int64_t depth, uint32_t* packed) {
  int64_t k = 0;
#if defined(__SSE2__)
  const auto* from = reinterpret_cast<const float*>(rows);
  auto* to = reinterpret_cast<float*>(packed);
  for (; k + 4 <= depth; k += 4) {
    for (int c = 0; c < kColumns; c += 4) {
      __m128 r0 = _mm_loadu_ps(from + (c + 0) * kSum + k), r1 = _mm_loadu_ps(from + (c + 1) * kSum + k);
      __m128 r2 = _mm_loadu_ps(from + (c + 2) * kSum + k), r3 = _mm_loadu_ps(from + (c + 3) * kSum + k);
      _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
      _mm_storeu_ps(to + (k + 0) * kColumns + c, r0);
      _mm_storeu_ps(to + (k + 1) * kColumns + c, r1);
      _mm_storeu_ps(to + (k + 2) * kColumns + c, r2);
      _mm_storeu_ps(to + (k + 3) * kColumns + c, r3);
    }
  }
#endif
  for (; k < depth; ++k) {
    for (int c = 0; c < kColumns; ++c) packed[k * kColumns + c] = rows[c * kSum + k];
  }
}

// Rows that a later multiply will read: their cache lines are requested along with the steps of this one.
struct Ahead {
  const char* const* rows;
  int64_t count;
  int64_t offset;  // bytes into each row
  int64_t step;    // bytes from one line's worth of steps to the next
};

// tile[r][..] (+)= sum over k of a[r][k] * b[k][..], for kRows rows and the first kVectors of a panel's vectors of
// prototypes. Registers are added to the tile every kSum steps, which keeps the rounding of long sums down.
template <class V, int kRows, int kVectors, int kPanelVectors>
void multiply(const uint32_t* a, const uint32_t* b, int64_t depth, bool first, const Ahead& ahead, float* tile) {
  for (int64_t begin = 0; begin < depth; begin += kSum) {
    const int64_t end = std::min(begin + kSum, depth);
    typename V::Reg acc[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        acc[r][j] = V::zero();
        __builtin_prefetch(tile + (r * kPanelVectors + j) * V::kWidth, 1);
      }
    }
    for (int64_t line = begin; line < end; line += kLine) {
      for (int64_t r = 0; r < ahead.count; ++r) {
        const char* from = ahead.rows[r] + ahead.offset + line / kLine * ahead.step;
        for (int64_t i = 0; i < ahead.step; i += 64) __builtin_prefetch(from + i);
      }
      for (int64_t k = line; k < std::min(line + kLine, end); ++k) {
        typename V::Reg bv[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) bv[j] = V::load(b + (k * kPanelVectors + j) * V::kWidth);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const typename V::Reg av = V::broadcast(a + r * kRowStride + k);
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) acc[r][j] = V::dot(av, bv[j], acc[r][j]);
        }
      }
    }
    const bool store = first && begin == 0;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        float* at = tile + (r * kPanelVectors + j) * V::kWidth;
        V::store(at, store ? acc[r][j] : V::add(V::load(reinterpret_cast<uint32_t*>(at)), acc[r][j]));
      }
    }
  }
}
