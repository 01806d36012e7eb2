// Section of the smoke program: attention scores.
#pragma once

#include <vtkernels/cuda/launch_attention.h>

#include <cmath>

#include "device.h"

namespace {

// Causal rows of four heads that share two of the keys, two splits of the keys, the last of them scored.
void test_attention(Dtype dtype, bool max) {
  constexpr int64_t kHeads = 4, kKeyHeads = 2, kRows = 5, kKeys = 1100, kWidth = 40, kFirst = 970;
  constexpr int64_t kCount = kKeys - kFirst;
  const Matrix query(kHeads * kRows, kWidth, dtype), key(kKeyHeads * kKeys, kWidth, dtype);
  const std::vector<float> weight_values{0.5f, 0.0f, 2.0f, 1.0f, 0.25f};
  const DeviceArray<float> weights(weight_values), out((max ? kHeads : 1) * kCount, -9);
  AttentionProblem p{};
  p.dtype = dtype;
  p.batch = 1;
  p.heads = kHeads;
  p.key_heads = kKeyHeads;
  p.rows = kRows;
  p.keys = kKeys;
  p.width = kWidth;
  p.query = {query.data, 0, kRows * kWidth, kWidth, 1};
  p.key = {key.data, 0, kKeys * kWidth, kWidth, 1};
  p.weights = weights.data();
  p.weight_row = 1;
  p.scale = 0.125;
  p.causal = true;
  p.offset = kKeys - kRows;
  p.key_start = kFirst;
  p.count = kCount;
  p.reduce_rows = max ? Reduce::kMax : Reduce::kMean;
  p.reduce_heads = max ? Reduce::kNone : Reduce::kMean;
  p.out = out.data();
  p.out_head = kCount;
  const DeviceArray<float> scratch(attention_scratch(p), -9);
  p.scratch = scratch.data();
  attention_scores(p, nullptr);
  std::vector<double> want((max ? kHeads : 1) * kCount);
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t i = 0; i < kRows; ++i) {
      std::vector<double> row;
      double sum = 0;
      for (int64_t j = 0; j <= p.offset + i; ++j) {
        const float* k = &key.values[(h / (kHeads / kKeyHeads) * kKeys + j) * kWidth];
        double logit = 0;
        for (int64_t d = 0; d < kWidth; ++d) logit += p.scale * query.values[(h * kRows + i) * kWidth + d] * k[d];
        row.push_back(std::exp(logit));
        sum += row.back();
      }
      for (int64_t j = kFirst; j < static_cast<int64_t>(row.size()); ++j) {
        const double share = weight_values[i] * row[j] / sum;
        double& score = want[(max ? h * kCount : 0) + j - kFirst];
        score = max ? std::max(score, share) : score + share / (3.75 * kHeads);  // the sum of the weights
      }
    }
  }
  const std::vector<float> got = out.read();
  bool equal = true;
  for (size_t i = 0; i < got.size(); ++i) equal &= std::abs(got[i] - want[i]) <= 1e-5 * want[i];
  expect(equal, "attention_scores");
}

}  // namespace
