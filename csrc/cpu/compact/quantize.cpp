// K and V in a few bits: the choice of the instruction set, the split over threads, which row stands for a token.
#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "../common/kernel.h"
#include "../common/target.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kPad = 16;  // elements, of the widest vector

char* row_of(const HeadRows& rows, int64_t batch, int64_t head, int64_t row, int64_t size) {
  return rows.data + (batch * rows.batch_stride + head * rows.head_stride + row * rows.row_stride) * size;
}

uint8_t* bytes_of(const HeadRows& rows, int64_t batch, int64_t head, int64_t row) {
  return reinterpret_cast<uint8_t*>(row_of(rows, batch, head, row, 1));
}

float* floats(const HeadRows& rows, int64_t batch, int64_t head, int64_t row, int64_t at) {
  return reinterpret_cast<float*>(row_of(rows, batch, head, row, sizeof(float))) + at * rows.dim_stride;
}

struct Range {
  float low, step, inverse;
};

// Of a group from `low` to `high`, which is empty where low > high; `poison` is NaN where a member is not finite.
Range finish_range(float low, float high, float poison, float most) {
  if (low > high && poison == 0) return {0, 0, 0};
  const float step = (high - low) / most + poison;
  if (!std::isfinite(step)) return {NAN, NAN, 0};
  if (step < std::numeric_limits<float>::min()) return {low, 0, 0};
  return {low, step, 1 / step};
}

// The row of a class that stands for a token; row < 0: none does.
struct Owner {
  int32_t of_class, row;
};

}  // namespace

#define VTK_KERNEL "../compact/quantize_kernel.inl"
#include "../common/isa_kernels.inl"

bool quantize_kv(const Parallel& parallel, const QuantizeProblem& p) {
  const auto quantize = VTK_PICK(quantize_head);
  const int64_t classes = static_cast<int64_t>(p.classes.size());
  int64_t rows = 0;
  for (const QuantizedClass& c : p.classes) rows += c.count;
  std::atomic<bool> bad{false};
  // The classes of a head stand together, so that threads get equal shares of large and small ones.
  parallel(p.batch * p.heads * classes, element_grain(2 * p.width * (rows / classes + 1)),
           [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) {
               const int64_t b = i / classes / p.heads, head = i / classes % p.heads;
               if (quantize(p, p.classes[i % classes], b, head)) bad.store(true, std::memory_order_relaxed);
             }
           });
  for (const QuantizedClass& c : p.classes) {  // without heads nothing has looked at the indices
    for (int64_t i = 0; p.heads == 0 && i < p.batch * c.count; ++i) {
      const int64_t t = c.tokens.at(i / c.count, i % c.count);
      if (t < 0 || t >= p.tokens) bad.store(true, std::memory_order_relaxed);
    }
  }
  return bad.load();
}

bool dequantize_kv(const Parallel& parallel, const QuantizeProblem& p) {
  const auto dequantize = VTK_PICK(dequantize_rows);
  std::vector<Owner> owners(p.batch * p.tokens, Owner{0, -1});
  bool bad = false;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (size_t k = 0; k < p.classes.size(); ++k) {
      const QuantizedClass& c = p.classes[k];
      for (int64_t j = 0; j < c.count; ++j) {
        const int64_t t = c.tokens.at(b, j);
        if (t >= 0 && t < p.tokens) {
          owners[b * p.tokens + t] = {static_cast<int32_t>(k), static_cast<int32_t>(j)};
        } else {
          bad = true;
        }
      }
    }
  }
  parallel(p.batch * p.heads * p.tokens, element_grain(2 * p.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / p.tokens / p.heads, head = i / p.tokens % p.heads, t = i % p.tokens;
      const int64_t stop = std::min(p.tokens, t + end - i);
      dequantize(p, owners.data() + b * p.tokens, b, head, t, stop);
      i += stop - t;
    }
  });
  return bad;
}

}  // namespace vtkernels::cpu
