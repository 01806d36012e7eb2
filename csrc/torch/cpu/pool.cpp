// pool_span, shuffle_tokens and unshuffle_tokens as torch ops on the CPU.
#include "../../cpu/compact/pool.h"

#include "../box.h"
#include "common.h"

namespace vtkernels {
namespace {

void check_divides(const char* op, const char* arg, int64_t window, int64_t size) {
  VTK_CHECK(size % window == 0, op, arg,
            std::to_string(window) + ", with " + std::to_string(size) + " tokens on that side",
            "a divisor of them, or ceil=True for smaller windows at the end");
}

cpu::PoolProblem check_pool(const char* op, const Tensor& tokens, int64_t window, int64_t window_width,
                            int64_t grid_width, int64_t span_start, int64_t span_len, bool ceil) {
  check_device(op, "tokens", tokens, cpu_type());
  const View x(tokens);
  cpu::PoolProblem p{};
  p.dtype = float_dtype(op, "tokens", x.dtype);
  check_rank(op, "tokens", x, 3, "a 3-D tensor [B, N, D]");
  p.tokens = x.data();
  p.batch_stride = x.strides[0], p.token_stride = x.strides[1];
  p.batch = x.sizes[0], p.n = x.sizes[1], p.width = x.sizes[2];
  p.dim_stride = p.width == 1 ? 1 : x.strides[2];
  VTK_CHECK(window >= 1 && window <= INT32_MAX, op, "window", window, "1 to 2147483647 (tokens on a side)");
  VTK_CHECK(grid_width >= 0 && grid_width <= INT32_MAX, op, "grid_width", grid_width,
            "0 to 2147483647 (tokens in a row of the grid; 0: windows of a sequence)");
  VTK_CHECK(span_start >= 0 && span_start <= p.n, op, "span_start", span_start,
            "0 to " + std::to_string(p.n) + " (the row has N tokens)");
  const int64_t rest = p.n - span_start, length = span_len == -1 ? rest : span_len;
  VTK_CHECK(length >= 0 && length <= rest, op, "span_len", span_len,
            "0 to " + std::to_string(rest) + " (-1, or at most N - span_start)");
  p.start = span_start;
  p.window_rows = window;
  if (grid_width == 0) {
    VTK_CHECK(window_width == 0, op, "window_width", window_width, "0 without grid_width, which makes windows 2-D");
    p.rows = length, p.columns = 1, p.window_columns = 1;
  } else {
    VTK_CHECK(window_width >= 0 && window_width <= INT32_MAX, op, "window_width", window_width,
              "0 to 2147483647 (tokens on a side; 0: as `window`)");
    VTK_CHECK(length % grid_width == 0, op, "grid_width",
              std::to_string(grid_width) + ", with a span of " + std::to_string(length) + " tokens",
              "a divisor of the length of the span");
    p.rows = length / grid_width, p.columns = grid_width;
    p.window_columns = window_width == 0 ? window : window_width;
  }
  if (!ceil) {
    check_divides(op, "window", p.window_rows, p.rows);
    check_divides(op, window_width == 0 ? "window" : "window_width", p.window_columns, p.columns);
  }
  p.grid_rows = (p.rows + p.window_rows - 1) / p.window_rows;
  p.grid_columns = (p.columns + p.window_columns - 1) / p.window_columns;
  return p;
}

std::vector<int64_t> pooled_shape(const cpu::PoolProblem& p) {
  return {p.batch, p.n - p.rows * p.columns + p.grid_rows * p.grid_columns, p.width};
}

void run_pool(cpu::PoolProblem p, const Tensor& out) {
  const View o(out);
  p.out = o.mutable_data();
  p.out_batch = o.strides[0], p.out_row = o.strides[1];
  cpu::pool_span(torch_pool(), p);
}

Tensor pool_span(const Tensor& tokens, int64_t window, int64_t window_width, int64_t grid_width, int64_t span_start,
                 int64_t span_len, bool ceil) {
  const cpu::PoolProblem p =
      check_pool("pool_span", tokens, window, window_width, grid_width, span_start, span_len, ceil);
  Tensor out = empty_cpu(pooled_shape(p), View(tokens).dtype);
  run_pool(p, out);
  return out;
}

void pool_span_out(const Tensor& tokens, int64_t window, int64_t window_width, int64_t grid_width, int64_t span_start,
                   int64_t span_len, bool ceil, const Tensor& out) {
  const char* op = "pool_span.out";
  const cpu::PoolProblem p = check_pool(op, tokens, window, window_width, grid_width, span_start, span_len, ceil);
  check_output(op, "out", out, pooled_shape(p), View(tokens).dtype, false, cpu_type());
  run_pool(p, out);
}

// The fine and the coarse side of a shuffle, checked. `fine`: whether the tokens are the fine side.
struct Grid {
  std::vector<int64_t> out_shape;
  int64_t sizes[6];  // batch, window rows, window columns, rows in a window, columns in a window, channels
  bool transposed, by_channel;
};

Grid check_grid(const char* op, const Tensor& tokens, int64_t grid_width, int64_t factor, const std::string& order,
                bool fine) {
  check_device(op, "tokens", tokens, cpu_type());
  const View x(tokens);
  check_rank(op, "tokens", x, 3, "a 3-D tensor [B, N, D]");
  VTK_CHECK(factor >= 1 && factor <= 32768, op, "factor", factor, "1 to 32768 (tokens on a side of a window)");
  VTK_CHECK(grid_width >= 1 && grid_width <= INT32_MAX, op, "grid_width", grid_width,
            "1 to 2147483647 (tokens in a row of the fine grid)");
  VTK_CHECK(order == "window" || order == "window_transposed" || order == "channel", op, "order", "'" + order + "'",
            "'window' or 'window_transposed' or 'channel'");
  VTK_CHECK(grid_width % factor == 0, op, "grid_width", grid_width,
            "a multiple of factor (" + std::to_string(factor) + ")");
  const int64_t batch = x.sizes[0], n = x.sizes[1], width = x.sizes[2], columns = grid_width / factor;
  const int64_t area = factor * factor, step = fine ? grid_width * factor : columns;
  VTK_CHECK(fine || width % area == 0, op, "tokens", "of width " + std::to_string(width),
            "a multiple of factor * factor (" + std::to_string(area) + ")");
  VTK_CHECK(n % step == 0, op, "tokens", "of " + std::to_string(n) + " tokens",
            "a multiple of grid_width " + std::string(fine ? "* factor" : "/ factor") + " (" + std::to_string(step) +
                "): whole rows of windows");
  const int64_t channels = fine ? width : width / area;
  Grid grid{{batch, fine ? n / area : n * area, fine ? width * area : channels},
            {batch, n / step, columns, factor, factor, channels},
            order == "window_transposed",
            order == "channel"};
  return grid;
}

void fine_strides(const Grid& grid, const View& v, int64_t* strides) {
  const int64_t factor = grid.sizes[3], width = grid.sizes[2] * factor, token = v.strides[1];
  const int64_t all[6] = {v.strides[0], factor * width * token, factor * token, width * token, token, v.strides[2]};
  std::copy_n(all, 6, strides);
}

void coarse_strides(const Grid& grid, const View& v, int64_t* strides) {
  const int64_t factor = grid.sizes[3], channels = grid.sizes[5], token = v.strides[1], channel = v.strides[2];
  const int64_t down = grid.transposed ? token : grid.sizes[2] * token;
  const int64_t right = grid.transposed ? grid.sizes[1] * token : token;
  const int64_t column = grid.by_channel ? channel : channels * channel;
  const int64_t next = grid.by_channel ? factor * factor * channel : channel;
  const int64_t all[6] = {v.strides[0], down, right, factor * column, column, next};
  std::copy_n(all, 6, strides);
}

void run_shuffle(const Grid& grid, const Tensor& tokens, const Tensor& out, bool fine) {
  const View x(tokens), o(out);
  cpu::ShuffleProblem p{};
  p.from = x.data();
  p.to = o.mutable_data();
  p.element = x.element();
  std::copy_n(grid.sizes, 6, p.sizes);
  (fine ? fine_strides : coarse_strides)(grid, x, p.from_strides);
  (fine ? coarse_strides : fine_strides)(grid, o, p.to_strides);
  cpu::shuffle_tokens(torch_pool(), p);
}

template <bool fine>
Tensor shuffle(const Tensor& tokens, int64_t grid_width, int64_t factor, const std::string& order) {
  const Grid grid = check_grid(fine ? "shuffle_tokens" : "unshuffle_tokens", tokens, grid_width, factor, order, fine);
  Tensor out = empty_cpu(grid.out_shape, View(tokens).dtype);
  run_shuffle(grid, tokens, out, fine);
  return out;
}

template <bool fine>
void shuffle_out(const Tensor& tokens, int64_t grid_width, int64_t factor, const std::string& order,
                 const Tensor& out) {
  const char* op = fine ? "shuffle_tokens.out" : "unshuffle_tokens.out";
  const Grid grid = check_grid(op, tokens, grid_width, factor, order, fine);
  check_output(op, "out", out, grid.out_shape, View(tokens).dtype, false, cpu_type());
  run_shuffle(grid, tokens, out, fine);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("pool_span", VTK_BOX(pool_span));
  m.impl("pool_span.out", VTK_BOX(pool_span_out));
  m.impl("shuffle_tokens", VTK_BOX(shuffle<true>));
  m.impl("shuffle_tokens.out", VTK_BOX(shuffle_out<true>));
  m.impl("unshuffle_tokens", VTK_BOX(shuffle<false>));
  m.impl("unshuffle_tokens.out", VTK_BOX(shuffle_out<false>));
}
