// Clustering of the tokens of each row.
#pragma once

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

struct ClusterProblem {
  DType dtype;
  const char* features;  // [batch, n, width], strides in elements
  int64_t batch_stride, token_stride, dim_stride;
  int64_t batch, n, width, clusters;
  bool cosine;
  int64_t iterations;   // of k-means and k-medoids
  int64_t neighbours;   // of density peaks
  IndexOut assignment;  // [batch, n]
  int64_t assignment_batch;

  Matrix row(int64_t b) const { return {features + b * batch_stride * element_size(dtype), token_stride, dim_stride}; }
};

struct CentreTokens {
  IndexOut out;  // [batch, clusters]
  int64_t batch_stride;
};

struct KmeansProblem : ClusterProblem {
  const float* weights;  // [batch, n], or null
  int64_t weight_batch, weight_token;
  const float* initial;  // [batch, clusters, width], or null
  int64_t initial_batch, initial_row, initial_dim;
  float* centres;  // [batch, clusters, width], rows dense
  int64_t centre_batch, centre_row;
};

// By the rules of the ops of the same names.
void cluster_density_peaks(const Parallel& parallel, const ClusterProblem& problem, const CentreTokens& centres);
void cluster_kmedoids(const Parallel& parallel, const ClusterProblem& problem, const CentreTokens& medoids);
void cluster_kmeans(const Parallel& parallel, const KmeansProblem& problem);

// The tokens of KKZ: the largest `size` first, then always the one farthest from its nearest chosen one, the lowest
// among equals. Void tokens come last. distance_to(token) gives the distances of all tokens to a token that is not.
template <typename F>
std::vector<int64_t> farthest_first(int64_t clusters, const std::vector<float>& size, const std::vector<char>& is_void,
                                    F&& distance_to) {
  const int64_t n = static_cast<int64_t>(size.size());
  std::vector<float> nearest(n, __builtin_inff());
  std::vector<char> taken(n, 0);
  std::vector<int64_t> chosen;
  while (static_cast<int64_t>(chosen.size()) < clusters) {
    const std::vector<float>& value = chosen.empty() ? size : nearest;
    int64_t pick = -1;
    float best = -2;
    for (int64_t i = 0; i < n; ++i) {
      const float far = taken[i] ? -2.0f : (is_void[i] ? -1.0f : value[i]);
      if (far > best) best = far, pick = i;
    }
    taken[pick] = 1;
    chosen.push_back(pick);
    if (is_void[pick] || static_cast<int64_t>(chosen.size()) == clusters) continue;
    const float* distance = distance_to(pick);
    for (int64_t i = 0; i < n; ++i) nearest[i] = distance[i] < nearest[i] ? distance[i] : nearest[i];
  }
  return chosen;
}

}  // namespace vtkernels::cpu
