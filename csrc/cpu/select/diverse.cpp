// Greedy selection of tokens that differ from each other: max-sum and DPP on the whole similarity matrix; max-min is in
// max_min.cpp.
#include "diverse.h"

#include <memory>

#include "max_min.h"

namespace vtkernels::cpu {
namespace {

std::unique_ptr<float[]> similarities(const Parallel& parallel, const DiverseProblem& p) {
  const int64_t n = p.tokens;
  std::vector<float> rnorm(n);
  std::unique_ptr<float[]> out(new float[n * n]);
  row_norms(parallel, p.dtype, p.features, n, p.width, true, rnorm.data());
  products(parallel, {p.dtype, p.features, p.features, n, n, p.width, true, rnorm.data(), rnorm.data(), out.get(), n});
  return out;
}

inline float distance_or_zero(float similarity) {
  const float distance = 1.0f - similarity;
  return distance == distance ? distance : 0.0f;
}

// Sum of a token's distances to all others.
float sum_of_distances(const float* similarity, int64_t n, int64_t self) {
  constexpr int kLanes = 8;
  double lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += distance_or_zero(similarity[j + l]);
  }
  double sum = 0;
  for (; j < n; ++j) sum += distance_or_zero(similarity[j]);
  for (double lane : lanes) sum += lane;
  return static_cast<float>(sum - distance_or_zero(similarity[self]));
}

void max_sum(const Parallel& parallel, const DiverseProblem& p, std::vector<int64_t>& order) {
  const int64_t n = p.tokens;
  const auto similarity = similarities(parallel, p);
  const auto argmax = product_kernels(p.dtype).argmax;
  const auto has_norm = [&](int64_t i) { return similarity[i * n + i] == similarity[i * n + i]; };
  std::vector<float> value(n);
  if (order.empty()) {
    parallel(n, std::max<int64_t>(1, (1 << 16) / n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        value[i] = has_norm(i) ? sum_of_distances(similarity.get() + i * n, n, i) : kNoNorm;
      }
    });
    order.push_back(argmax(value.data(), n));
  }
  for (int64_t i = 0; i < n; ++i) value[i] = has_norm(i) ? 0.0f : kNoNorm;
  for (size_t s = 0;; ++s) {
    const float* row = similarity.get() + order[s] * n;
    for (int64_t i = 0; i < n; ++i) value[i] += distance_or_zero(row[i]);
    value[order[s]] = kPicked;
    if (s + 1 < order.size()) continue;  // seeds
    if (static_cast<int64_t>(order.size()) == p.k) return;
    order.push_back(argmax(value.data(), n));
  }
}

// Greedy MAP of a determinantal point process: `gain` is each token's conditional variance, and column i of `factor`
// its row of the Cholesky factor.
void dpp(const Parallel& parallel, const DiverseProblem& p, std::vector<int64_t>& order) {
  const int64_t n = p.tokens, stride = ceil_div(n, 64) * 64;
  const auto similarity = similarities(parallel, p);
  const ProductKernels& kernels = product_kernels(p.dtype);
  const auto relevance = [&](int64_t i) { return p.relevance == nullptr ? 1.0f : p.relevance[i * p.relevance_stride]; };
  std::vector<float> weight(n), gain(n), projection(stride), factor(p.k * stride);
  for (int64_t i = 0; i < n; ++i) {
    weight[i] = relevance(i);
    const float own = weight[i] * similarity[i * n + i] * weight[i];
    gain[i] = own > kNoNorm ? own : kNoNorm;
  }
  for (int64_t s = 0; s < p.k; ++s) {
    const int64_t j = kernels.argmax(gain.data(), n);
    if (!(gain[j] > 0)) break;
    kernels.combine(factor.data(), stride, s, j, n, projection.data());
    const float root = std::sqrt(gain[j]), own_weight = weight[j];
    const float* row = similarity.get() + j * n;
    float* column = factor.data() + s * stride;
    for (int64_t i = 0; i < n; ++i) {
      column[i] = (own_weight * row[i] * weight[i] - projection[i]) / root;
      const float left = gain[i] - column[i] * column[i];
      gain[i] = left > kNoNorm ? left : kNoNorm;
    }
    order.push_back(j);
    for (int64_t picked : order) gain[picked] = kPicked;
  }
  for (int64_t i = 0; static_cast<int64_t>(order.size()) < p.k; ++i) {
    if (gain[i] != kPicked) order.push_back(i);
  }
}

}  // namespace

bool select_diverse(const Parallel& parallel, const DiverseProblem& p, std::vector<int64_t>& order) {
  order.clear();
  if (p.k == 0) return false;
  bool bad = false;
  std::vector<bool> seen(p.tokens, false);
  for (int64_t s = 0; s < p.seed_count; ++s) {
    const int64_t seed = p.seeds.at(p.batch, s);
    if (seed < 0 || seed >= p.tokens || seen[seed]) {
      bad = true;
      continue;
    }
    seen[seed] = true;
    order.push_back(seed);
  }
  switch (p.objective) {
    case Objective::kMaxMin:
      max_min(parallel, p, order);
      break;
    case Objective::kMaxSum:
      max_sum(parallel, p, order);
      break;
    case Objective::kDpp:
      dpp(parallel, p, order);
  }
  return bad;
}

}  // namespace vtkernels::cpu
