// Products of rows, for one instruction set. Included by products_<isa>.cpp inside a namespace, after tile.inl.
//
// The unit of work is a panel of rows x a block of columns. A thread takes a run of units of one block at a time: it
// packs the block's columns for a chunk of D and multiplies all of its rows with them, chunk after chunk.

constexpr int64_t kBlockColumns = 512;           // most columns packed at a time
constexpr int64_t kProductTileFloats = 1 << 20;  // accumulators of a run of units

// The units in their order, and their weights, by which threads share them.
template <int kRows, int kPanel>
struct ProductPlan {
  struct Block {
    int64_t column;     // the first one
    int64_t panels;     // of columns
    int64_t row_panel;  // of its first unit
    int64_t unit;       // its first unit
  };

  explicit ProductPlan(const ProductProblem& p) {
    const int64_t panels = ceil_div(p.columns, kPanel), row_panels = ceil_div(p.rows, kRows);
    block_panels = ceil_div(panels, ceil_div(panels, kBlockColumns / kPanel));
    weight_before.push_back(0);
    for (int64_t panel = 0; panel < panels; panel += block_panels) {
      const int64_t column = panel * kPanel, first = p.symmetric ? column / kRows : 0;
      blocks.push_back({column, std::min(block_panels, panels - panel), first, units()});
      for (int64_t r = first; r < row_panels; ++r) {
        weight_before.push_back(weight_before.back() + used_panels(p, blocks.back(), r));
      }
    }
    blocks.push_back({p.columns, 0, row_panels, units()});
  }

  int64_t units() const { return static_cast<int64_t>(weight_before.size()) - 1; }

  // Panels of columns of a block that a panel of rows needs: with symmetry, those that begin under the diagonal.
  static int64_t used_panels(const ProductProblem& p, const Block& block, int64_t row_panel) {
    if (!p.symmetric) return block.panels;
    const int64_t last = std::min((row_panel + 1) * kRows, p.rows) - 1;
    return last < block.column ? 0 : std::min(block.panels, (last - block.column) / kPanel + 1);
  }

  int64_t block_panels;
  std::vector<Block> blocks;           // and one past the end
  std::vector<int64_t> weight_before;  // [units + 1]
};

template <class V>
class Multiplier {
  static constexpr int kRows = V::kRows2, kVectors = 2, kPanel = kVectors * V::kWidth;

 public:
  using Plan = ProductPlan<kRows, kPanel>;
  using Block = typename Plan::Block;

  Multiplier(const ProductProblem& problem, const Plan& plan, int64_t units)
      : p_(problem),
        plan_(plan),
        size_(element_size(p_.dtype)),
        unit_(V::kPairs ? 2 : 1),
        panels_(plan.block_panels),
        depth_(chunk_depth()),
        tile_panels_(std::clamp<int64_t>(kProductTileFloats / (panels_ * kPanel * kRows), 1, units)) {
    Scratch scratch(kRows * kRowStride + kPanel * (kSum + panels_ * (depth_ + tile_panels_ * kRows)));
    rows_ = scratch.take<uint32_t>(kRows * kRowStride);
    columns_ = scratch.take<uint32_t>(kPanel * kSum);
    packed_ = scratch.take<uint32_t>(panels_ * kPanel * depth_);
    tile_ = scratch.take<float>(panels_ * kPanel * tile_panels_ * kRows);
  }

  void run(int64_t begin, int64_t end) {
    size_t at = 0;
    while (begin < end) {
      while (begin >= plan_.blocks[at + 1].unit) ++at;
      const int64_t count = std::min({tile_panels_, end - begin, plan_.blocks[at + 1].unit - begin});
      run_units(plan_.blocks[at], plan_.blocks[at].row_panel + begin - plan_.blocks[at].unit, count);
      begin += count;
    }
  }

 private:
  int64_t chunk_depth() const {
    const int64_t fit = std::clamp(kPackedUnits / (panels_ * kPanel) / kSum * kSum, kSum, kMaxDepth);
    const int64_t units = ceil_div(std::max<int64_t>(1, p_.width), unit_);
    return ceil_div(ceil_div(units, ceil_div(units, fit)), kSum) * kSum;
  }

  void run_units(const Block& block, int64_t first, int64_t count) {
    const int64_t most = Plan::used_panels(p_, block, first + count - 1);
    if (p_.width == 0) memset(tile_, 0, panels_ * kPanel * tile_panels_ * kRows * sizeof(float));
    for (int64_t d = 0; d < p_.width; d += depth_ * unit_) {
      const int64_t elements = std::min(depth_ * unit_, p_.width - d);
      for (int64_t panel = 0; panel < most; ++panel) {
        for (int64_t k = 0; k < elements; k += kSum * unit_) {
          pack(block.column + panel * kPanel, d + k, std::min(kSum * unit_, elements - k),
               packed_ + (panel * depth_ + k / unit_) * kPanel);
        }
      }
      for (int64_t r = 0; r < count; ++r) add_rows(block, first + r, r, d, elements, r + 1 < count);
    }
    finish(block, first, count, most);
  }

  int64_t a_row(int64_t i) const { return p_.a_rows == nullptr ? i : p_.a_rows[i]; }
  int64_t b_row(int64_t j) const { return p_.b_rows == nullptr ? j : p_.b_rows[j]; }

  const char* source(const Matrix& m, int64_t row, int64_t d) const {
    return element(m, row * m.row_stride + d * m.col_stride, size_);
  }

  // Adds the products of elements [d, d + elements) of one panel of rows, the `at`-th of this run.
  void add_rows(const Block& block, int64_t row_panel, int64_t at, int64_t d, int64_t elements, bool more) {
    const int64_t depth = ceil_div(elements, unit_), row = row_panel * kRows,
                  rows = std::min(kRows + row, p_.rows) - row;
    for (int64_t r = 0; r < rows; ++r) {
      load_units<V>(source(p_.a, a_row(row + r), d), p_.dtype, elements, p_.a.col_stride, rows_ + r * kRowStride);
    }
    for (int64_t r = rows; r < kRows; ++r) memset(rows_ + r * kRowStride, 0, depth * sizeof(uint32_t));
    const int64_t panels = Plan::used_panels(p_, block, row_panel);
    const char* next[kRows];
    const int64_t ahead = more ? std::min(2 * kRows + row, p_.rows) - row - kRows : 0;
    for (int64_t r = 0; r < ahead; ++r) next[r] = source(p_.a, a_row(row + kRows + r), d);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t from = ahead * panel / panels, to = ahead * (panel + 1) / panels;
      const Ahead lines{next + from, to - from, 0, kLine * unit_ * size_};
      multiply<V, kRows, kVectors, kVectors>(rows_, packed_ + panel * depth_ * kPanel, depth, d == 0, lines,
                                             tile_ + (panel * tile_panels_ + at) * kRows * kPanel);
    }
  }

  // Elements [d, d + elements) of a panel of columns.
  void pack(int64_t column, int64_t d, int64_t elements, uint32_t* to) {
    for (int64_t c = 0; c < kPanel; ++c) {
      uint32_t* units = columns_ + c * kSum;
      if (column + c >= p_.columns) {
        memset(units, 0, kSum * sizeof(uint32_t));
        continue;
      }
      const char* from = source(p_.b, b_row(column + c), d);
      const char* following = source(p_.b, b_row(std::min(column + c + 1, p_.columns - 1)), d);
      for (int64_t i = 0; i < elements * size_; i += 64) __builtin_prefetch(following + i);
      load_units<V>(from, p_.dtype, elements, p_.b.col_stride, units);
    }
    transpose<kPanel>(columns_, ceil_div(elements, unit_), to);
  }

  // Scales the sums and writes them, and their mirror image.
  void finish(const Block& block, int64_t first, int64_t count, int64_t panels) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t column = block.column + panel * kPanel, width = std::min<int64_t>(kPanel, p_.columns - column);
      float scale[kPanel] = {};
      for (int64_t c = 0; p_.b_scale != nullptr && c < width; ++c) scale[c] = p_.b_scale[b_row(column + c)];
      for (int64_t at = 0; at < count; ++at) {
        const int64_t row = (first + at) * kRows, rows = std::min(row + kRows, p_.rows) - row;
        if (p_.symmetric && row + rows <= column) continue;
        float* tile = tile_ + (panel * tile_panels_ + at) * kRows * kPanel;
        for (int64_t r = 0; r < rows; ++r) {
          float* sums = tile + r * kPanel;
          if (p_.a_scale != nullptr) {
            const float row_scale = p_.a_scale[a_row(row + r)];
            for (int c = 0; c < kPanel; ++c) sums[c] *= row_scale * scale[c];
          }
          const int64_t under = p_.symmetric ? std::min(width, row + r - column + 1) : width;
          if (under > 0) memcpy(p_.out + (row + r) * p_.out_stride + column, sums, under * sizeof(float));
        }
        if (p_.symmetric) mirror(tile, row, rows, column, width);
      }
    }
  }

  void mirror(const float* tile, int64_t row, int64_t rows, int64_t column, int64_t width) {
    for (int64_t c = 0; c < width; ++c) {
      float* to = p_.out + (column + c) * p_.out_stride + row;
      for (int64_t r = std::max<int64_t>(0, column + c - row + 1); r < rows; ++r) to[r] = tile[r * kPanel + c];
    }
  }

  const ProductProblem& p_;
  const Plan& plan_;
  const int64_t size_;         // bytes of an element
  const int64_t unit_;         // elements of a unit
  const int64_t panels_;       // of columns, packed at a time
  const int64_t depth_;        // units of D, packed at a time
  const int64_t tile_panels_;  // of rows, multiplied with one block at a time
  uint32_t* rows_;             // [kRows][kRowStride] units of one panel of rows
  uint32_t* columns_;          // [kPanel][kSum] units before packing
  uint32_t* packed_;           // [panels_][depth_][kPanel]
  float* tile_;                // [panels_][tile_panels_][kRows][kPanel] sums
};

template <class V>
void product_rows(const Parallel& parallel, const ProductProblem& p) {
  const typename Multiplier<V>::Plan plan(p);
  const auto& before = plan.weight_before;
  // Below about 2^18 multiply-adds a second thread costs more than it saves.
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, p.width * V::kRows2 * 2 * V::kWidth));
  parallel(before.back(), grain, [&](int64_t begin, int64_t end) {
    const int64_t first = std::lower_bound(before.begin(), before.end() - 1, begin) - before.begin();
    const int64_t last = std::lower_bound(before.begin(), before.end() - 1, end) - before.begin();
    if (first < last) Multiplier<V>(p, plan, last - first).run(first, last);
  });
}

template <class V>
void norms_of_rows(const Parallel& parallel, DType dtype, const Matrix& m, int64_t rows, int64_t width, bool reciprocal,
                   float* out) {
  const int64_t size = element_size(dtype);
  parallel(rows, std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t units[kSum];
    for (int64_t i = begin; i < end; ++i) {
      alignas(64) float sums[V::kWidth] = {};
      for (int64_t d = 0; d < width; d += kSum) {
        const int64_t count = load_units<V>(element(m, i * m.row_stride + d * m.col_stride, size), dtype,
                                            std::min(kSum, width - d), m.col_stride, units);
        add_squares<V>(units, count, sums);
      }
      out[i] = reciprocal ? reciprocal_norm(total<V>(sums)) : total<V>(sums);
    }
  });
}

template <class V>
void load_row(DType dtype, const Matrix& m, int64_t row, int64_t width, uint32_t* units) {
  const int64_t size = element_size(dtype);
  const int64_t count = load_units<V>(element(m, row * m.row_stride, size), dtype, width, m.col_stride, units);
  for (int64_t i = ceil_div(count, V::kWidth) * V::kWidth; i < unit_stride(width); ++i) units[i] = 0;
}

constexpr int64_t kDotChunk = 512;              // units: so much of kDotRows rows stays in the first-level cache
constexpr int64_t kDotStride = kDotChunk + 16;  // not a power of two, for the cache's sets

// sums[j * kDotRows + i] += the kWidth partial sums of <a_i, b_j>, or |a_i - b_j|^2, over `units` units, those of b_j
// from `from` on. Meanwhile the rows `next` are requested.
template <class V, bool kSquares, int kTileRows, int kCount>
void add_dots(const uint32_t* a, const uint32_t* const* b, int64_t from, int64_t units, const uint32_t* const* next,
              int64_t next_count, float* sums) {
  typename V::Reg acc[kCount][kTileRows];
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) acc[j][i] = V::zero();
  }
  for (int64_t k = 0; k < units; k += V::kWidth) {
    for (int64_t i = 0; k % 16 == 0 && i < next_count; ++i) __builtin_prefetch(next[i] + from + kDotChunk + k);
    typename V::Reg bv[kCount];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) bv[j] = V::load(b[j] + from + k);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      typename V::Reg av = V::load(a + i * kDotStride + k);
#if defined(__x86_64__)
      __asm__("" : "+v"(av));  // gcc would load it again for every product, and loads are the limit
#endif
#pragma GCC unroll 4
      for (int j = 0; j < kCount; ++j) {
        const typename V::Reg difference = av - bv[j];
        acc[j][i] = kSquares ? V::dot(difference, difference, acc[j][i]) : V::dot(av, bv[j], acc[j][i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      float* at = sums + (j * kDotRows + i) * V::kWidth;
      V::store(at, V::add(V::load(reinterpret_cast<uint32_t*>(at)), acc[j][i]));
    }
  }
}

template <class V, bool kSquares>
void sums_of_rows(const uint32_t* const* a, const uint32_t* const* b, int64_t count, int64_t width, float* out) {
  constexpr int kTileRows = V::kWidth >= 16 ? 8 : 4, kTileColumns = V::kWidth >= 16 ? 3 : 2;  // fill the registers
  const int64_t all = V::kPairs ? ceil_div(width, 2) : width;
  alignas(64) uint32_t rows[kDotRows * kDotStride];
  alignas(64) float sums[kDotColumns * kDotRows * V::kWidth];
  memset(sums, 0, count * kDotRows * V::kWidth * sizeof(float));
  for (int64_t from = 0; from < all; from += kDotChunk) {
    const int64_t units = ceil_div(std::min(kDotChunk, all - from), V::kWidth) * V::kWidth;
    for (int i = 0; i < kDotRows; ++i) memcpy(rows + i * kDotStride, a[i] + from, units * sizeof(uint32_t));
    const int64_t ahead = from + kDotChunk < all ? kDotRows : 0;
    for (int64_t j = 0; j < count; j += kTileColumns) {
      const int64_t left = std::min<int64_t>(kTileColumns, count - j);
      const int64_t first = ahead * j / count, requests = ahead * (j + left) / count - first;
      for (int i = 0; i < kDotRows; i += kTileRows) {
        const uint32_t* tile = rows + i * kDotStride;
        float* at = sums + (j * kDotRows + i) * V::kWidth;
        const int64_t now = i == 0 ? requests : 0;
        if (left == kTileColumns) {
          add_dots<V, kSquares, kTileRows, kTileColumns>(tile, b + j, from, units, a + first, now, at);
        } else if (left == 2) {
          add_dots<V, kSquares, kTileRows, 2>(tile, b + j, from, units, a + first, now, at);
        } else {
          add_dots<V, kSquares, kTileRows, 1>(tile, b + j, from, units, a + first, now, at);
        }
      }
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    for (int i = 0; i < kDotRows; ++i) {
      float* lanes = sums + (j * kDotRows + i) * V::kWidth;
      for (int w = V::kWidth / 2; w > 0; w /= 2) {
        for (int l = 0; l < w; ++l) lanes[l] += lanes[l + w];
      }
      out[i * count + j] = lanes[0];
    }
  }
}

template <class V>
void column_argmax(const float* values, int64_t rows, int64_t columns, float* best, int32_t* at) {
  std::fill_n(at, columns, -1);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = values + r * columns;
    for (int64_t c = 0; c < columns; ++c) {
      const bool better = row[c] > best[c];
      at[c] = better ? static_cast<int32_t>(r) : at[c];
      best[c] = better ? row[c] : best[c];
    }
  }
}

template <class V>
void combine(const float* rows, int64_t stride, int64_t count, int64_t j, int64_t n, float* out) {
  constexpr int kVectors = 64 / V::kWidth < 8 ? 64 / V::kWidth : 8;
  for (int64_t i = 0; i < n; i += kVectors * V::kWidth) {
    typename V::Reg acc[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[v] = V::zero();
    for (int64_t t = 0; t < count; ++t) {
      const auto* row = reinterpret_cast<const uint32_t*>(rows + t * stride);
      const typename V::Reg factor = V::broadcast(row + j);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[v] = V::dot(factor, V::load(row + i + v * V::kWidth), acc[v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) V::store(out + i + v * V::kWidth, acc[v]);
  }
}

template <class V>
int64_t argmax(const float* values, int64_t n) {
  int32_t highest = INT32_MIN;
  for (int64_t i = 0; i < n; ++i) highest = std::max(highest, max_key(values[i]));
  int64_t i = 0;
  while (max_key(values[i]) != highest) ++i;
  return i;
}

// V holds the units of the inputs, F floats.
template <class V, class F>
constexpr ProductKernels kernels() {
  return {product_rows<V>,       norms_of_rows<V>, load_row<V>, sums_of_rows<V, false>,
          sums_of_rows<F, true>, column_argmax<F>, combine<F>,  argmax<F>};
}
