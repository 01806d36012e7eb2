// Sections of the smoke program: selection of every kind, on few and on many scores.
#pragma once

#include <vtkernels/cuda/launch_select.h>

#include <cmath>
#include <numeric>

#include "device.h"

namespace {

using Flags = std::vector<unsigned char>;

// Positions of the k best, ascending or the best first.
std::vector<int64_t> best_positions(const float* scores, int64_t n, int64_t k, bool largest,
                                    const unsigned char* first = nullptr, const unsigned char* never = nullptr,
                                    bool by_score = false) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < n; ++i) {
    if (never == nullptr || never[i] == 0) order.push_back(i);
  }
  const auto rank = [&](int64_t i) {
    return std::pair<bool, uint32_t>(first != nullptr && first[i] != 0, selection_key(scores[i], largest));
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return rank(a) > rank(b); });
  order.resize(std::min<size_t>(order.size(), k));
  if (!by_score) std::sort(order.begin(), order.end());
  return order;
}

Flags random_flags(int64_t count) {
  Flags flags(count);
  for (unsigned char& f : flags) f = generator() % 4 == 0;
  return flags;
}

void append(std::vector<int64_t>& to, const std::vector<int64_t>& row, int64_t shift, int64_t length) {
  for (const int64_t i : row) to.push_back(i + shift);
  to.resize(to.size() + std::max<int64_t>(0, length - static_cast<int64_t>(row.size())), -1);
}

void test_select(int64_t n, bool largest, bool masked) {
  std::vector<float> scores = random_values(2 * n);  // many ties
  scores[3] = NAN;
  const Flags first = random_flags(2 * n), never = random_flags(2 * n);
  const int64_t k = masked ? n - 3 : n / 4;
  const DeviceArray<float> device(scores);
  const DeviceArray<unsigned char> protected_tokens(first), excluded(never);
  const DeviceArray<int64_t> out(2 * k, -9);
  const DeviceArray<int> scratch(select_scratch(2, k), -9);
  SelectDense problem{};
  problem.scores = {device.data(), n, 1};
  problem.batch = 2;
  problem.n = n;
  problem.k = k;
  problem.largest = largest;
  problem.out = {out.data(), true, k, 1};
  problem.scratch = scratch.data();
  problem.by_score = masked;
  if (masked) problem.masks = {{protected_tokens.data(), n, 1}, {excluded.data(), n, 1}};
  select_topk(problem, nullptr);
  std::vector<int64_t> want;
  for (int64_t at = 0; at < 2 * n; at += n) {
    append(want,
           best_positions(&scores[at], n, k, largest, masked ? &first[at] : nullptr, masked ? &never[at] : nullptr,
                          masked),
           0, k);
  }
  expect(out.read() == want, "select_topk");
}

// Two segments, the second of which keeps all that it may.
void test_select_packed(int64_t n, bool masked) {
  const std::vector<float> scores = random_values(2 * n);
  const Flags first = random_flags(2 * n), never = random_flags(2 * n);
  const int cut = static_cast<int>(n / 2), end = static_cast<int>(2 * n);
  const std::vector<int> bounds{0, cut, end}, counts{cut / 3, end - cut};
  const DeviceArray<float> device(scores);
  const DeviceArray<unsigned char> protected_tokens(first), excluded(never);
  const DeviceArray<int> cu(bounds), k(counts), out_cu(3, -9), status(1, 0);
  const DeviceArray<int64_t> out(2 * n, -9);
  const DeviceArray<int> scratch(select_packed_scratch(2, 2 * n, true), -9);
  SelectPacked problem{};
  problem.scores = {device.data(), 0, 1};
  problem.batch = 2;
  problem.tokens = 2 * n;
  problem.total_out = 2 * n;
  problem.cu_seqlens = {cu.data(), 1};
  problem.k = {k.data(), 1};
  problem.largest = true;
  problem.by_score = masked;
  if (masked) problem.masks = {{protected_tokens.data(), 0, 1}, {excluded.data(), 0, 1}};
  problem.out = {out.data(), true, 0, 1};
  problem.out_cu_seqlens = out_cu.data();
  problem.scratch = scratch.data();
  problem.status = status.data();
  select_topk_varlen(problem, nullptr);
  std::vector<int64_t> want;
  std::vector<int> ends{0};
  for (int row = 0; row < 2; ++row) {
    const int begin = bounds[row];
    append(want,
           best_positions(&scores[begin], bounds[row + 1] - begin, counts[row], true, masked ? &first[begin] : nullptr,
                          masked ? &never[begin] : nullptr, masked),
           begin, 0);
    ends.push_back(static_cast<int>(want.size()));
  }
  want.resize(2 * n, -1);
  expect(out.read() == want && out_cu.read() == ends && status.read()[0] == 0, "select_topk_varlen");
}

// Eighths, so sums are exact: all that is above one, or that holds half of the weight.
void test_select_ragged(int64_t n) {
  const std::vector<float> scores = random_values(2 * n);
  const DeviceArray<float> device(scores);
  const DeviceArray<int64_t> out(2 * n, -9);
  const DeviceArray<int> counts(2, -9), cu(3, -9);
  const RaggedView ragged{{out.data(), true, n, 1}, counts.data(), cu.data()};
  for (const bool part : {false, true}) {
    std::vector<int64_t> want;
    std::vector<int> ends{0};
    for (int64_t at = 0; at < 2 * n; at += n) {
      const float* row = &scores[at];
      const std::vector<int64_t> ranked = best_positions(row, n, n, true, nullptr, nullptr, true);
      float total = 0, held = 0;
      for (int64_t i = 0; i < n; ++i) total += std::max(0.0f, row[i]);
      size_t kept = 0;
      while (part ? held < total / 2 : row[ranked[kept]] > 1) held += row[ranked[kept++]];
      append(want, best_positions(row, n, kept, true), 0, n);
      ends.push_back(ends.back() + static_cast<int>(kept));
    }
    if (part) {
      SelectTopP problem{{device.data(), n, 1}, 2, n, 1, int64_t{1} << 30, ragged};
      select_top_p(problem, nullptr);
    } else {
      SelectThreshold problem{{device.data(), n, 1}, 2, n, 0, true, 1.0f, nullptr, 0, ragged};
      select_threshold(problem, nullptr);
    }
    expect(out.read() == want && cu.read() == ends, part ? "select_top_p" : "select_threshold");
  }
}

}  // namespace
