// Section of the smoke program: bipartite matching.
#pragma once

#include <vtkernels/cuda/launch_select.h>

#include <cmath>

#include "select.h"

namespace {

// Tokens along the axes, so that cosines are exact and many tie: the lowest target wins, then the lowest source.
void test_match(Dtype dtype, int64_t n) {
  constexpr int64_t kBatch = 2, kWidth = 16, kStride = 3, kGuarded = 2;
  std::vector<float> values(kBatch * n * kWidth);
  std::vector<int64_t> axis;
  for (int64_t i = 0; i < kBatch * n; ++i) {
    axis.push_back(generator() % kWidth);
    values[i * kWidth + axis[i]] = generator() % 2 == 0 ? 1.0f : 0.5f;
  }
  const Matrix tokens(values, dtype);
  const std::vector<float> bias_values = random_values(kBatch * n);
  const DeviceArray<float> bias(bias_values);
  MatchProblem p{};
  p.dtype = dtype;
  p.batch = kBatch;
  p.n = n;
  p.width = kWidth;
  p.tokens = {tokens.data, n * kWidth, kWidth, 1};
  p.stride = kStride;
  p.guarded = kGuarded;
  p.merged = p.source_count() / 2;
  p.bias = bias.data();
  p.bias_batch = n;
  p.bias_token = 1;
  const int64_t r = p.merged;
  const DeviceArray<int64_t> sources(kBatch * r, -9), targets(kBatch * r, -9);
  const DeviceArray<int> kept(kBatch * (n - r), -9), scratch(match_scratch(kBatch, p.source_count(), r), -9);
  const DeviceArray<float> scores(kBatch * r, -9);
  p.sources = {sources.data(), true, r, 1};
  p.targets = {targets.data(), true, r, 1};
  p.kept = {kept.data(), false, n - r, 1};
  p.scores = {scores.data(), r, 1};
  p.scratch = scratch.data();
  match_bipartite(p, nullptr);
  std::vector<int64_t> want_sources, want_targets;
  std::vector<int> want_kept;
  std::vector<float> want_scores;
  for (int64_t b = 0; b < kBatch; ++b) {
    std::vector<int64_t> place, nearest;
    std::vector<float> row;
    for (int64_t i = kGuarded; i < n; ++i) {
      if (i % kStride == kStride - 1) continue;
      int64_t found = kStride - 1;
      while (found < n && axis[b * n + found] != axis[b * n + i]) found += kStride;
      place.push_back(i);
      nearest.push_back(found < n ? found : kStride - 1);
      row.push_back((found < n ? 1.0f : 0.0f) + bias_values[b * n + i]);
    }
    std::vector<bool> merged(n);
    for (const int64_t at : best_positions(row.data(), static_cast<int64_t>(row.size()), r, true)) {
      merged[place[at]] = true;
      want_sources.push_back(place[at]);
      want_targets.push_back(nearest[at]);
      want_scores.push_back(row[at]);
    }
    for (int64_t i = 0; i < n; ++i) {
      if (!merged[i]) want_kept.push_back(static_cast<int>(i));
    }
  }
  expect(sources.read() == want_sources && targets.read() == want_targets && scores.read() == want_scores &&
             kept.read() == want_kept,
         "match_bipartite");
}

}  // namespace
