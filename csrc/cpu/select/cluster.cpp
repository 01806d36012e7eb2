// Clustering by a matrix of distances, one row of the batch at a time: density peaks and k-medoids.
#include "cluster.h"

#include <cmath>
#include <memory>

#include "../common/batch_rows.h"
#include "../common/kernel.h"
#include "../common/products.h"

namespace vtkernels::cpu {
namespace {

enum class Kind { kSquared, kEuclidean, kCosine };
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// [n][n] distances, infinite for void tokens, zero on the rest of the diagonal.
class Distances {
 public:
  Distances(const Parallel& parallel, const ClusterProblem& p, int64_t b, Kind kind)
      : n_(p.n), data_(new float[p.n * p.n]), squares_(p.n) {
    const Matrix x = p.row(b);
    products(parallel, {p.dtype, x, x, n_, n_, p.width, true, nullptr, nullptr, data_.get(), n_});
    for (int64_t i = 0; i < n_; ++i) squares_[i] = data_[i * n_ + i];
    std::vector<float> scale(squares_);
    if (kind == Kind::kCosine) {
      for (float& s : scale) s = reciprocal_norm(s);
    }
    parallel(n_, std::max<int64_t>(1, (1 << 15) / n_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = data_.get() + i * n_;
        finish_row(kind, scale[i], scale.data(), row);
        row[i] = std::isfinite(squares_[i]) ? 0.0f : kInfinity;
      }
    });
  }

  const float* row(int64_t i) const { return data_.get() + i * n_; }
  bool is_void(int64_t i) const { return !std::isfinite(squares_[i]); }
  const std::vector<float>& squares() const { return squares_; }

 private:
  void finish_row(Kind kind, float scale, const float* scales, float* row) const {
    for (int64_t j = 0; j < n_; ++j) {
      const float d = kind == Kind::kCosine ? 1 - row[j] * (scale * scales[j]) : scale + scales[j] - 2 * row[j];
      const float positive = d <= 0 ? 0.0f : d;  // NaN stays
      row[j] = positive == positive ? positive : kInfinity;
    }
    if (kind == Kind::kEuclidean) {
      for (int64_t j = 0; j < n_; ++j) row[j] = std::sqrt(row[j]);
    }
  }

  int64_t n_;
  std::unique_ptr<float[]> data_;
  std::vector<float> squares_;
};

// Each token to its nearest centre, the first among equals; centres to themselves.
void assign(const Parallel& parallel, const Distances& distances, const std::vector<int64_t>& centres,
            std::vector<int32_t>& assignment) {
  const int64_t n = static_cast<int64_t>(assignment.size()), clusters = static_cast<int64_t>(centres.size());
  parallel(n, std::max<int64_t>(1, (1 << 15) / clusters), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = distances.row(i);
      int64_t best = 0;
      for (int64_t c = 1; c < clusters; ++c) best = row[centres[c]] < row[centres[best]] ? c : best;
      assignment[i] = static_cast<int32_t>(best);
    }
  });
  for (int64_t c = 0; c < clusters; ++c) assignment[centres[c]] = static_cast<int32_t>(c);
}

void store(const ClusterProblem& p, int64_t b, const std::vector<int32_t>& assignment, const CentreTokens& to,
           const std::vector<int64_t>& centres) {
  for (int64_t i = 0; i < p.n; ++i) p.assignment.store(b * p.assignment_batch + i, assignment[i]);
  for (int64_t c = 0; c < p.clusters; ++c) to.out.store(b * to.batch_stride + c, centres[c]);
}

void density_peaks_row(const Parallel& parallel, const ClusterProblem& p, int64_t b, const CentreTokens& out) {
  const Distances squared(parallel, p, b, Kind::kSquared);
  const int64_t n = p.n, k = p.neighbours, grain = std::max<int64_t>(1, (1 << 15) / n);
  const float width = static_cast<float>(std::max<int64_t>(1, p.width));
  std::vector<float> spread(n), farthest(n), score(n);  // mean squared distance to the neighbours, largest distance
  parallel(n, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> near(k);
    for (int64_t i = begin; i < end; ++i) {
      const float* row = squared.row(i);
      std::partial_sort_copy(row, row + n, near.begin(), near.end());
      double sum = 0;
      for (const float d : near) sum += d;
      // A void token is never denser than another.
      spread[i] = squared.is_void(i) ? NAN : static_cast<float>(sum / static_cast<double>(k) / width);
      farthest[i] = 0;
      for (int64_t j = 0; j < n; ++j) {
        const float d = row[j] < kInfinity ? row[j] : 0.0f;
        farthest[i] = d > farthest[i] ? d : farthest[i];
      }
    }
  });
  const float largest = *std::max_element(farthest.begin(), farthest.end());
  parallel(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = squared.row(i);
      bool any = false;
      float delta = kInfinity;
      for (int64_t j = 0; j < n; ++j) {
        const bool denser = spread[j] < spread[i] || (spread[j] == spread[i] && j < i);
        any |= denser;
        delta = denser && row[j] < delta ? row[j] : delta;
      }
      score[i] = std::exp(-spread[i]) * std::sqrt((any ? delta : largest) / width);
    }
  });
  std::vector<int64_t> centres(p.clusters);
  select_row(score.data(), 1, n, p.clusters, true, 0, {centres.data(), true}, 0);
  std::vector<int32_t> assignment(n);
  assign(parallel, squared, centres, assignment);
  store(p, b, assignment, out, centres);
}

// The medoids after one update, ascending.
std::vector<int64_t> new_medoids(const Parallel& parallel, const Distances& distances,
                                 const std::vector<int32_t>& assignment, const std::vector<int64_t>& medoids) {
  std::vector<std::vector<int64_t>> members(medoids.size());
  for (size_t i = 0; i < assignment.size(); ++i) {
    if (!distances.is_void(static_cast<int64_t>(i))) members[assignment[i]].push_back(static_cast<int64_t>(i));
  }
  std::vector<double> cost(assignment.size());
  const int64_t n = static_cast<int64_t>(assignment.size());
  parallel(n, std::max<int64_t>(1, (1 << 15) / n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = distances.row(i);
      double sum = 0;
      for (const int64_t j : members[assignment[i]]) sum += row[j];
      cost[i] = sum;
    }
  });
  std::vector<int64_t> next(medoids);
  for (size_t c = 0; c < medoids.size(); ++c) {
    const auto best =
        std::min_element(members[c].begin(), members[c].end(), [&](int64_t i, int64_t j) { return cost[i] < cost[j]; });
    if (best != members[c].end()) next[c] = *best;
  }
  std::sort(next.begin(), next.end());
  return next;
}

void kmedoids_row(const Parallel& parallel, const ClusterProblem& p, int64_t b, const CentreTokens& out) {
  const Distances distances(parallel, p, b, p.cosine ? Kind::kCosine : Kind::kEuclidean);
  std::vector<char> is_void(p.n);
  for (int64_t i = 0; i < p.n; ++i) is_void[i] = distances.is_void(i);
  std::vector<int64_t> medoids =
      farthest_first(p.clusters, distances.squares(), is_void, [&](int64_t token) { return distances.row(token); });
  std::sort(medoids.begin(), medoids.end());
  std::vector<int32_t> assignment(p.n);
  assign(parallel, distances, medoids, assignment);
  for (int64_t i = 0; i < p.iterations; ++i) {
    std::vector<int64_t> next = new_medoids(parallel, distances, assignment, medoids);
    if (next == medoids) break;
    medoids = std::move(next);
    assign(parallel, distances, medoids, assignment);
  }
  store(p, b, assignment, out, medoids);
}

}  // namespace

void cluster_density_peaks(const Parallel& parallel, const ClusterProblem& p, const CentreTokens& centres) {
  if (p.n == 0) return;
  for_rows(parallel, p.batch, p.n * p.n * std::max<int64_t>(1, p.width),
           [&](int64_t b) { density_peaks_row(parallel, p, b, centres); });
}

void cluster_kmedoids(const Parallel& parallel, const ClusterProblem& p, const CentreTokens& medoids) {
  if (p.n == 0) return;
  for_rows(parallel, p.batch, p.n * p.n * std::max<int64_t>(1, p.width),
           [&](int64_t b) { kmedoids_row(parallel, p, b, medoids); });
}

}  // namespace vtkernels::cpu
