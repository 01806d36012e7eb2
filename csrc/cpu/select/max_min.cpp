// Greedy max-min selection without the whole similarity matrix. A token's distance to the nearest of some others bounds
// its distance to the nearest of all from above, so a token is compared with more of them only while its bound, with
// ties to the lowest index, could still win. What comes out is what the whole matrix would give.
#include "max_min.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kBlock = 128;      // tokens that others are compared with at a time
constexpr int64_t kCandidates = 32;  // tokens compared with all others at a time
constexpr int64_t kRefresh = 16;     // tokens compared with new picks at a time

// Larger for a larger distance, then for a lower index.
inline int64_t rank(float distance, int64_t index) {
  return static_cast<int64_t>(max_key(distance)) * (int64_t{1} << 32) + (0xffffffff - index);
}
inline int64_t ranked_index(int64_t rank) { return 0xffffffff - (rank & 0xffffffff); }

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline void lower(float& bound, float similarity) {
  const float distance = 1.0f - similarity;
  bound = distance < bound ? distance : bound;  // not for NaN
}

class MaxMin {
 public:
  MaxMin(const Parallel& parallel, const DiverseProblem& problem, std::vector<int64_t>& order)
      : parallel_(parallel),
        p_(problem),
        kernels_(product_kernels(p_.dtype)),
        n_(p_.tokens),
        stride_(unit_stride(p_.width)),
        direct_(rows_are_units(p_.dtype, p_.features, p_.width)),
        order_(order),
        rnorm_(n_),
        bound_(n_, kInfinity),
        units_(direct_ ? 0 : p_.k * stride_) {
    row_norms(parallel, p_.dtype, p_.features, n_, p_.width, true, rnorm_.data());
  }

  void run() {
    if (order_.empty()) order_.push_back(first());
    pick_rest();
  }

 private:
  bool has_norm(int64_t i) const { return rnorm_[i] == rnorm_[i]; }

  // The token whose nearest other token is farthest.
  int64_t first() {
    std::vector<int64_t> open;
    for (int64_t i = 0; i < n_; ++i) {
      if (has_norm(i)) open.push_back(i);
    }
    if (open.empty()) return 0;
    compare_neighbours();
    int64_t best = std::numeric_limits<int64_t>::min();
    const auto close = [&](bool all) {  // takes out what cannot win, and, with `all`, what is known
      size_t left = 0;
      for (int64_t i : open) {
        if (rank(bound_[i], i) > best) open[left++] = i;
      }
      open.resize(left);
      if (!all) return;
      for (int64_t i : open) best = std::max(best, rank(bound_[i], i));
    };
    if (n_ > kBlock) {
      std::vector<float> similarity;
      for (int64_t block = 0; block * kBlock < n_; ++block) {
        if (block < 2 && !open.empty()) {
          for (int64_t i : compare_candidates(open, similarity)) best = std::max(best, rank(bound_[i], i));
          close(false);
        }
        if (open.empty()) break;
        compare_block(open, block * kBlock, similarity);
        close(false);
      }
    }
    close(true);
    return ranked_index(best);
  }

  ProductProblem problem(int64_t rows, int64_t columns, float* out) const {
    return {p_.dtype, p_.features,   p_.features,   rows, columns, p_.width,
            false,    rnorm_.data(), rnorm_.data(), out,  columns};
  }

  // Each token with those of its own block: neighbours in an image are often the nearest.
  void compare_neighbours() {
    parallel_(ceil_div(n_, kBlock), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> similarity(std::min(n_, kBlock) * std::min(n_, kBlock));
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock, count = std::min(kBlock, n_ - first);
        ProductProblem own = problem(count, count, similarity.data());
        own.a.data = element(first);
        own.b = own.a;
        own.symmetric = true;
        own.a_scale = own.b_scale = rnorm_.data() + first;
        products({nullptr}, own);
        for (int64_t i = 0; i < count; ++i) {
          similarity[i * count + i] = NAN;
          for (int64_t j = 0; j < count; ++j) lower(bound_[first + i], similarity[i * count + j]);
        }
      }
    });
  }

  const void* element(int64_t row) const {
    return static_cast<const char*>(p_.features.data) + row * p_.features.row_stride * element_size(p_.dtype);
  }

  // The open tokens of highest bound with all others. Returns them: their bounds are their distances now.
  std::vector<int64_t> compare_candidates(const std::vector<int64_t>& open, std::vector<float>& similarity) {
    std::vector<int64_t> candidates = open;
    keep_best(candidates, kCandidates);
    const int64_t count = candidates.size();
    similarity.resize(std::max<int64_t>(similarity.size(), n_ * count));
    ProductProblem all = problem(n_, count, similarity.data());
    all.b_rows = candidates.data();
    products(parallel_, all);
    for (int64_t c = 0; c < count; ++c) similarity[candidates[c] * count + c] = NAN;
    lower_bounds(nullptr, candidates.data(), 0, n_, count, similarity.data());
    return candidates;
  }

  // The open tokens with those of one block.
  void compare_block(const std::vector<int64_t>& open, int64_t first, std::vector<float>& similarity) {
    const int64_t rows = open.size(), count = std::min(kBlock, n_ - first);
    similarity.resize(std::max<int64_t>(similarity.size(), rows * count));
    ProductProblem some = problem(rows, count, similarity.data());
    some.a_rows = open.data();
    some.b.data = element(first);
    some.b_scale = rnorm_.data() + first;
    products(parallel_, some);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t own = open[r] - first;
      if (own >= 0 && own < count) similarity[r * count + own] = NAN;
    }
    lower_bounds(open.data(), nullptr, first, rows, count, similarity.data());
  }

  // Both sides of [rows, count] similarities of tokens: rows[..] or 0.., and columns[..] or first..
  void lower_bounds(const int64_t* rows, const int64_t* columns, int64_t first, int64_t row_count, int64_t count,
                    const float* similarity) {
    float column_bound[kBlock];
    std::fill_n(column_bound, count, kInfinity);
    for (int64_t r = 0; r < row_count; ++r) {
      float row_bound = kInfinity;
      for (int64_t c = 0; c < count; ++c) {
        lower(column_bound[c], similarity[r * count + c]);
        lower(row_bound, similarity[r * count + c]);
      }
      float& bound = bound_[rows == nullptr ? r : rows[r]];
      bound = std::min(bound, row_bound);
    }
    for (int64_t c = 0; c < count; ++c) {
      float& bound = bound_[columns == nullptr ? first + c : columns[c]];
      bound = std::min(bound, column_bound[c]);
    }
  }

  void pick_rest() {
    known_.assign(n_, 0);
    for (int64_t i = 0; i < n_; ++i) bound_[i] = has_norm(i) ? kInfinity : kNoNorm;
    for (int64_t pick : order_) take(pick);
    if (static_cast<int64_t>(order_.size()) == p_.k) return;
    std::vector<int64_t> batch(n_);
    for (int64_t i = 0; i < n_; ++i) batch[i] = i;
    for (int64_t s = 0; s < static_cast<int64_t>(order_.size()); s += kDotColumns) {
      refresh(batch, s, std::min<int64_t>(s + kDotColumns, order_.size()));
    }
    while (static_cast<int64_t>(order_.size()) < p_.k) {
      const int64_t picked = order_.size(), best = best_bound();
      if (known_[best] == picked || !has_norm(best)) {
        order_.push_back(best);
        take(best);
        continue;
      }
      // The tokens of highest bound that lag about as much as the best one.
      const int64_t from = known_[best] / kDotColumns * kDotColumns, to = std::min(from + kDotColumns, picked);
      batch.clear();
      for (int64_t i : leaders_) {
        if (known_[i] >= from && known_[i] < to && bound_[i] > kNoNorm) batch.push_back(i);
      }
      keep_best(batch, kRefresh);
      int64_t begin = to;
      for (int64_t i : batch) begin = std::min(begin, known_[i]);
      refresh(batch, begin, to);
    }
  }

  void keep_best(std::vector<int64_t>& tokens, int64_t count) const {
    if (static_cast<int64_t>(tokens.size()) <= count) return;
    std::nth_element(tokens.begin(), tokens.begin() + count, tokens.end(),
                     [&](int64_t i, int64_t j) { return rank(bound_[i], i) > rank(bound_[j], j); });
    tokens.resize(count);
  }

  // The token of highest bound. Bounds only fall, so it is a leader until all leaders have fallen under the level that
  // the lowest of them had when they were chosen.
  int64_t best_bound() {
    constexpr int64_t kLeaders = 256;
    int64_t best = best_leader();
    if (best < level_) {
      leaders_.resize(n_);
      for (int64_t i = 0; i < n_; ++i) leaders_[i] = i;
      keep_best(leaders_, kLeaders);
      level_ = std::numeric_limits<int64_t>::max();
      for (int64_t i : leaders_) level_ = std::min(level_, rank(bound_[i], i));
      best = best_leader();
    }
    return ranked_index(best);
  }

  int64_t best_leader() const {
    int64_t best = std::numeric_limits<int64_t>::min();
    for (int64_t i : leaders_) best = std::max(best, rank(bound_[i], i));
    return best;
  }

  void take(int64_t pick) {
    bound_[pick] = kPicked;
    if (direct_) {
      picks_.push_back(static_cast<const uint32_t*>(element(pick)));
      return;
    }
    uint32_t* units = units_.data() + picks_.size() * stride_;
    kernels_.load_row(p_.dtype, p_.features, pick, p_.width, units);
    picks_.push_back(units);
  }

  // Compares tokens with the picks [from, to).
  void refresh(const std::vector<int64_t>& batch, int64_t from, int64_t to) {
    const int64_t size = batch.size(), count = to - from;
    parallel_(ceil_div(size, kDotRows), 1, [&](int64_t begin, int64_t end) {
      uint32_t* units = direct_ ? nullptr : Scratch(kDotRows * stride_).take<uint32_t>(kDotRows * stride_);
      const uint32_t* rows[kDotRows];
      float dots[kDotRows * kDotColumns];
      for (int64_t group = begin; group < end; ++group) {
        const int64_t* tokens = batch.data() + group * kDotRows;
        const int64_t here = std::min(kDotRows, size - group * kDotRows);
        for (int64_t r = 0; r < kDotRows; ++r) {
          const int64_t token = tokens[std::min(r, here - 1)];
          rows[r] = direct_ ? static_cast<const uint32_t*>(element(token)) : units + r * stride_;
          if (!direct_ && r < here) kernels_.load_row(p_.dtype, p_.features, token, p_.width, units + r * stride_);
        }
        kernels_.dots(rows, picks_.data() + from, count, p_.width, dots);
        for (int64_t r = 0; r < here; ++r) {
          const int64_t i = tokens[r];
          for (int64_t c = 0; c < count; ++c) {
            lower(bound_[i], dots[r * count + c] * (rnorm_[i] * rnorm_[order_[from + c]]));
          }
          known_[i] = to;
        }
      }
    });
  }

  const Parallel& parallel_;
  const DiverseProblem& p_;
  const ProductKernels& kernels_;
  const int64_t n_;
  const int64_t stride_;  // of units_
  const bool direct_;     // rows are read where they are
  std::vector<int64_t>& order_;
  std::vector<float> rnorm_;
  std::vector<float> bound_;            // distance to the nearest token that this one was compared with
  std::vector<int64_t> known_;          // picks that it was compared with
  std::vector<const uint32_t*> picks_;  // rows of the picks
  std::vector<uint32_t> units_;         // [k][stride_], where they are not read directly
  std::vector<int64_t> leaders_;
  int64_t level_ = std::numeric_limits<int64_t>::max();
};

}  // namespace

void max_min(const Parallel& parallel, const DiverseProblem& problem, std::vector<int64_t>& order) {
  MaxMin(parallel, problem, order).run();
}

}  // namespace vtkernels::cpu
