// k-means: products with the centres, chunk by chunk of tokens, and means summed in token order.
#include "../common/batch_rows.h"
#include "../common/kernel.h"
#include "../common/products.h"
#include "cluster.h"
#include "max_min_picks.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kMeanWidth = 256;  // elements of a centre summed at a time

// The tokens of one row as float32: in place where they are, else a copy, normalised for the cosine.
class Points {
 public:
  Points(const Parallel& parallel, const KmeansProblem& p, int64_t b) : squares_(p.n), is_void_(p.n) {
    const Matrix x = p.row(b);
    row_norms(parallel, p.dtype, x, p.n, p.width, false, squares_.data());
    for (int64_t i = 0; i < p.n; ++i) is_void_[i] = !std::isfinite(squares_[i]);
    matrix_ = x;
    if (p.dtype == DType::kFloat32 && p.dim_stride == 1 && !p.cosine) return;
    copy_.resize(p.n * p.width);
    matrix_ = {copy_.data(), p.width, 1};
    parallel(p.n, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, p.width)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float scale = p.cosine ? reciprocal_norm(squares_[i]) : 1.0f;
        copy_row(p.dtype, x, i, p.width, scale, copy_.data() + i * p.width);
      }
    });
  }

  const Matrix& matrix() const { return matrix_; }
  const float* row(int64_t i) const { return static_cast<const float*>(matrix_.data) + i * matrix_.row_stride; }
  const std::vector<float>& squares() const { return squares_; }
  const std::vector<char>& is_void() const { return is_void_; }

 private:
  static void copy_row(DType dtype, const Matrix& x, int64_t i, int64_t width, float scale, float* to) {
    const int64_t first = i * x.row_stride;
    if (dtype == DType::kFloat32) {
      const float* from = static_cast<const float*>(x.data) + first;
      for (int64_t d = 0; d < width; ++d) to[d] = from[d * x.col_stride] * scale;
      return;
    }
    const uint16_t* from = static_cast<const uint16_t*>(x.data) + first;
    const bool bf16 = dtype == DType::kBFloat16;
    for (int64_t d = 0; d < width; ++d) {
      const uint16_t bits = from[d * x.col_stride];
      to[d] = (bf16 ? bits_float(static_cast<uint32_t>(bits) << 16) : half_to_float(bits)) * scale;
    }
  }

  std::vector<float> squares_;
  std::vector<char> is_void_;
  Matrix matrix_;
  std::vector<float> copy_;
};

// The tokens of KKZ: the largest norm, then always the one farthest from its nearest chosen one.
std::vector<int64_t> farthest_tokens(const Parallel& parallel, const KmeansProblem& p, const Points& points) {
  const auto is_void = [&](int64_t i) { return points.is_void()[i] != 0; };
  const auto distance = [&](float sum, int64_t, int64_t) {
    const float d = p.cosine ? 1 - sum : sum;
    return d > 0 ? d : 0.0f;
  };
  int64_t first = 0;
  for (int64_t i = 1; i < p.n; ++i) {
    if (!is_void(i) && (is_void(first) || points.squares()[i] > points.squares()[first])) first = i;
  }
  std::vector<int64_t> chosen{first};
  const ProductKernels& kernels = product_kernels(DType::kFloat32);
  const RowSums sums = p.cosine ? kernels.dots : kernels.squared_diffs;
  MaxMinPicks(parallel, {DType::kFloat32, points.matrix(), p.n, p.width, p.clusters, sums}, is_void, distance, chosen)
      .run();
  return chosen;
}

void initial_centres(const Parallel& parallel, const KmeansProblem& p, const Points& points, float* centres,
                     int64_t b) {
  if (p.initial != nullptr) {
    const float* from = p.initial + b * p.initial_batch;
    for (int64_t c = 0; c < p.clusters; ++c) {
      for (int64_t d = 0; d < p.width; ++d) {
        centres[c * p.centre_row + d] = from[c * p.initial_row + d * p.initial_dim];
      }
    }
    return;
  }
  const std::vector<int64_t> start = farthest_tokens(parallel, p, points);
  for (int64_t c = 0; c < p.clusters; ++c) {
    float* to = centres + c * p.centre_row;
    if (points.is_void()[start[c]]) {
      std::fill_n(to, p.width, 0.0f);
    } else {
      std::copy_n(points.row(start[c]), p.width, to);
    }
  }
}

void assign(const Parallel& parallel, const KmeansProblem& p, const Points& points, const float* centres,
            std::vector<int32_t>& assignment) {
  const int64_t k = p.clusters;
  const Matrix c{centres, p.centre_row, 1};
  std::vector<float> norms(k);  // reciprocal, or half the squares
  row_norms(parallel, DType::kFloat32, c, k, p.width, p.cosine, norms.data());
  if (!p.cosine) {
    for (float& norm : norms) norm *= 0.5f;
  }
  const int64_t chunk = std::min(p.n, std::max<int64_t>(256, (1 << 22) / k));
  std::vector<float> out(chunk * k);
  for (int64_t first = 0; first < p.n; first += chunk) {
    const int64_t rows = std::min(chunk, p.n - first);
    Matrix x = points.matrix();
    x.data = points.row(first);
    products(parallel, {DType::kFloat32, x, c, rows, k, p.width, false, nullptr, nullptr, out.data(), k});
    parallel(rows, std::max<int64_t>(1, (1 << 15) / k), [&](int64_t begin, int64_t end) {
      std::vector<int32_t> keys(k);
      for (int64_t i = begin; i < end; ++i) {
        if (points.is_void()[first + i]) {
          assignment[first + i] = 0;
          continue;
        }
        const float* row = out.data() + i * k;
        int32_t highest = INT32_MIN;
        for (int64_t j = 0; j < k; ++j) {
          const float score = p.cosine ? row[j] * norms[j] : row[j] - norms[j];
          const int32_t key = max_key(score);
          keys[j] = key == kNanKey ? INT32_MIN : key;
          highest = std::max(highest, keys[j]);
        }
        assignment[first + i] = static_cast<int32_t>(std::find(keys.begin(), keys.end(), highest) - keys.begin());
      }
    });
  }
}

// Moves each centre to the mean of its tokens, which are added in ascending order.
void update(const Parallel& parallel, const KmeansProblem& p, const Points& points, const std::vector<float>& weights,
            const std::vector<int32_t>& assignment, float* centres) {
  std::vector<int64_t> begin(p.clusters + 1, 0), members;
  std::vector<double> total(p.clusters, 0.0);
  for (int64_t i = 0; i < p.n; ++i) {
    total[assignment[i]] += weights[i];
    begin[assignment[i] + 1] += weights[i] > 0;
  }
  for (int64_t c = 0; c < p.clusters; ++c) begin[c + 1] += begin[c];
  members.resize(begin[p.clusters]);
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t i = 0; i < p.n; ++i) {
    if (weights[i] > 0) members[next[assignment[i]]++] = i;
  }
  const int64_t blocks = ceil_div(p.width, kMeanWidth);
  const int64_t grain = std::max<int64_t>(1, p.clusters * blocks * (1 << 15) / std::max<int64_t>(1, p.n * p.width));
  parallel(p.clusters * blocks, grain, [&](int64_t from, int64_t to) {
    double sum[kMeanWidth];
    for (int64_t item = from; item < to; ++item) {
      const int64_t c = item / blocks, d = item % blocks * kMeanWidth, width = std::min(kMeanWidth, p.width - d);
      if (begin[c] == begin[c + 1]) continue;
      std::fill_n(sum, width, 0.0);
      for (int64_t m = begin[c]; m < begin[c + 1]; ++m) {
        const float* x = points.row(members[m]) + d;
        const double weight = weights[members[m]];
        for (int64_t i = 0; i < width; ++i) sum[i] += weight * x[i];
      }
      float* out = centres + c * p.centre_row + d;
      for (int64_t i = 0; i < width; ++i) out[i] = static_cast<float>(sum[i] / total[c]);
    }
  });
}

void kmeans_row(const Parallel& parallel, const KmeansProblem& p, int64_t b) {
  float* centres = p.centres + b * p.centre_batch;
  const Points points(parallel, p, b);
  initial_centres(parallel, p, points, centres, b);
  std::vector<float> weights(p.n);
  for (int64_t i = 0; i < p.n; ++i) {
    const float weight = p.weights == nullptr ? 1.0f : p.weights[b * p.weight_batch + i * p.weight_token];
    weights[i] = !points.is_void()[i] && weight > 0 && std::isfinite(weight) ? weight : 0.0f;
  }
  std::vector<int32_t> assignment(p.n), before;
  assign(parallel, p, points, centres, assignment);
  for (int64_t i = 0; i < p.iterations && assignment != before; ++i) {
    update(parallel, p, points, weights, assignment, centres);
    before = assignment;
    assign(parallel, p, points, centres, assignment);
  }
  for (int64_t i = 0; i < p.n; ++i) p.assignment.store(b * p.assignment_batch + i, assignment[i]);
}

}  // namespace

void cluster_kmeans(const Parallel& parallel, const KmeansProblem& p) {
  if (p.n == 0) return;
  for_rows(parallel, p.batch, p.n * p.clusters * std::max<int64_t>(1, p.width),
           [&](int64_t b) { kmeans_row(parallel, p, b); });
}

}  // namespace vtkernels::cpu
