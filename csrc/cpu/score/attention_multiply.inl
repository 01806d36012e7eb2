// The register tile of the attention kernel: V::kKeys keys, whose values are broadcast, times one or two vectors of
// slots. Included by attention_kernel.inl.

// One step along the width: acc[r][j] += keys[r][u] * panel[j].
template <class V, int kVectors>
[[gnu::always_inline]] inline void step(const float* const* base, int64_t stride, const float* panel, int u,
                                        typename V::Reg (&acc)[V::kKeys][kVectors]) {
  typename V::Reg rows[kVectors];
#pragma GCC unroll 2
  for (int j = 0; j < kVectors; ++j) rows[j] = V::load(panel + (u * 2 + j) * V::kWidth);
#pragma GCC unroll 16
  for (int r = 0; r < V::kKeys; ++r) {
    const typename V::Reg key = V::broadcast(base[r / 3] + r % 3 * stride + u);
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) acc[r][j] = V::dot(key, rows[j], acc[r][j]);
  }
}

// tile[r][..] = <key r, each slot of a pair of vectors (or the first of them)>. Requests the keys at `ahead` meanwhile.
template <class V, int kVectors>
void multiply_keys(const float* keys, int64_t stride, const float* panel, int64_t width, const float* ahead,
                   float* tile, int64_t tile_stride) {
  constexpr int kBases = (V::kKeys + 2) / 3;  // three keys are within reach of a base by address arithmetic
  for (int64_t begin = 0; begin < width; begin += kSum) {
    const int64_t end = std::min(begin + kSum, width);
    typename V::Reg acc[V::kKeys][kVectors];
    const float* base[kBases];
#pragma GCC unroll 16
    for (int b = 0; b < kBases; ++b) base[b] = keys + 3 * b * stride + begin;
#pragma GCC unroll 16
    for (int r = 0; r < V::kKeys; ++r) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) acc[r][j] = V::zero();
    }
    const float* rows = panel + begin * 2 * V::kWidth;
    int64_t k = begin;
    for (; k + 4 <= end; k += 4) {
      if (ahead != nullptr && k % 16 == 0) {
        for (int r = 0; r < V::kKeys; ++r) __builtin_prefetch(ahead + r * stride + k);
      }
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) step<V, kVectors>(base, stride, rows, u, acc);
#pragma GCC unroll 16
      for (int b = 0; b < kBases; ++b) base[b] += 4;
      rows += 4 * 2 * V::kWidth;
    }
    for (int u = 0; k < end; ++k, ++u) step<V, kVectors>(base, stride, rows, u, acc);
#pragma GCC unroll 16
    for (int r = 0; r < V::kKeys; ++r) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        float* at = tile + r * tile_stride + j * V::kWidth;
        if (begin > 0) acc[r][j] = acc[r][j] + V::load(at);
        V::store(at, acc[r][j]);
      }
    }
  }
}
