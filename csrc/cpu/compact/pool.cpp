// Windows of a grid of tokens: the choice of the instruction set, the split over threads, and moves of whole elements.
#include "pool.h"

#include <algorithm>
#include <cstring>

#include "../common/kernel.h"
#include "../common/target.h"

namespace vtkernels::cpu {

#define VTK_KERNEL "../compact/pool_kernel.inl"
#include "../common/isa_kernels.inl"

namespace {

// A piece of `count` elements, `from_step` and `to_step` elements apart.
template <typename T>
void copy_piece(const char* from, char* to, int64_t count, int64_t from_step, int64_t to_step) {
  const T* x = reinterpret_cast<const T*>(from);
  T* y = reinterpret_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) y[i * to_step] = x[i * from_step];
}

struct Wide {
  uint64_t low, high;
};

using CopyPiece = void (*)(const char* from, char* to, int64_t count, int64_t from_step, int64_t to_step);

CopyPiece pick_copy(int64_t element) {
  switch (element) {
    case 1:
      return copy_piece<uint8_t>;
    case 2:
      return copy_piece<uint16_t>;
    case 4:
      return copy_piece<uint32_t>;
    case 8:
      return copy_piece<uint64_t>;
    default:
      return copy_piece<Wide>;
  }
}

// Channels of a window whose pieces are interleaved on one side: blocks that stay in the first-level cache, so that a
// line is still there for the other pieces.
constexpr int64_t kShuffleBlock = 512;

}  // namespace

void pool_span(const Parallel& parallel, const PoolProblem& p) {
  const int64_t size = element_size(p.dtype), windows = p.grid_rows * p.grid_columns;
  const int64_t length = p.rows * p.columns, out_rows = p.n - length + windows;
  const auto pool = VTK_PICK(pool_window);
  const int64_t reads = p.width * std::max<int64_t>(1, length / std::max<int64_t>(1, windows));
  parallel(p.batch * out_rows, element_grain(reads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / out_rows, row = i % out_rows, window = row - p.start;
      const char* tokens = p.tokens + b * p.batch_stride * size;
      char* out = p.out + (b * p.out_batch + row * p.out_row) * size;
      int64_t token = row, rows = 1, columns = 1;
      if (window >= windows) {
        token = row - windows + length;
      } else if (window >= 0) {
        const int64_t y = window / p.grid_columns * p.window_rows;
        const int64_t x = window % p.grid_columns * p.window_columns;
        token = p.start + y * p.columns + x;
        rows = std::min(p.window_rows, p.rows - y);
        columns = std::min(p.window_columns, p.columns - x);
      }
      const char* first = tokens + token * p.token_stride * size;
      if (rows == 1 && columns == 1) {
        copy_row(first, p.dim_stride, p.width, size, out);
      } else {
        pool(p, first, rows, columns, out);
      }
    }
  });
}

void shuffle_tokens(const Parallel& parallel, const ShuffleProblem& p) {
  const int64_t *sizes = p.sizes, *from = p.from_strides, *to = p.to_strides;
  const int64_t pieces = sizes[3] * sizes[4], channels = sizes[5];
  const CopyPiece copy = pick_copy(p.element);
  const bool dense = from[5] == 1 && to[5] == 1;
  // Pieces that lie together on both sides are one.
  const bool joined = dense && from[4] == channels && to[4] == channels;
  const int64_t columns = joined ? 1 : sizes[4], run = joined ? channels * sizes[4] : channels;
  const int64_t block = dense ? run : kShuffleBlock;
  parallel(sizes[0] * sizes[1] * sizes[2], element_grain(pieces * channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / sizes[2] / sizes[1], y = i / sizes[2] % sizes[1], x = i % sizes[2];
      const char* source = p.from + (b * from[0] + y * from[1] + x * from[2]) * p.element;
      char* target = p.to + (b * to[0] + y * to[1] + x * to[2]) * p.element;
      for (int64_t c = 0; c < run; c += block) {
        const int64_t count = std::min(block, run - c);
        for (int64_t row = 0; row < sizes[3]; ++row) {
          for (int64_t column = 0; column < columns; ++column) {
            const char* s = source + (row * from[3] + column * from[4] + c * from[5]) * p.element;
            char* t = target + (row * to[3] + column * to[4] + c * to[5]) * p.element;
            if (dense) {
              memcpy(t, s, count * p.element);
            } else {
              copy(s, t, count, from[5], to[5]);
            }
          }
        }
      }
    }
  });
}

}  // namespace vtkernels::cpu
