// One group, for one instruction set. Included by merge.cpp inside a namespace, after score_kernel.inl and V.

constexpr int64_t kMergeWidth = 1024;  // elements of a row that stay in the first-level cache

template <class V>
void merge_group(const MergeProblem& p, const Group& g) {
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2;
  if (p.mean && g.count == 1) {
    const char* from = g.tokens + g.members[0] * p.token_stride * size;
    if (p.dim_stride == 1) {
      memcpy(g.out, from, p.width * size);
    } else {
      for (int64_t i = 0; i < p.width; ++i) memcpy(g.out + i * size, from + i * p.dim_stride * size, size);
    }
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
      const float* values = reinterpret_cast<const float*>(from);
      if (p.dtype != DType::kFloat32 || p.dim_stride != 1) {
        load_units<V>(from, p.dtype, width, p.dim_stride, reinterpret_cast<uint32_t*>(row));
        values = row;
      }
      for (int64_t i = 0; i < width; ++i) sum[i] += weight * values[i];
    }
    if (p.mean && !divide) {
      std::fill_n(sum, width, 0.0f);
    } else if (divide) {
      for (int64_t i = 0; i < width; ++i) sum[i] /= g.size;
    }
    store_floats(p.dtype, sum, width, g.out + d * size);
  }
}
