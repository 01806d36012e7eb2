// Greedy picks of the token farthest from its nearest pick, without the distances of all tokens to all picks. A token's
// distance to the nearest of some picks bounds its distance to the nearest of all from above, so a token is compared
// with more of them only while its bound, with ties to the lowest index, could still win.
#pragma once

#include "max_min.h"

namespace vtkernels::cpu {

// Larger for a larger distance, then for a lower index.
inline int64_t distance_rank(float distance, int64_t index) {
  return static_cast<int64_t>(max_key(distance)) * (int64_t{1} << 32) + (0xffffffff - index);
}
inline int64_t ranked_index(int64_t rank) { return 0xffffffff - (rank & 0xffffffff); }

// Not for a NaN distance.
inline void lower_bound_to(float& bound, float distance) { bound = distance < bound ? distance : bound; }

inline void keep_farthest(std::vector<int64_t>& tokens, int64_t count, const std::vector<float>& bound) {
  if (static_cast<int64_t>(tokens.size()) <= count) return;
  std::nth_element(tokens.begin(), tokens.begin() + count, tokens.end(),
                   [&](int64_t i, int64_t j) { return distance_rank(bound[i], i) > distance_rank(bound[j], j); });
  tokens.resize(count);
}

// Rows in the form that RowSums read: where they are, or copied to one of `slots` rows of this thread's scratch memory.
class RowReader {
 public:
  RowReader(DType dtype, const Matrix& rows, int64_t width, int64_t slots)
      : dtype_(dtype),
        rows_(rows),
        width_(width),
        direct_(rows_are_units(dtype, rows, width)),
        units_(direct_ ? nullptr : Scratch(slots * unit_stride(width)).take<uint32_t>(slots * unit_stride(width))) {}

  const uint32_t* operator()(int64_t row, int64_t slot) const {
    if (direct_) return static_cast<const uint32_t*>(rows_.data) + row * rows_.row_stride;
    uint32_t* units = units_ + slot * unit_stride(width_);
    product_kernels(dtype_).load_row(dtype_, rows_, row, width_, units);
    return units;
  }

 private:
  const DType dtype_;
  const Matrix rows_;
  const int64_t width_;
  const bool direct_;
  uint32_t* const units_;
};

struct PickProblem {
  DType dtype;
  Matrix rows;
  int64_t n, width, k;
  RowSums sums;  // of a token and a pick
};

// distance(sum, token, pick) is what a sum of two rows means; is_void(token): has no distance and is picked last.
template <class IsVoid, class Distance>
class MaxMinPicks {
 public:
  MaxMinPicks(const Parallel& parallel, const PickProblem& problem, const IsVoid& is_void, const Distance& distance,
              std::vector<int64_t>& order)
      : parallel_(parallel),
        p_(problem),
        is_void_(is_void),
        distance_(distance),
        order_(order),
        bound_(p_.n),
        known_(p_.n, 0) {}

  // Adds to `order`, which holds the first pick at least, until it has k tokens.
  void run() {
    for (int64_t i = 0; i < p_.n; ++i) bound_[i] = is_void_(i) ? kNoNorm : std::numeric_limits<float>::infinity();
    for (int64_t pick : order_) take(pick);
    if (static_cast<int64_t>(order_.size()) == p_.k) return;
    std::vector<int64_t> batch(p_.n);
    for (int64_t i = 0; i < p_.n; ++i) batch[i] = i;
    for (int64_t s = 0; s < static_cast<int64_t>(order_.size()); s += kDotColumns) {
      refresh(batch, std::min<int64_t>(s + kDotColumns, order_.size()));
    }
    while (static_cast<int64_t>(order_.size()) < p_.k) {
      const int64_t picked = order_.size(), best = best_bound();
      if (known_[best] == picked || is_void_(best)) {
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
      keep_farthest(batch, kRefresh, bound_);
      std::sort(batch.begin(), batch.end(), [&](int64_t i, int64_t j) { return known_[i] < known_[j]; });
      refresh(batch, to);
    }
  }

 private:
  static constexpr int64_t kRefresh = 16;   // tokens compared with new picks at a time
  static constexpr int64_t kLeaders = 256;  // tokens among which the best one is sought

  // The token of highest bound. Bounds only fall, so it is a leader until all leaders have fallen under the level that
  // the lowest of them had when they were chosen.
  int64_t best_bound() {
    int64_t best = best_leader();
    if (best < level_) {
      leaders_.resize(p_.n);
      for (int64_t i = 0; i < p_.n; ++i) leaders_[i] = i;
      keep_farthest(leaders_, kLeaders, bound_);
      level_ = std::numeric_limits<int64_t>::max();
      for (int64_t i : leaders_) level_ = std::min(level_, distance_rank(bound_[i], i));
      best = best_leader();
    }
    return ranked_index(best);
  }

  int64_t best_leader() const {
    int64_t best = std::numeric_limits<int64_t>::min();
    for (int64_t i : leaders_) best = std::max(best, distance_rank(bound_[i], i));
    return best;
  }

  void take(int64_t pick) {
    bound_[pick] = kPicked;
    if (rows_are_units(p_.dtype, p_.rows, p_.width)) {
      picks_.push_back(static_cast<const uint32_t*>(p_.rows.data) + pick * p_.rows.row_stride);
      return;
    }
    const int64_t stride = unit_stride(p_.width);
    units_.resize(p_.k * stride);
    picks_.push_back(units_.data() + picks_.size() * stride);
    product_kernels(p_.dtype).load_row(p_.dtype, p_.rows, pick, p_.width, units_.data() + (picks_.size() - 1) * stride);
  }

  // Compares tokens with the picks before `to` that they were not compared with, kDotColumns at most. Tokens that were
  // compared with about as many lie together.
  void refresh(const std::vector<int64_t>& batch, int64_t to) {
    const int64_t size = batch.size();
    parallel_(ceil_div(size, kDotRows), 1, [&](int64_t begin, int64_t end) {
      const RowReader read(p_.dtype, p_.rows, p_.width, kDotRows);
      const uint32_t* rows[kDotRows];
      float sums[kDotRows * kDotColumns];
      for (int64_t group = begin; group < end; ++group) {
        const int64_t* tokens = batch.data() + group * kDotRows;
        const int64_t here = std::min(kDotRows, size - group * kDotRows);
        int64_t from = to;
        for (int64_t r = 0; r < kDotRows; ++r) {
          const int64_t token = tokens[std::min(r, here - 1)];
          from = std::min(from, known_[token]);
          rows[r] = r < here ? read(token, r) : rows[r - 1];
        }
        const int64_t count = to - from;
        p_.sums(rows, picks_.data() + from, count, p_.width, sums);
        for (int64_t r = 0; r < here; ++r) {
          const int64_t i = tokens[r];
          for (int64_t c = 0; c < count; ++c) {
            lower_bound_to(bound_[i], distance_(sums[r * count + c], i, order_[from + c]));
          }
          known_[i] = to;
        }
      }
    });
  }

  const Parallel& parallel_;
  const PickProblem p_;
  const IsVoid& is_void_;
  const Distance& distance_;
  std::vector<int64_t>& order_;
  std::vector<float> bound_;            // distance to the nearest pick that this token was compared with
  std::vector<int64_t> known_;          // picks that it was compared with
  std::vector<const uint32_t*> picks_;  // rows of the picks
  std::vector<uint32_t> units_;         // [k] rows, where they are not read directly
  std::vector<int64_t> leaders_;
  int64_t level_ = std::numeric_limits<int64_t>::max();
};

}  // namespace vtkernels::cpu
