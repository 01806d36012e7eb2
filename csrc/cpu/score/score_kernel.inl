// The score kernel, for one instruction set. Included by score_<isa>.cpp inside a namespace, after tile.inl.
//
// Per thread: a tile of rows x a chunk of prototypes accumulates over chunks of D. Prototypes are packed so that a
// vector holds kWidth of them; token values are broadcast. Each product is exact and added in float32, chunk by chunk
// in fixed order, so a row's score depends on neither its neighbours nor the number of threads.

constexpr int64_t kChunkPrototypes = 512;  // most prototypes packed at a time
constexpr int64_t kTileFloats = 1 << 19;   // accumulators of a tile

struct Best {
  int32_t key;
  int32_t prototype;
};

// The best of the first `count` similarities of a panel, lowest prototype among equals. The loop has a fixed length so
// that it vectorises; `rnorm` and `bias`, which counts only with kBias, are padded to whole panels.
template <int kPanel, bool kBias>
void update_best(const float* dots, const float* rnorm, const float* bias, int64_t first, int64_t count,
                 bool want_argmax, Best& best) {
  int32_t keys[kPanel];
  for (int p = 0; p < kPanel; ++p) {
    const int32_t key = max_key(kBias ? dots[p] * rnorm[p] + bias[p] : dots[p] * rnorm[p]);
    keys[p] = p < count ? key : INT32_MIN;
  }
  int32_t highest = INT32_MIN;
  for (int p = 0; p < kPanel; ++p) highest = std::max(highest, keys[p]);
  if (highest <= best.key) return;
  best.key = highest;
  if (want_argmax) best.prototype = static_cast<int32_t>(first + (std::find(keys, keys + kPanel, highest) - keys));
}

// Adds a panel to the m best of a row, a heap of packed keys whose root is the worst.
template <int kPanel>
void update_top(const float* dots, const float* rnorm, const float* bias, int64_t first, int64_t count, int64_t m,
                uint64_t* heap, int64_t& size) {
  uint32_t keys[kPanel];
  uint32_t highest = 0;
  for (int p = 0; p < kPanel; ++p) {
    const uint32_t key = selection_key(dots[p] * rnorm[p] + bias[p], true);
    keys[p] = p < count ? key : 0;
  }
  for (int p = 0; p < kPanel; ++p) highest = std::max(highest, keys[p]);
  if (size == m && highest <= heap[0] >> 32) return;  // an equal one has a higher index
  for (int64_t p = 0; p < count; ++p) {
    const uint64_t packed = static_cast<uint64_t>(keys[p]) << 32 | (0xffffffffu - static_cast<uint32_t>(first + p));
    if (size < m) {
      heap[size++] = packed;
      std::push_heap(heap, heap + size, std::greater<>());
    } else if (packed > heap[0]) {
      std::pop_heap(heap, heap + m, std::greater<>());
      heap[m - 1] = packed;
      std::push_heap(heap, heap + m, std::greater<>());
    }
  }
}

// e^x: a power of two, and a polynomial on [-ln 2 / 2, ln 2 / 2]. Without branches, so that loops vectorise.
inline float exponential(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 89.0f ? 89.0f : x);  // NaN stays
  const float shifted = clamped * 1.44269504f + 12582912.0f;            // rounds: 1.5 * 2^23
  const float n = shifted - 12582912.0f;
  const float r = clamped - n * 0.693359375f - n * -2.12194440e-4f;
  float y = r * (1.0f / 720) + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r * r + r + 1.0f;
  const uint32_t exponent = float_bits(shifted) - float_bits(12582912.0f) + 127;
  return y * bits_float(exponent << 23);
}

// exp of the cosines of a panel, 0 from `count` on.
template <int kPanel>
void exponentials(const float* dots, const float* rnorm, float scale, int64_t count, float* out) {
  for (int p = 0; p < kPanel; ++p) {
    const float e = exponential(dots[p] * rnorm[p] * scale);
    out[p] = p < count ? e : 0.0f;
  }
}

// Adds a panel to a row's softmax: per lane the sum of the exponentials, and the largest weight but for that sum.
template <int kPanel, int kWidth>
void update_softmax(const float* e, const float* token_sums, int64_t count, float* sums, float* largest) {
  float weight[kPanel];
  for (int p = 0; p < kPanel; ++p) weight[p] = e[p];
  if (token_sums != nullptr) {
    for (int64_t p = 0; p < count; ++p) weight[p] = e[p] * (e[p] / token_sums[p]);
  }
  for (int p = 0; p < kPanel; p += kWidth) {
    for (int i = 0; i < kWidth; ++i) {
      const float w = weight[p + i];
      sums[i] += e[p + i] + (w - w);  // a NaN weight is lost by the comparison
      largest[i] = w > largest[i] ? w : largest[i];
    }
  }
}

#include "shortlist.inl"

// Scores of a range of rows, tile by tile. Rounded products need a shortlist, and leave some rows.
template <class V, int kRows, int kVectors>
class Scorer {
 public:
  Scorer(const ScoreWork& work, int64_t rows, Shortlist<V>* shortlist = nullptr, std::vector<Segment>* left = nullptr)
      : work_(work),
        p_(*work.problem),
        shortlist_(shortlist),
        left_(left),
        size_(element_size(p_.dtype)),
        unit_(V::kPairs ? 2 : 1),
        panels_(std::min(ceil_div(p_.prototype_count, kPanel), kChunkPrototypes / kPanel)),
        depth_(chunk_depth()),
        tile_rows_(kRows *
                   std::max<int64_t>(1, std::min(ceil_div(rows, kRows), kTileFloats / (panels_ * kPanel * kRows)))),
        settles_at_once_(V::kRounded && panels_ * kPanel >= p_.prototype_count && depth_ * unit_ >= p_.width),
        rnorm_(ceil_div(p_.prototype_count, kPanel) * kPanel, 1.0f),
        bias_(rnorm_.size(), 0.0f),
        prototype_squares_(panels_ * kPanel * V::kWidth),
        source_(tile_rows_),
        target_(tile_rows_),
        segment_(tile_rows_),
        best_(p_.mode == ScoreMode::kBest ? tile_rows_ : 0),
        heap_(p_.mode == ScoreMode::kTop ? tile_rows_ * p_.m : 0),
        heap_size_(p_.mode == ScoreMode::kTop ? tile_rows_ : 0),
        softmax_(p_.mode == ScoreMode::kSoftmax ? tile_rows_ * 2 * V::kWidth : 0) {
    if (p_.rnorm != nullptr)
      for (int64_t p = 0; p < p_.prototype_count; ++p) rnorm_[p] = p_.rnorm[p * p_.rnorm_stride];
    needs_norms_ = (p_.cosine && p_.rnorm == nullptr) || p_.l2;
    const int64_t errors = V::kRounded ? tile_rows_ * V::kWidth : 0, floats = V::kRounded ? depth_ * unit_ : 0;
    Scratch scratch(kRows * kRowStride + kPanel * (kSum + panels_ * (depth_ + tile_rows_)) + tile_rows_ * V::kWidth +
                    errors + floats);
    rows_ = scratch.take<uint32_t>(kRows * kRowStride);
    columns_ = scratch.take<uint32_t>(kPanel * kSum);
    packed_ = scratch.take<uint32_t>(panels_ * kPanel * depth_);
    tile_ = scratch.take<float>(panels_ * kPanel * tile_rows_);
    squares_ = scratch.take<float>(tile_rows_ * V::kWidth);
    errors_ = scratch.take<float>(errors);
    floats_ = scratch.take<float>(floats);
    if (p_.width == 0) std::fill_n(tile_, panels_ * kPanel * tile_rows_, 0.0f);
  }

  void run(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += tile_rows_) {
      start_tile(row, std::min(tile_rows_, end - row));
      for (int64_t first = 0; first < p_.prototype_count; first += panels_ * kPanel) {
        const int64_t panels = std::min(panels_, ceil_div(p_.prototype_count - first, kPanel));
        for (int64_t d = 0; d < p_.width; d += depth_ * unit_) add_chunk(first, panels, d);
        if (needs_norms_) finish_norms(first, panels);
        if (!settles_at_once_) update_rows(first, panels, 0, count_);
      }
      if (!settles_at_once_) settle(0, count_);
      needs_norms_ = false;  // the first tile has met every prototype
      finish_tile();
    }
  }

 private:
  static constexpr int64_t kPanel = kVectors * V::kWidth;  // prototypes in a panel

  // Equal chunks of D, as long as the packed prototypes fit.
  int64_t chunk_depth() const {
    const int64_t fit = std::clamp(kPackedUnits / (panels_ * kPanel) / kSum * kSum, kSum, kMaxDepth);
    const int64_t units = ceil_div(std::max<int64_t>(1, p_.width), unit_);
    return ceil_div(ceil_div(units, ceil_div(units, fit)), kSum) * kSum;
  }

  void start_tile(int64_t begin, int64_t count) {
    count_ = count;
    int64_t s =
        std::upper_bound(work_.row_begin, work_.row_begin + work_.segment_count + 1, begin) - work_.row_begin - 1;
    for (int64_t r = 0; r < count; ++r) {
      while (begin + r >= work_.row_begin[s + 1]) ++s;
      const Segment& segment = work_.segments[s];
      const int64_t within = begin + r - work_.row_begin[s];
      source_[r] = element(p_.tokens, segment.offset + (segment.first + within) * p_.tokens.row_stride, size_);
      target_[r] = segment.scores + within * p_.score_stride;
      segment_[r] = s;
    }
    std::fill(best_.begin(), best_.end(), Best{INT32_MIN, 0});
    std::fill(heap_size_.begin(), heap_size_.end(), 0);
    std::fill(softmax_.begin(), softmax_.end(), 0.0f);
    std::fill_n(squares_, tile_rows_ * V::kWidth, 0.0f);
    if constexpr (V::kRounded) {
      std::fill_n(errors_, tile_rows_ * V::kWidth, 0.0f);
      shortlist_->start(count);
    }
  }

  // Adds the products of elements [d, d + a chunk) of every row of the tile and the prototypes from `first` on.
  void add_chunk(int64_t first, int64_t panels, int64_t d) {
    const int64_t elements = std::min(depth_ * unit_, p_.width - d), depth = ceil_div(elements, unit_);
    for (int64_t panel = 0; !is_packed_ && panel < panels; ++panel) {
      for (int64_t k = 0; k < depth; k += kSum) {
        pack(first, panel, d + k * unit_, std::min(kSum * unit_, elements - k * unit_),
             packed_ + (panel * depth_ + k) * kPanel);
      }
    }
    is_packed_ = settles_at_once_;
    for (int64_t r0 = 0; r0 < count_; r0 += kRows) {
      for (int64_t r = 0; r < std::min<int64_t>(kRows, count_ - r0); ++r) {
        uint32_t* to = rows_ + r * kRowStride;
        const char* from = source_[r0 + r] + d * p_.tokens.col_stride * size_;
        const int64_t sums = (r0 + r) * V::kWidth;
        if constexpr (V::kRounded) {
          round_units<V>(floats_of(from, p_.dtype, elements, p_.tokens.col_stride, floats_), elements, to,
                         first == 0 ? squares_ + sums : nullptr, errors_ + sums);
        } else {
          load_units<V>(from, p_.dtype, elements, p_.tokens.col_stride, to);
          if (first == 0 && (p_.cosine || p_.l2)) add_squares<V>(to, depth, squares_ + sums);
        }
      }
      for (int64_t r = count_ - r0; r < kRows; ++r) memset(rows_ + r * kRowStride, 0, depth * sizeof(uint32_t));
      // The rows read next are those of the next panel, or the first ones again, a chunk of D further.
      const bool more = r0 + kRows < count_;
      const int64_t next = more ? r0 + kRows : 0, next_d = more ? d : d + elements;
      const int64_t ahead = next_d < p_.width ? std::min<int64_t>(kRows, count_ - next) : 0;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t from = ahead * panel / panels, to = ahead * (panel + 1) / panels;
        const Ahead lines{source_.data() + next + from, to - from, next_d * p_.tokens.col_stride * size_,
                          kLine * unit_ * size_};
        const uint32_t* prototypes = packed_ + panel * depth_ * kPanel;
        float* sums = tile_ + (r0 * panels + panel * kRows) * kPanel;
        if (p_.prototype_count - first - panel * kPanel > V::kWidth) {
          multiply<V, kRows, kVectors, kVectors>(rows_, prototypes, depth, d == 0, lines, sums);
        } else {  // one vector holds what is left
          multiply<V, kRows, 1, kVectors>(rows_, prototypes, depth, d == 0, lines, sums);
        }
      }
      if (settles_at_once_) {
        const int64_t end = std::min(r0 + kRows, count_);
        update_rows(first, panels, r0, end);
        settle(r0, end);
      }
    }
  }

  // Elements [d, d + elements) of one panel of the chunk of prototypes that begins with `first`.
  void pack(int64_t first, int64_t panel, int64_t d, int64_t elements, uint32_t* to) {
    const int64_t units = ceil_div(elements, unit_);
    for (int64_t c = 0; c < kPanel; ++c) {
      const int64_t within = panel * kPanel + c, prototype = first + within;
      uint32_t* column = columns_ + c * kSum;
      if (prototype >= p_.prototype_count) {
        memset(column, 0, units * sizeof(uint32_t));
        continue;
      }
      const char* from =
          element(p_.prototypes, prototype * p_.prototypes.row_stride + d * p_.prototypes.col_stride, size_);
      const char* following = from + p_.prototypes.row_stride * size_;
      for (int64_t i = 0; i < elements * size_; i += 64) __builtin_prefetch(following + i);
      if constexpr (V::kRounded) {
        round_units<V>(floats_of(from, p_.dtype, elements, p_.prototypes.col_stride, floats_), elements, column,
                       nullptr, nullptr);
      } else {
        load_units<V>(from, p_.dtype, elements, p_.prototypes.col_stride, column);
      }
      if (needs_norms_) {
        float* sums = prototype_squares_.data() + within * V::kWidth;
        if (d == 0) std::fill_n(sums, V::kWidth, 0.0f);
        add_squares<V>(column, units, sums);
      }
    }
    transpose<kPanel>(columns_, units, to);
  }

  void finish_norms(int64_t first, int64_t panels) {
    const int64_t count = std::min(panels * kPanel, p_.prototype_count - first);
    for (int64_t i = 0; i < count; ++i) {
      const float squares = p_.width == 0 ? 0.0f : total<V>(prototype_squares_.data() + i * V::kWidth);
      if (p_.l2) {
        bias_[first + i] = -0.5f * squares;
      } else {
        rnorm_[first + i] = reciprocal_norm(squares);
      }
    }
  }

  // update(row of the tile, products with a panel, its first prototype, how many it has) for rows and all panels.
  template <class Update>
  void for_each_panel(int64_t first, int64_t panels, int64_t begin, int64_t end, const Update& update) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t r0 = r / kRows * kRows;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t at = first + panel * kPanel;
        update(r, tile_ + (r0 * panels + panel * kRows + r - r0) * kPanel, at,
               std::min(kPanel, p_.prototype_count - at));
      }
    }
  }

  // What the products of all of D with a chunk of prototypes mean for rows [begin, end).
  void update_rows(int64_t first, int64_t panels, int64_t begin, int64_t end) {
    const float *rnorm = rnorm_.data(), *bias = bias_.data();
    const bool argmax = p_.argmax.data != nullptr;
    if constexpr (V::kRounded) {
      for_each_panel(first, panels, begin, end, [&](int64_t r, const float* dots, int64_t at, int64_t count) {
        shortlist_->template add<kPanel>(r, squares_ + r * V::kWidth, errors_ + r * V::kWidth, dots, rnorm + at, at,
                                         count);
      });
    } else if (p_.mode == ScoreMode::kBest && !p_.l2) {
      for_each_panel(first, panels, begin, end, [&](int64_t r, const float* dots, int64_t at, int64_t count) {
        update_best<kPanel, false>(dots, rnorm + at, nullptr, at, count, argmax, best_[r]);
      });
    } else if (p_.mode == ScoreMode::kBest) {
      for_each_panel(first, panels, begin, end, [&](int64_t r, const float* dots, int64_t at, int64_t count) {
        update_best<kPanel, true>(dots, rnorm + at, bias + at, at, count, argmax, best_[r]);
      });
    } else if (p_.mode == ScoreMode::kTop) {
      for_each_panel(first, panels, begin, end, [&](int64_t r, const float* dots, int64_t at, int64_t count) {
        update_top<kPanel>(dots, rnorm + at, bias + at, at, count, p_.m, heap_.data() + r * p_.m, heap_size_[r]);
      });
    } else {
      for_each_panel(first, panels, begin, end, [&](int64_t r, const float* dots, int64_t at, int64_t count) {
        float e[kPanel];
        exponentials<kPanel>(dots, rnorm + at, row_rnorm(r), count, e);
        if (p_.mode == ScoreMode::kTokenSums) {
          float* sums = p_.token_sums + target_[r] / kSumTokens * p_.prototype_count + at;
          for (int64_t p = 0; p < count; ++p) sums[p] += e[p];
          return;
        }
        const bool over = p_.token_sums != nullptr;
        const float* sums = over ? p_.token_sums + segment_[r] * p_.prototype_count + at : nullptr;
        float* lanes = softmax_.data() + r * 2 * V::kWidth;
        update_softmax<kPanel, V::kWidth>(e, sums, count, lanes, lanes + V::kWidth);
      });
    }
  }

  // Exact products for rows [begin, end) of a shortlist, which have met every prototype.
  void settle(int64_t begin, int64_t end) {
    if constexpr (V::kRounded) {
      for (int64_t r = begin; r < end; ++r) best_[r] = shortlist_->best(r, source_[r]);
    }
  }

  float row_rnorm(int64_t r) const { return reciprocal_norm(total<V>(squares_ + r * V::kWidth)); }

  // A similarity without its part that depends on the token alone, and that part.
  float finish_score(float best, float squares) const {
    if (p_.cosine) best *= reciprocal_norm(squares);
    if (p_.l2) {
      best = 2.0f * best - squares;
      best = best > 0 ? 0.0f : best;
    }
    return best + 0.0f;
  }

  void finish_tile() {
    if (p_.mode == ScoreMode::kTokenSums) return;
    for (int64_t r = 0; r < count_; ++r) {
      if (V::kRounded && best_[r].prototype < 0) {
        left_->push_back(row_segment(r));
        continue;
      }
      const float squares = total<V>(squares_ + r * V::kWidth);
      if (p_.mode == ScoreMode::kBest) {
        p_.scores[target_[r]] = finish_score(best_[r].key == kNanKey ? NAN : max_key_value(best_[r].key), squares);
        if (p_.argmax.data != nullptr) p_.argmax.store(target_[r], best_[r].prototype);
      } else if (p_.mode == ScoreMode::kTop) {
        uint64_t* heap = heap_.data() + r * p_.m;
        std::sort(heap, heap + p_.m, std::greater<>());
        for (int64_t i = 0; i < p_.m; ++i) {
          p_.scores[target_[r] + i] = finish_score(selection_key_value(static_cast<uint32_t>(heap[i] >> 32)), squares);
          p_.argmax.store(target_[r] + i, 0xffffffffu - static_cast<uint32_t>(heap[i]));
        }
      } else {
        const float *sums = softmax_.data() + r * 2 * V::kWidth, *largest = sums + V::kWidth;
        p_.scores[target_[r]] = *std::max_element(largest, largest + V::kWidth) / total<V>(sums);
      }
    }
  }

  // Row r of the tile alone.
  Segment row_segment(int64_t r) const {
    const Segment& segment = work_.segments[segment_[r]];
    return {segment.first + (target_[r] - segment.scores) / p_.score_stride, segment.offset, 1, target_[r]};
  }

  const ScoreWork& work_;
  const ScoreProblem& p_;
  Shortlist<V>* shortlist_;
  std::vector<Segment>* left_;
  const int64_t size_;    // bytes of an element
  const int64_t unit_;    // elements of a unit
  const int64_t panels_;  // of prototypes, packed at a time
  const int64_t depth_;   // units of D, packed at a time
  const int64_t tile_rows_;
  int64_t count_ = 0;  // rows of this tile
  // One chunk holds all prototypes: they are packed once, and a row is settled while it is in the cache.
  const bool settles_at_once_;
  bool is_packed_ = false;
  uint32_t* rows_;                        // [kRows][kRowStride] units of one panel of rows
  uint32_t* columns_;                     // [kPanel][kSum] units before packing
  uint32_t* packed_;                      // [panels_][depth_][kPanel]
  float* tile_;                           // [panels of rows][panels_][kRows][kPanel] sums
  float* squares_;                        // [tile_rows_][kWidth] partial sums
  float* errors_;                         // the same of what rounding took off
  float* floats_;                         // a chunk of a row before it is rounded
  std::vector<float> rnorm_;              // [whole panels of prototypes]
  std::vector<float> bias_;               // the same, added to the product
  std::vector<float> prototype_squares_;  // [panels_ * kPanel][kWidth] partial sums
  bool needs_norms_ = false;
  std::vector<const char*> source_;
  std::vector<int64_t> target_;
  std::vector<int64_t> segment_;
  std::vector<Best> best_;
  std::vector<uint64_t> heap_;      // [tile_rows_][m]
  std::vector<int64_t> heap_size_;  // [tile_rows_]
  std::vector<float> softmax_;      // [tile_rows_][2][kWidth] sums and largest weights
};

template <class V, class... Lists>
void score(const ScoreWork& work, int64_t begin, int64_t end, Lists*... lists) {
  const int64_t vectors = ceil_div(work.problem->prototype_count, V::kWidth);
  if (vectors == 1) {
    Scorer<V, V::kRows2, 1>(work, end - begin, lists...).run(begin, end);
  } else if (vectors % 2 == 1 && vectors % 3 == 0) {
    Scorer<V, V::kRows3, 3>(work, end - begin, lists...).run(begin, end);
  } else {
    Scorer<V, V::kRows2, 2>(work, end - begin, lists...).run(begin, end);
  }
}

// The same in mode kBest, mostly by rounded products.
template <class V>
void score_by_shortlist(const ScoreWork& work, int64_t begin, int64_t end) {
  Shortlist<V> shortlist(*work.problem);
  if (!shortlist.usable()) return score<Float>(work, begin, end);
  ScoreProblem problem = *work.problem;
  problem.rnorm = shortlist.rnorm();
  problem.rnorm_stride = 1;
  std::vector<Segment> left;
  score<V>({&problem, work.segments, work.row_begin, work.segment_count}, begin, end, &shortlist, &left);

  const auto rows = static_cast<int64_t>(left.size());
  std::vector<int64_t> row_begin(rows + 1);
  std::iota(row_begin.begin(), row_begin.end(), 0);
  if (rows > 0) score<Float>({work.problem, left.data(), row_begin.data(), rows}, 0, rows);
}
