// The score kernel, for one instruction set. Included by score_<isa>.cpp inside a namespace, after the vector type V:
//   kWidth lanes of 32 bits; a lane is a unit: one float, or a pair of bf16 when kPairs
//   kRows2, kRows3, rows of the register tile for panels of two and three vectors
//   zero, load, broadcast, dot(a, b, acc) = acc + <a, b> per lane, store, halves(const uint16_t*, n, float*)
//
// Per thread: a tile of rows x a chunk of prototypes accumulates over chunks of D. Prototypes are packed so that a
// vector holds kWidth of them; token values are broadcast. Each product is exact and added in float32, chunk by chunk
// in fixed order, so a row's score depends on neither its neighbours nor the number of threads.

constexpr int64_t kDepth = 256;            // units of D packed at a time
constexpr int64_t kChunkPrototypes = 512;  // handled at a time
constexpr int64_t kTileFloats = 1 << 19;   // accumulators of a tile
constexpr int64_t kLine = 16;              // steps of D between prefetches

inline const char* element(const Matrix& m, int64_t offset, int64_t size) {
  return static_cast<const char*>(m.data) + offset * size;
}

// `count` elements as units, zero-padded to a whole number of vectors. Returns the number of units.
template <class V>
int64_t load_units(const char* src, DType dtype, int64_t count, int64_t step, uint32_t* dst) {
  const auto* words = reinterpret_cast<const uint32_t*>(src);
  const auto* shorts = reinterpret_cast<const uint16_t*>(src);
  int64_t units = count;
  if (dtype == DType::kFloat32) {
    if (step == 1) {
      memcpy(dst, src, count * sizeof(float));
    } else {
      for (int64_t i = 0; i < count; ++i) dst[i] = words[i * step];
    }
  } else if (V::kPairs) {
    auto* out = reinterpret_cast<uint16_t*>(dst);
    if (step == 1) {
      memcpy(out, src, count * sizeof(uint16_t));
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = shorts[i * step];
    }
    if (count % 2) out[count] = 0;
    units = (count + 1) / 2;
  } else if (dtype == DType::kBFloat16) {
    if (step == 1) {
      for (int64_t i = 0; i < count; ++i) dst[i] = static_cast<uint32_t>(shorts[i]) << 16;
    } else {
      for (int64_t i = 0; i < count; ++i) dst[i] = static_cast<uint32_t>(shorts[i * step]) << 16;
    }
  } else {
    auto* out = reinterpret_cast<float*>(dst);
    if (step == 1) {
      V::halves(shorts, count, out);
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(shorts[i * step]);
    }
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

// rows[column][k] -> packed[k][column], k < depth.
template <int kColumns>
void transpose(const uint32_t* rows, int64_t depth, uint32_t* packed) {
  int64_t k = 0;
#if defined(__SSE2__)
  const auto* from = reinterpret_cast<const float*>(rows);
  auto* to = reinterpret_cast<float*>(packed);
  for (; k + 4 <= depth; k += 4) {
    for (int c = 0; c < kColumns; c += 4) {
      __m128 r0 = _mm_loadu_ps(from + (c + 0) * kDepth + k), r1 = _mm_loadu_ps(from + (c + 1) * kDepth + k);
      __m128 r2 = _mm_loadu_ps(from + (c + 2) * kDepth + k), r3 = _mm_loadu_ps(from + (c + 3) * kDepth + k);
      _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
      _mm_storeu_ps(to + (k + 0) * kColumns + c, r0);
      _mm_storeu_ps(to + (k + 1) * kColumns + c, r1);
      _mm_storeu_ps(to + (k + 2) * kColumns + c, r2);
      _mm_storeu_ps(to + (k + 3) * kColumns + c, r3);
    }
  }
#endif
  for (; k < depth; ++k) {
    for (int c = 0; c < kColumns; ++c) packed[k * kColumns + c] = rows[c * kDepth + k];
  }
}

// Rows that a later multiply will read: one cache line of each is requested for every kLine steps.
struct Ahead {
  const char* const* rows;
  int64_t count;
  int64_t offset;  // bytes into each row
  int64_t step;    // bytes from one line's worth of steps to the next
};

// tile[r][..] (+)= sum over k of a[r][k] * b[k][..], for kRows rows and kVectors vectors of prototypes.
template <class V, int kRows, int kVectors>
void multiply(const uint32_t* a, const uint32_t* b, int64_t depth, bool first, const Ahead& ahead, float* tile) {
  typename V::Reg acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      acc[r][j] = V::zero();
      __builtin_prefetch(tile + (r * kVectors + j) * V::kWidth, 1);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    if (k % kLine == 0) {
      for (int64_t r = 0; r < ahead.count; ++r)
        __builtin_prefetch(ahead.rows[r] + ahead.offset + k / kLine * ahead.step);
    }
    typename V::Reg bv[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) bv[j] = V::load(b + (k * kVectors + j) * V::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename V::Reg av = V::broadcast(a + r * kDepth + k);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) acc[r][j] = V::dot(av, bv[j], acc[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* at = tile + (r * kVectors + j) * V::kWidth;
      V::store(at, first ? acc[r][j] : V::add(V::load(reinterpret_cast<uint32_t*>(at)), acc[r][j]));
    }
  }
}

struct Best {
  int32_t key;
  int32_t prototype;
};

// The best of `count` similarities of one row, lowest prototype among equals.
inline void update_best(const float* dots, const float* rnorm, int64_t first, int64_t count, bool want_argmax,
                        Best& best) {
  int32_t keys[64];
  int32_t highest = INT32_MIN;
  for (int64_t p = 0; p < count; ++p) {
    keys[p] = max_key(dots[p] * rnorm[p]);
    highest = keys[p] > highest ? keys[p] : highest;
  }
  if (highest <= best.key) return;
  best.key = highest;
  if (!want_argmax) return;
  int64_t p = 0;
  while (keys[p] != highest) ++p;
  best.prototype = static_cast<int32_t>(first + p);
}

template <class V, int kRows, int kVectors>
void score_rows(const ScoreWork& work, int64_t begin, int64_t end) {
  constexpr int64_t kPanel = kVectors * V::kWidth;  // prototypes in a panel
  const ScoreProblem& p = *work.problem;
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t depth_elements = kDepth * (V::kPairs ? 2 : 1);
  const int64_t unit_bytes = (V::kPairs ? 2 : 1) * size;
  const int64_t chunk_panels =
      std::max<int64_t>(1, std::min(ceil_div(p.prototype_count, kPanel), kChunkPrototypes / kPanel));
  const int64_t tile_panels =
      std::max<int64_t>(1, std::min(ceil_div(end - begin, kRows), kTileFloats / (chunk_panels * kPanel * kRows)));
  const int64_t tile_rows = tile_panels * kRows;

  std::vector<uint32_t> rows(std::max<int64_t>(kRows, kPanel) * kDepth);  // one panel of A, or one of B before packing
  Aligned packed(chunk_panels * kPanel * kDepth), tile(chunk_panels * kPanel * tile_rows);
  std::vector<float> squares(tile_rows * V::kWidth);
  std::vector<const char*> source(tile_rows);
  std::vector<Best> best(tile_rows);

  int64_t segment =
      std::upper_bound(work.row_begin, work.row_begin + work.segment_count + 1, begin) - work.row_begin - 1;
  for (int64_t row0 = begin; row0 < end; row0 += tile_rows) {
    const int64_t count = std::min(tile_rows, end - row0);
    std::vector<int64_t> targets(count);
    for (int64_t r = 0; r < count; ++r) {
      while (row0 + r >= work.row_begin[segment + 1]) ++segment;
      const Segment& s = work.segments[segment];
      const int64_t within = row0 + r - work.row_begin[segment];
      source[r] = element(p.tokens, s.offset + (s.first + within) * p.tokens.row_stride, size);
      targets[r] = s.scores + within;
      best[r] = {INT32_MIN, 0};
    }
    std::fill(squares.begin(), squares.end(), 0.0f);
    for (int64_t p0 = 0; p0 < p.prototype_count; p0 += chunk_panels * kPanel) {
      const int64_t panels = std::min(chunk_panels, ceil_div(p.prototype_count - p0, kPanel));
      for (int64_t d0 = 0; d0 < p.width; d0 += depth_elements) {
        const int64_t elements = std::min(depth_elements, p.width - d0);
        int64_t depth = 0;
        for (int64_t panel = 0; panel < panels; ++panel) {
          for (int64_t c = 0; c < kPanel; ++c) {
            const int64_t proto = p0 + panel * kPanel + c;
            uint32_t* to = rows.data() + c * kDepth;
            if (proto < p.prototype_count) {
              const int64_t at = proto * p.prototypes.row_stride + d0 * p.prototypes.col_stride;
              const char* from = element(p.prototypes, at, size);
              const char* following = from + p.prototypes.row_stride * size;
              for (int64_t i = 0; i < kDepth; i += kLine) __builtin_prefetch(following + i * unit_bytes);
              depth = load_units<V>(from, p.dtype, elements, p.prototypes.col_stride, to);
            } else {
              memset(to, 0, kDepth * sizeof(uint32_t));
            }
          }
          transpose<kPanel>(rows.data(), depth, packed.units() + panel * kPanel * kDepth);
        }
        for (int64_t r0 = 0; r0 < count; r0 += kRows) {
          const int64_t live = std::min<int64_t>(kRows, count - r0);
          for (int64_t r = 0; r < live; ++r) {
            uint32_t* to = rows.data() + r * kDepth;
            const char* from = source[r0 + r] + d0 * p.tokens.col_stride * size;
            load_units<V>(from, p.dtype, elements, p.tokens.col_stride, to);
            if (p0 == 0 && p.cosine) add_squares<V>(to, depth, squares.data() + (r0 + r) * V::kWidth);
          }
          // The rows read next are those of the next panel, or the first ones again, a chunk of D further.
          const bool more = r0 + kRows < count;
          const int64_t next = more ? r0 + kRows : 0, next_d = more ? d0 : d0 + elements;
          const int64_t ahead = next_d < p.width ? std::min<int64_t>(kRows, count - next) : 0;
          for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t from = ahead * panel / panels, to = ahead * (panel + 1) / panels;
            multiply<V, kRows, kVectors>(
                rows.data(), packed.units() + panel * kPanel * kDepth, depth, d0 == 0,
                {source.data() + next + from, to - from, next_d * p.tokens.col_stride * size, kLine * unit_bytes},
                tile.floats() + (r0 * panels + panel * kRows) * kPanel);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t r0 = r / kRows * kRows;
        for (int64_t panel = 0; panel < panels; ++panel) {
          const int64_t first = p0 + panel * kPanel;
          const float* dots = tile.floats() + (r0 * panels + panel * kRows + r - r0) * kPanel;
          update_best(dots, work.rnorm + first, first, std::min(kPanel, p.prototype_count - first),
                      p.argmax.data != nullptr, best[r]);
        }
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      const float value = max_key_value(best[r].key);
      float norm2 = 0;
      for (int i = 0; i < V::kWidth; ++i) norm2 += squares[r * V::kWidth + i];
      const float scale = p.cosine ? reciprocal_norm(norm2) : 1.0f;
      p.scores[targets[r]] = (best[r].key == kNanKey ? NAN : value * scale) + 0.0f;
      if (p.argmax.data != nullptr) p.argmax.store(targets[r], best[r].prototype);
    }
  }
}

template <class V>
void score(const ScoreWork& work, int64_t begin, int64_t end) {
  const int64_t vectors = ceil_div(work.problem->prototype_count, V::kWidth);
  if (vectors == 1) {
    score_rows<V, V::kRows2, 1>(work, begin, end);
  } else if (vectors % 2 == 1 && vectors % 3 == 0) {
    score_rows<V, V::kRows3, 3>(work, begin, end);
  } else {
    score_rows<V, V::kRows2, 2>(work, begin, end);
  }
}
