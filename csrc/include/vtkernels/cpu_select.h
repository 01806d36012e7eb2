// Selection beyond the k best of a row: masks, quotas, thresholds, shares of the weight, budgets. One row per call, one
// thread, no framework.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct ScoreRow {
  const float* data;
  int64_t stride;
  int64_t count;
  bool largest;
};

// One flag per token; none are set without data.
struct Flags {
  const bool* data;
  int64_t stride;
  bool at(int64_t i) const { return data != nullptr && data[i * stride]; }
};

struct Masks {
  Flags protected_tokens;  // before all others
  Flags excluded;          // never
  bool none() const { return protected_tokens.data == nullptr && excluded.data == nullptr; }
};

// The best k, or as many as are not excluded: ascending, or best first where `by_score`. Returns how many.
int64_t select_masked(const ScoreRow& row, const Masks& masks, int64_t k, bool by_score, int64_t* chosen);

// The best `quota` of each segment bounds[s] .. bounds[s + 1], then the best of the rest, k in all.
int64_t select_quota(const ScoreRow& row, const Masks& masks, const std::vector<int64_t>& bounds, int64_t k,
                     int64_t quota, bool by_score, int64_t* chosen);

// What lies strictly beyond the threshold, or the best `min_keep`, ascending into out[at ..]. Returns how many.
int64_t select_threshold(const ScoreRow& row, float threshold, int64_t min_keep, const IndexOut& out, int64_t at);

// The shortest prefix of the best that holds `part` units of 2^-31 of the weight, at least `min_keep`.
int64_t select_top_p(const ScoreRow& row, int64_t part, int64_t min_keep, const IndexOut& out, int64_t at);

// `total` split over segments by weight; no segment above its capacity where that is not null.
void allocate_budget(const float* weights, int64_t stride, int64_t segments, int64_t total, int64_t minimum,
                     const int32_t* capacity, int64_t capacity_stride, int32_t* out);

}  // namespace vtkernels::cpu
