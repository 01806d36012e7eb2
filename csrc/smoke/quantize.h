// quantize_kv and dequantize_kv against host loops, to the bit but for the rounding of narrow results.
#pragma once

#include <vtkernels/cuda/quantize.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "device.h"

namespace {

float from_bits(uint16_t bits, Dtype dtype) {
  if (dtype == Dtype::kBFloat16) return bits_float(static_cast<uint32_t>(bits) << 16);
  const int exponent = bits >> 10 & 31, fraction = (bits & 1023) + (exponent > 0 ? 1024 : 0);
  const float size = std::ldexp(static_cast<float>(fraction), std::max(exponent, 1) - 25);
  return bits >> 15 ? -size : size;
}

// A class as the host quantises it, of `heads` heads: float32 in the order of the kernels.
struct HostClass {
  std::vector<uint8_t> key_codes, value_codes;
  std::vector<float> key_params, value_params, scales;
};

HostClass quantized(const std::vector<float>& keys, const std::vector<float>& values, int64_t heads, int64_t tokens,
                    int64_t width, const std::vector<int>& chosen, int bits) {
  const int64_t count = static_cast<int64_t>(chosen.size()), bytes = (width * bits + 7) / 8;
  const float most = static_cast<float>((1 << bits) - 1);
  HostClass c{std::vector<uint8_t>(heads * count * bytes), std::vector<uint8_t>(heads * count * bytes),
              std::vector<float>(heads * 2 * width), std::vector<float>(heads * count * 2),
              std::vector<float>(heads * width)};
  const auto put = [&](std::vector<uint8_t>& codes, int64_t row, int64_t at, float x, float low, float step) {
    const float level = step > 0 ? std::min(std::max((x - low) * (1.0f / step), 0.0f), most) : 0.0f;
    codes[row * bytes + at % bytes] |= static_cast<uint8_t>(static_cast<int>(level + 0.5f) << at / bytes * bits);
  };
  for (int64_t h = 0; h < heads; ++h) {
    const auto element = [&](const std::vector<float>& x, int64_t j, int64_t i) {
      return x[(h * tokens + chosen[j]) * width + i];
    };
    const auto found = [&](int64_t j) { return chosen[j] >= 0 && chosen[j] < tokens; };
    for (int64_t i = 0; i < width; ++i) {
      float low = INFINITY, high = -INFINITY, largest = 0;
      for (int64_t j = 0; j < count; ++j) {
        if (!found(j)) continue;
        low = std::min(low, element(keys, j, i));
        high = std::max(high, element(keys, j, i));
        largest = std::max(largest, std::abs(element(values, j, i)));
      }
      const float step = (high - low) / most;
      c.key_params[h * 2 * width + i] = low;
      c.key_params[(h * 2 + 1) * width + i] = step;
      c.scales[h * width + i] = largest == 0 ? 1.0f : std::sqrt(largest);
      for (int64_t j = 0; j < count; ++j) {
        if (found(j)) put(c.key_codes, h * count + j, i, element(keys, j, i), low, step);
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      if (!found(j)) continue;
      float low = INFINITY, high = -INFINITY;
      for (int64_t i = 0; i < width; ++i) {
        low = std::min(low, element(values, j, i) / c.scales[h * width + i]);
        high = std::max(high, element(values, j, i) / c.scales[h * width + i]);
      }
      const float step = (high - low) / most;
      c.value_params[(h * count + j) * 2] = low;
      c.value_params[(h * count + j) * 2 + 1] = step;
      for (int64_t i = 0; i < width; ++i) {
        put(c.value_codes, h * count + j, i, element(values, j, i) / c.scales[h * width + i], low, step);
      }
    }
  }
  return c;
}

// Three classes of two heads: more rows than a chunk, positions outside the row, tokens of two classes and of none.
void test_quantize(Dtype dtype, int64_t width) {
  constexpr int64_t kHeads = 2, kTokens = 140;
  const Matrix keys(kHeads * kTokens, width, dtype), values(kHeads * kTokens, width, dtype);
  std::vector<int> most(131);
  std::iota(most.begin(), most.end(), 3);
  const std::vector<std::vector<int>> chosen = {most, {-1, 5, 140, 0, 7}, {5, 6, 139}};
  const std::vector<int> bits = {8, 2, 4};
  struct DeviceClass {
    DeviceArray<int> tokens;
    DeviceArray<uint8_t> key_codes, value_codes;
    DeviceArray<float> key_params, value_params, scales;
  };
  std::vector<HostClass> want;
  std::vector<std::unique_ptr<DeviceClass>> got;
  const int64_t head = kTokens * width;
  QuantizeProblem p{};
  p.dtype = dtype;
  p.batch = 1, p.heads = kHeads, p.tokens = kTokens, p.width = width;
  p.key = {const_cast<void*>(keys.data), 0, head, width, 1};
  p.value = {const_cast<void*>(values.data), 0, head, width, 1};
  for (size_t c = 0; c < chosen.size(); ++c) {
    want.push_back(quantized(keys.values, values.values, kHeads, kTokens, width, chosen[c], bits[c]));
    const int64_t count = static_cast<int64_t>(chosen[c].size()), bytes = (width * bits[c] + 7) / 8;
    const size_t codes = kHeads * count * bytes, rows = kHeads * count * 2, channels = kHeads * width;
    got.push_back(std::unique_ptr<DeviceClass>(new DeviceClass{
        DeviceArray<int>(chosen[c]), {codes, 7}, {codes, 7}, {2 * channels, -9}, {rows, -9}, {channels, -9}}));
    const DeviceClass& d = *got.back();
    p.classes.push_back({bits[c],
                         count,
                         {d.tokens.data(), false, count, 1},
                         {d.key_codes.data(), 0, count * bytes, bytes, 1},
                         {d.value_codes.data(), 0, count * bytes, bytes, 1},
                         {d.key_params.data(), 0, 2 * width, width, 1},
                         {d.value_params.data(), 0, 2 * count, 2, 1},
                         {d.scales.data(), 0, width, 0, 1}});
  }
  const DeviceArray<int> status(1, 0), owners(kTokens, 0);
  const DeviceArray<float> scratch(quantize_scratch(p), -9);
  p.status = status.data();
  quantize_kv(p, scratch.data(), nullptr);
  bool equal = status.read()[0] == kBadIndex;
  for (size_t c = 0; c < chosen.size(); ++c) {
    equal &= got[c]->key_codes.read() == want[c].key_codes && got[c]->key_params.read() == want[c].key_params;
    equal &= got[c]->value_codes.read() == want[c].value_codes && got[c]->value_params.read() == want[c].value_params;
    equal &= got[c]->scales.read() == want[c].scales;
  }
  expect(equal, "quantize_kv");

  const size_t elements = kHeads * head;
  const DeviceArray<float> wide[2] = {{elements, -9}, {elements, -9}};
  const DeviceArray<uint16_t> narrow[2] = {{elements, 0x7f7f}, {elements, 0x7f7f}};
  const bool single = dtype == Dtype::kFloat32;
  p.key.data = single ? static_cast<void*>(wide[0].data()) : narrow[0].data();
  p.value.data = single ? static_cast<void*>(wide[1].data()) : narrow[1].data();
  dequantize_kv(p, owners.data(), nullptr);
  std::vector<float> restored[2], wanted[2] = {std::vector<float>(elements), std::vector<float>(elements)};
  for (int side = 0; side < 2; ++side) {
    restored[side] = wide[side].read();
    if (single) continue;
    const std::vector<uint16_t> raw = narrow[side].read();
    for (size_t i = 0; i < elements; ++i) restored[side][i] = from_bits(raw[i], dtype);
  }
  for (size_t c = 0; c < chosen.size(); ++c) {
    const int64_t count = static_cast<int64_t>(chosen[c].size()), bytes = (width * bits[c] + 7) / 8;
    for (int64_t i = 0; i < kHeads * count * width; ++i) {
      const int64_t at = i % width, row = i / width, h = row / count, t = chosen[c][row % count];
      if (t < 0 || t >= kTokens) continue;
      const auto level = [&](const std::vector<uint8_t>& codes) {
        return static_cast<float>(codes[row * bytes + at % bytes] >> at / bytes * bits[c] & ((1 << bits[c]) - 1));
      };
      const HostClass& w = want[c];
      wanted[0][h * head + t * width + at] =
          w.key_params[h * 2 * width + at] + level(w.key_codes) * w.key_params[(h * 2 + 1) * width + at];
      wanted[1][h * head + t * width + at] =
          (w.value_params[2 * row] + level(w.value_codes) * w.value_params[2 * row + 1]) * w.scales[h * width + at];
    }
  }
  const float precision = single ? 0.0f : dtype == Dtype::kFloat16 ? 0x1p-11f : 0x1p-8f;
  equal = true;
  for (int side = 0; side < 2; ++side) {
    for (size_t i = 0; i < elements; ++i) {
      equal &=
          std::abs(restored[side][i] - wanted[side][i]) <= precision * std::abs(wanted[side][i]) + precision * 1e-4f;
    }
  }
  expect(equal, "dequantize_kv");
}

}  // namespace
