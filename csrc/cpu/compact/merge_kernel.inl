// One group, for one instruction set. Compiled by isa_kernels.inl.

constexpr int64_t kMergeWidth = 1024;  // elements of a row that stay in the first-level cache

inline void merge_group(const MergeProblem& p, const Group& g) {
  const int64_t size = element_size(p.dtype);
  if (p.mean && g.count == 1) {
    copy_row(g.tokens + g.members[0] * p.token_stride * size, p.dim_stride, p.width, size, g.out);
    return;
  }
  alignas(64) float sum[kMergeWidth], row[kMergeWidth];
  const bool divide = p.mean && g.size != 0;
  for (int64_t d = 0; d < p.width; d += kMergeWidth) {
    const int64_t width = std::min(kMergeWidth, p.width - d);
    std::fill_n(sum, width, 0.0f);
    for (int64_t m = 0; m < g.count; ++m) {
      const char* from = g.tokens + (g.members[m] * p.token_stride + d * p.dim_stride) * size;
      const float weight = g.weights == nullptr ? 1.0f : g.weights[g.members[m] * p.weight_token];
      const float* values = floats_of(from, p.dtype, width, p.dim_stride, row);
      for (int64_t i = 0; i < width; ++i) sum[i] += weight * values[i];
    }
    if (p.mean && !divide) {
      std::fill_n(sum, width, 0.0f);
    } else if (divide) {
      for (int64_t i = 0; i < width; ++i) sum[i] /= g.size;
    }
    narrow(sum, p.dtype, width, g.out + d * size);
  }
}
