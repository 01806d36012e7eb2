// Cell attention row by row; argmax attention over blocks of keys whose products fit the second-level cache.
#include "attend.h"

#include <algorithm>

#include "../common/kernel.h"
#include "../common/products.h"
#include "../common/target.h"

namespace vtkernels::cpu {

#define VTK_KERNEL "../attend/attend_kernel.inl"
#include "../common/isa_kernels.inl"

namespace {

constexpr int64_t kRowBlock = 64, kKeyBlock = 1024;  // 256 KiB of products
constexpr uint64_t kAllowed = uint64_t{1} << 32;     // above every key: an allowed NaN still beats nothing

// The best key of one query so far: kAllowed | selection key; 0 when there is none.
struct Best {
  uint64_t rank = 0;
  int64_t key = -1;
};

void take_rows(const Parallel& serial, const ArgmaxProblem& p, int64_t b, int64_t h, int64_t first, float* products) {
  const int64_t size = element_size(p.dtype), rows = std::min(kRowBlock, p.rows - first);
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
    if (best[r].key < 0) {
      memset(to, 0, p.width * size);
    } else {
      copy_row(keys + best[r].key * p.key.row * size, p.key.dim, p.width, size, to);
    }
  }
}

}  // namespace

void cell_attention(const Parallel& parallel, const CellProblem& p) {
  const auto attend = VTK_PICK(attend_cell);
  const int64_t floats = 3 * ceil_div(p.width, 16) * 16 + p.cell * p.cell;
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
