// Section of the smoke program: tokens against the frame before.
#pragma once

#include <cmath>

#include "device.h"

namespace {

void test_temporal(Dtype dtype, int64_t width) {
  constexpr int64_t kFrames = 11, kTokens = 3;
  const Matrix tokens(kFrames * kTokens, width, dtype);
  const DeviceArray<float> out(kFrames * kTokens, -9);
  TemporalProblem problem{};
  problem.dtype = dtype;
  problem.metric = TemporalProblem::Metric::kL1;  // of eighths: exact
  problem.batch = 1;
  problem.frames = kFrames;
  problem.tokens = kTokens;
  problem.width = width;
  problem.data = tokens.data;
  problem.frame_stride = kTokens * width;
  problem.token_stride = width;
  problem.dim_stride = 1;
  problem.first = 7;
  problem.out = out.data();
  problem.out_frame = kTokens;
  temporal_scores(problem, nullptr);
  std::vector<float> want(kTokens, 7.0f);
  for (int64_t row = kTokens; row < kFrames * kTokens; ++row) {
    const float *now = &tokens.values[row * width], *before = now - kTokens * width;
    float sum = 0;
    for (int64_t d = 0; d < width; ++d) sum += std::abs(now[d] - before[d]);
    want.push_back(sum);
  }
  expect(out.read() == want, "temporal_scores");
}

}  // namespace
