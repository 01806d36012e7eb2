// The kernel with compaction that needs no vector instructions, branch-free.
struct V {
  static int64_t keep(const uint32_t* keys, int64_t n, uint32_t first, uint32_t last, uint32_t* to) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      to[count] = keys[i];
      count += keys[i] - first <= last - first;
    }
    return count;
  }

  static int64_t places(const uint32_t* keys, int64_t n, uint32_t first, int32_t* to) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      to[count] = static_cast<int32_t>(i);
      count += keys[i] >= first;
    }
    return count;
  }
};

#include "select_kernel.inl"
