// Greedy max-min selection without the whole similarity matrix: the first pick, the token whose nearest other token is
// farthest, by comparing tokens with others only while they could still be it; the rest by max_min_picks.h. What comes
// out is what the whole matrix would give.
#include "max_min_picks.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kBlock = 128;      // tokens that others are compared with at a time
constexpr int64_t kCandidates = 32;  // tokens compared with all others at a time

// Tokens of many dimensions are compared in some of them first, to see which pairs are worth a comparison in all.
constexpr int64_t kSketchShare = 32, kLeastSketch = 128, kLeastWidth = 1024;
constexpr int64_t kSketchRows = 512, kSketchColumns = 96;  // compared at a time

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class MaxMin {
 public:
  MaxMin(const Parallel& parallel, const DiverseProblem& problem, std::vector<int64_t>& order)
      : parallel_(parallel),
        p_(problem),
        kernels_(product_kernels(p_.dtype)),
        n_(p_.tokens),
        order_(order),
        rnorm_(n_),
        bound_(n_, kInfinity) {
    row_norms(parallel, p_.dtype, p_.features, n_, p_.width, true, rnorm_.data());
  }

  void run() {
    if (order_.empty()) order_.push_back(first());
    const auto is_void = [&](int64_t i) { return !has_norm(i); };
    const auto distance = [&](float sum, int64_t i, int64_t pick) { return 1.0f - sum * (rnorm_[i] * rnorm_[pick]); };
    MaxMinPicks(parallel_, {p_.dtype, p_.features, n_, p_.width, p_.k, kernels_.dots}, is_void, distance, order_).run();
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
    if (n_ > kBlock && p_.width >= kLeastWidth) {
      compare_likely();
    } else {
      compare_neighbours();
    }
    int64_t best = std::numeric_limits<int64_t>::min();
    const auto close = [&](bool all) {  // takes out what cannot win, and, with `all`, what is known
      size_t left = 0;
      for (int64_t i : open) {
        if (distance_rank(bound_[i], i) > best) open[left++] = i;
      }
      open.resize(left);
      if (!all) return;
      for (int64_t i : open) best = std::max(best, distance_rank(bound_[i], i));
    };
    if (n_ > kBlock) {
      std::vector<float> similarity;
      for (int64_t block = 0; block * kBlock < n_; ++block) {
        if (block < 2 && !open.empty()) {
          for (int64_t i : compare_candidates(open, similarity)) best = std::max(best, distance_rank(bound_[i], i));
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
          for (int64_t j = 0; j < count; ++j) lower_bound_to(bound_[first + i], 1.0f - similarity[i * count + j]);
        }
      }
    });
  }

  // Each token with the one that is most like it in the first dimensions. The sums are not those of `products`, so the
  // bounds allow for the rounding of both: at most 512 + width / 256 additions each, and a few operations more.
  void compare_likely() {
    const std::vector<int32_t> likely = most_alike(std::max(kLeastSketch, p_.width / kSketchShare));
    const auto exact = [&](int64_t i) { return rnorm_[i] < 1e15f; };  // no product of it underflows
    std::vector<int64_t> tokens;
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t j = likely[i];
      if (j >= 0 && exact(i) && exact(j) && !(likely[j] == i && j < i)) tokens.push_back(i);
    }
    const float rounding = static_cast<float>(1040 + p_.width / 128) * 0x1p-24f;
    const int64_t size = tokens.size();
    std::vector<float> distance(size);
    parallel_(ceil_div(size, kDotRows), 1, [&](int64_t begin, int64_t end) {
      const RowReader read(p_.dtype, p_.features, p_.width, 2 * kDotRows);
      const uint32_t *a[kDotRows], *b[kDotRows];
      float sums[kDotRows * kDotRows];
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * kDotRows, here = std::min(kDotRows, size - first);
        for (int64_t r = 0; r < kDotRows; ++r) {
          const int64_t i = tokens[first + std::min(r, here - 1)];
          a[r] = read(i, r), b[r] = read(likely[i], kDotRows + r);
        }
        kernels_.dots(a, b, here, p_.width, sums);
        for (int64_t r = 0; r < here; ++r) {
          const int64_t i = tokens[first + r];
          distance[first + r] = 1.0f - sums[r * here + r] * (rnorm_[i] * rnorm_[likely[i]]) + rounding;
        }
      }
    });
    for (int64_t t = 0; t < size; ++t) {
      lower_bound_to(bound_[tokens[t]], distance[t]);
      lower_bound_to(bound_[likely[tokens[t]]], distance[t]);
    }
  }

  // The other token of the largest cosine in the first `width` dimensions, -1 where there is none.
  std::vector<int32_t> most_alike(int64_t width) const {
    std::vector<int32_t> out(n_);
    std::vector<float> rnorm(n_);
    row_norms(parallel_, p_.dtype, p_.features, n_, width, true, rnorm.data());
    parallel_(ceil_div(n_, kSketchColumns), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> similarity(kSketchRows * kSketchColumns), best(kSketchColumns);
      std::vector<int32_t> at(kSketchColumns);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t column = block * kSketchColumns, columns = std::min(kSketchColumns, n_ - column);
        best.assign(columns, -kInfinity);
        for (int64_t row = 0; row < n_; row += kSketchRows) {
          const int64_t rows = std::min(kSketchRows, n_ - row);
          ProductProblem some = problem(rows, columns, similarity.data());
          some.width = width;
          some.a.data = element(row), some.a_scale = rnorm.data() + row;
          some.b.data = element(column), some.b_scale = rnorm.data() + column;
          products({nullptr}, some);
          for (int64_t c = std::max(column, row); c < std::min(column + columns, row + rows); ++c) {
            similarity[(c - row) * columns + c - column] = NAN;  // itself
          }
          kernels_.column_argmax(similarity.data(), rows, columns, best.data(), at.data());
          for (int64_t c = 0; c < columns; ++c) {
            if (row == 0 || at[c] >= 0) out[column + c] = static_cast<int32_t>(at[c] < 0 ? -1 : row + at[c]);
          }
        }
      }
    });
    return out;
  }

  const void* element(int64_t row) const {
    return static_cast<const char*>(p_.features.data) + row * p_.features.row_stride * element_size(p_.dtype);
  }

  // The open tokens of highest bound with all others. Returns them: their bounds are their distances now.
  std::vector<int64_t> compare_candidates(const std::vector<int64_t>& open, std::vector<float>& similarity) {
    std::vector<int64_t> candidates = open;
    keep_farthest(candidates, kCandidates, bound_);
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
        const float distance = 1.0f - similarity[r * count + c];
        lower_bound_to(column_bound[c], distance);
        lower_bound_to(row_bound, distance);
      }
      float& bound = bound_[rows == nullptr ? r : rows[r]];
      bound = std::min(bound, row_bound);
    }
    for (int64_t c = 0; c < count; ++c) {
      float& bound = bound_[columns == nullptr ? first + c : columns[c]];
      bound = std::min(bound, column_bound[c]);
    }
  }

  const Parallel& parallel_;
  const DiverseProblem& p_;
  const ProductKernels& kernels_;
  const int64_t n_;
  std::vector<int64_t>& order_;
  std::vector<float> rnorm_;
  std::vector<float> bound_;  // distance to the nearest token that this one was compared with
};

}  // namespace

void max_min(const Parallel& parallel, const DiverseProblem& problem, std::vector<int64_t>& order) {
  MaxMin(parallel, problem, order).run();
}

}  // namespace vtkernels::cpu
