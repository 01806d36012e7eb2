// Cell attention row by row; argmax attention over blocks of keys whose products fit the second-level cache.
#include "attend.h"

#include <algorithm>

#include "narrow.h"
#include "products.h"
#include "score_common.h"
#include "target.h"
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own AVX-512 header
#endif
#endif

namespace vtkernels::cpu {
namespace {

namespace baseline {
#include "score_baseline.h"
#include "score_kernel.inl"
// after the kernel whose pieces it uses
#include "attend_kernel.inl"
}  // namespace baseline

#if defined(__x86_64__)
VTK_TARGET("avx2,fma,f16c")
namespace avx2 {
#include "score_avx2.h"
#include "score_kernel.inl"
// after the kernel whose pieces it uses
#include "attend_kernel.inl"
}  // namespace avx2
VTK_TARGET_END
VTK_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace avx512 {
#include "score_avx512.h"
#include "score_kernel.inl"
// after the kernel whose pieces it uses
#include "attend_kernel.inl"
}  // namespace avx512
VTK_TARGET_END
#endif

using AttendCell = void (*)(const CellProblem& p, int64_t b, int64_t h, int64_t cell, float* scratch);

AttendCell pick() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::kAvx512) return avx512::attend_cell<avx512::Float>;
  if (current_isa() == Isa::kAvx2) return avx2::attend_cell<avx2::V>;
#endif
  return baseline::attend_cell<baseline::V>;
}

constexpr int64_t kRowBlock = 64, kKeyBlock = 1024;  // 256 KiB of products
constexpr uint64_t kAllowed = uint64_t{1} << 32;     // above every key: an allowed NaN still beats nothing

// The best key of one query so far: kAllowed | selection key; 0 when there is none.
struct Best {
  uint64_t rank = 0;
  int64_t key = -1;
};

void take_rows(const Parallel& serial, const ArgmaxProblem& p, int64_t b, int64_t h, int64_t first, float* products) {
  const int64_t size = p.dtype == DType::kFloat32 ? 4 : 2, rows = std::min(kRowBlock, p.rows - first);
  const char* queries = p.query.data + (b * p.query.batch + h * p.query.head + first * p.query.row) * size;
  const char* keys = p.key.data + (b * p.key.batch + h * p.key.head) * size;
  Best best[kRowBlock];
  for (int64_t begin = 0; begin < p.keys; begin += kKeyBlock) {
    const int64_t count = std::min(kKeyBlock, p.keys - begin);
    cpu::products(serial, {p.dtype,
                           {queries, p.query.row, p.query.dim},
                           {keys + begin * p.key.row * size, p.key.row, p.key.dim},
                           rows,
                           count,
                           p.width,
                           false,
                           nullptr,
                           nullptr,
                           products,
                           kKeyBlock});
    for (int64_t r = 0; r < rows; ++r) {
      const bool* allowed = p.allowed == nullptr
                                ? nullptr
                                : p.allowed + b * p.allowed_batch + (first + r) * p.allowed_row + begin * p.allowed_key;
      for (int64_t k = 0; k < count; ++k) {
        if (allowed != nullptr && !allowed[k * p.allowed_key]) continue;
        const uint64_t rank = kAllowed | selection_key(products[r * kKeyBlock + k], true);
        if (rank > best[r].rank) best[r] = {rank, begin + k};
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    p.indices.store(b * p.index_batch + h * p.index_head + first + r, best[r].key);
    char* to = p.out + (b * p.out_batch + h * p.out_head + (first + r) * p.out_row) * size;
    const char* from = keys + best[r].key * p.key.row * size;
    if (best[r].key < 0) {
      memset(to, 0, p.width * size);
    } else if (p.key.dim == 1) {
      memcpy(to, from, p.width * size);
    } else {
      for (int64_t d = 0; d < p.width; ++d) memcpy(to + d * size, from + d * p.key.dim * size, size);
    }
  }
}

}  // namespace

void cell_attention(const Parallel& parallel, const CellProblem& p) {
  const AttendCell attend = pick();
  const int64_t floats = 16 + 3 * ceil_div(p.width, 16) * 16 + p.cell * p.cell;
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, p.width * p.cell * p.cell));
  parallel(p.batch * p.heads * p.cells, grain, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(floats);
    for (int64_t i = begin; i < end; ++i) {
      attend(p, i / p.cells / p.heads, i / p.cells % p.heads, i % p.cells, scratch);
    }
  });
}

void argmax_attention(const Parallel& parallel, const ArgmaxProblem& p) {
  const int64_t blocks = ceil_div(p.rows, kRowBlock);
  const int64_t work = std::max<int64_t>(1, std::min(p.rows, kRowBlock) * p.keys * p.width);
  parallel(p.batch * p.heads * blocks, std::max<int64_t>(1, (1 << 18) / work), [&](int64_t begin, int64_t end) {
    std::vector<float> products(kRowBlock * kKeyBlock);
    for (int64_t i = begin; i < end; ++i) {
      take_rows({nullptr}, p, i / blocks / p.heads, i / blocks % p.heads, i % blocks * kRowBlock, products.data());
    }
  });
}

}  // namespace vtkernels::cpu
