// Means of windows, for one instruction set. Compiled by isa_kernels.inl.

constexpr int64_t kPoolWidth = 1024;  // elements of a row that stay in the first-level cache

// The mean of a window of `rows` x `columns` tokens that begins at `first`.
inline void pool_window(const PoolProblem& p, const char* first, int64_t rows, int64_t columns, char* out) {
  const int64_t size = element_size(p.dtype);
  alignas(64) float sum[kPoolWidth], row[kPoolWidth];
  const float count = static_cast<float>(rows * columns);
  for (int64_t d = 0; d < p.width; d += kPoolWidth) {
    const int64_t width = std::min(kPoolWidth, p.width - d);
    const char* part = first + d * p.dim_stride * size;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const char* from = part + (i * p.columns + j) * p.token_stride * size;
        if (i + j == 0) {
          widen(from, p.dtype, width, p.dim_stride, sum);
          continue;
        }
        const float* values = floats_of(from, p.dtype, width, p.dim_stride, row);
        for (int64_t k = 0; k < width; ++k) sum[k] += values[k];
      }
    }
    for (int64_t k = 0; k < width; ++k) sum[k] /= count;
    narrow(sum, p.dtype, width, out + d * size);
  }
}
