// The best prototype of float tokens, mostly by products of bf16, which take half the time. Included by
// score_kernel.inl.
//
// A token x and a prototype p, rounded to X and P, differ in their product by at most |x| |p - P| + |x - X| |P|. So a
// prototype whose rounded similarity is more than twice that below the best rounded one cannot be the best; the others,
// mostly one or two, are multiplied again in float32. A token with many of them is left to the float32 kernel. Which of
// the two a token meets, and with that its score, depends on the token and the prototypes alone.

// Elements as pairs of bf16, zero-padded to a whole number of vectors. Adds the squares of the floats and of what
// rounding takes off them to kWidth partial sums each, unless they are null.
template <class V>
void round_units(const float* from, int64_t count, uint32_t* dst, float* squares, float* errors) {
  constexpr int kWidth = V::kWidth;
  using Reg = typename V::Reg;
  Reg square[2] = {V::zero(), V::zero()}, error[2] = {V::zero(), V::zero()};
  float padded[2 * kWidth];
  for (int64_t i = 0; i < count; i += 2 * kWidth) {
    const float* x = from + i;
    if (count - i < 2 * kWidth) {
      std::fill_n(padded, 2 * kWidth, 0.0f);
      x = std::copy_n(x, count - i, padded) - (count - i);
    }
    const Reg half[2] = {load(x), load(x + kWidth)};
    const Reg pairs = V::round(half[0], half[1]);
    V::store(reinterpret_cast<float*>(dst + i / 2), pairs);
    if (squares == nullptr) continue;
    for (int h = 0; h < 2; ++h) {
      const Reg lost = half[h] - V::rounded(pairs, h);
      square[h] += half[h] * half[h];
      error[h] += lost * lost;
    }
  }
  if (squares == nullptr) return;
  auto* units = reinterpret_cast<uint32_t*>(squares);
  V::store(squares, V::add(V::load(units), V::add(square[0], square[1])));
  units = reinterpret_cast<uint32_t*>(errors);
  V::store(errors, V::add(V::load(units), V::add(error[0], error[1])));
}

inline float dot(const float* a, const float* b, int64_t count) {
  constexpr int kChains = 4;
  Vector sums[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= count; i += kChains * kLanes) {
    for (int c = 0; c < kChains; ++c) sums[c] += load(a + i + c * kLanes) * load(b + i + c * kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) sums[0] += load(a + i) * load(b + i);
  float sum = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

template <class V>
class Shortlist {
 public:
  explicit Shortlist(const ScoreProblem& p)
      : p_(p),
        most_(std::clamp<int64_t>(p.prototype_count / 4, 16, 64)),
        rnorm_(p.prototype_count, 1.0f),
        row_(p.width),
        column_(p.width) {
    std::vector<uint32_t> units(ceil_div(p.width, 2 * V::kWidth) * V::kWidth);
    // Roundings of a sum of D products: in the tile, where a register adds kSum pairs, and in `dot`.
    const float rounding = static_cast<float>(2 * kSum + p.width / 16 + 64) * 0x1p-24f;
    for (int64_t i = 0; i < p.prototype_count; ++i) {
      float squares[V::kWidth] = {}, errors[V::kWidth] = {};
      round_units<V>(floats(p.prototypes, i, column_), p.width, units.data(), squares, errors);
      const float square = total<V>(squares), error = std::sqrt(total<V>(errors));
      if (p.rnorm != nullptr) {
        rnorm_[i] = p.rnorm[i * p.rnorm_stride];
      } else if (p.cosine) {
        rnorm_[i] = reciprocal_norm(square);
      }
      const float norm = std::sqrt(square), scale = std::fabs(rnorm_[i]);
      usable_ = usable_ && is_normal(square, 0x1p-120f) && std::isfinite(scale);
      of_norm_ = std::max(of_norm_, scale * (error + rounding * norm));
      of_error_ = std::max(of_error_, scale * (norm + error));
    }
    usable_ = usable_ && std::isfinite(of_norm_) && std::isfinite(of_error_);
  }

  // Whether the bounds hold: not with prototypes that are not finite, or nearly zero.
  bool usable() const { return usable_; }
  const float* rnorm() const { return rnorm_.data(); }

  void start(int64_t rows) {
    rows_.assign(rows, Row{});
    entries_.resize(rows * most_);
  }

  // Row r's products with the `count` prototypes of a panel; the sums of its squares are complete.
  template <int kPanel>
  void add(int64_t r, const float* squares, const float* errors, const float* dots, const float* rnorm, int64_t first,
           int64_t count) {
    Row& row = rows_[r];
    if (row.slack < 0) {
      const float square = total<V>(squares);
      row.slack = 2.002f * (std::sqrt(square) * of_norm_ + std::sqrt(total<V>(errors)) * of_error_);
      if (!is_normal(square, 0x1p-60f) || !std::isfinite(row.slack)) row.size = kTooMany;
    }
    if (row.size == kTooMany) return;
    float similarities[kPanel];
    float highest = -INFINITY;
    for (int p = 0; p < kPanel; ++p) similarities[p] = p < count ? dots[p] * rnorm[p] : -INFINITY;
    for (int p = 0; p < kPanel; ++p) highest = std::max(highest, similarities[p]);
    row.best = std::max(row.best, highest);
    if (highest < row.best - row.slack) return;
    for (int p = 0; p < kPanel; ++p) {
      if (similarities[p] < row.best - row.slack) continue;
      if (row.size == most_) drop(r);
      if (row.size == most_) row.size = kTooMany;
      if (row.size == kTooMany) return;
      entries_[r * most_ + row.size++] = {similarities[p], static_cast<int32_t>(first + p)};
    }
  }

  // The best prototype of row r, which has met all of them; -1 if it is left to the float32 kernel.
  Best best(int64_t r, const char* tokens) {
    Row& row = rows_[r];
    Best best{INT32_MIN, -1};
    if (row.size == kTooMany) return best;
    drop(r);
    const float* token = floats_of(tokens, p_.dtype, p_.width, p_.tokens.col_stride, row_.data());
    for (int64_t i = 0; i < row.size; ++i) {
      const int32_t prototype = entries_[r * most_ + i].prototype;
      const float product = dot(token, floats(p_.prototypes, prototype, column_), p_.width);
      const int32_t key = max_key(product * rnorm_[prototype]);
      if (key > best.key) best = {key, prototype};
    }
    return best;
  }

 private:
  static constexpr int32_t kTooMany = -1;
  struct Row {
    float best = -INFINITY;  // rounded
    float slack = -1;        // how far below an exact best may lie
    int32_t size = 0;
  };
  struct Entry {
    float similarity;
    int32_t prototype;
  };

  static bool is_normal(float square, float least) { return square >= least && std::isfinite(square); }

  const float* floats(const Matrix& m, int64_t row, std::vector<float>& scratch) const {
    return floats_of(element(m, row * m.row_stride, element_size(p_.dtype)), p_.dtype, p_.width, m.col_stride,
                     scratch.data());
  }

  // Entries of row r that are too low by now.
  void drop(int64_t r) {
    Row& row = rows_[r];
    Entry* entries = entries_.data() + r * most_;
    const float bar = row.best - row.slack;
    row.size = static_cast<int32_t>(
        std::remove_if(entries, entries + row.size, [bar](const Entry& e) { return e.similarity < bar; }) - entries);
  }

  const ScoreProblem& p_;
  const int64_t most_;  // about where a list costs as much as the float32 kernel
  std::vector<float> rnorm_;
  std::vector<float> row_, column_;  // where rows are not dense floats
  float of_norm_ = 0;                // the error of a similarity for each unit of |x|
  float of_error_ = 0;               // and of |x - X|
  bool usable_ = true;
  std::vector<Row> rows_;
  std::vector<Entry> entries_;  // [rows][most_], ascending prototypes
};
