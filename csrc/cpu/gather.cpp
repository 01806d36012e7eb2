// Rows of many tensors moved by one list of indices.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {
namespace {

// One row whose elements are not dense in the source.
void copy_strided(char* dst, const char* src, const RowCopy& c) {
  for (int64_t i = 0; i < c.width; ++i) memcpy(dst + i * c.element, src + i * c.src_step, c.element);
}

}  // namespace

bool gather_rows(const Parallel& parallel, const std::vector<RowCopy>& copies, const Indices& indices, int64_t batch,
                 int64_t kept, int64_t tokens) {
  // A line is (tensor, batch, outer): `kept` rows that share their indices. lines[i] counts those before tensor i.
  std::vector<int64_t> lines(copies.size() + 1, 0);
  int64_t bytes = 0;
  for (size_t i = 0; i < copies.size(); ++i) {
    lines[i + 1] = lines[i] + batch * copies[i].outer;
    bytes += batch * copies[i].outer * copies[i].width * copies[i].element;
  }
  const int64_t total = lines.back() * kept;
  if (total == 0) return false;
  const int64_t row_bytes = std::max<int64_t>(1, bytes / lines.back());
  std::atomic<bool> bad{false};
  parallel(total, std::max<int64_t>(1, 65536 / row_bytes), [&](int64_t begin, int64_t end) {
    int64_t line = begin / kept, j = begin % kept;
    size_t tensor = std::upper_bound(lines.begin(), lines.end(), line) - lines.begin() - 1;
    for (int64_t done = begin; done < end; j = 0, ++line) {
      while (line >= lines[tensor + 1]) ++tensor;
      const RowCopy& c = copies[tensor];
      const int64_t b = (line - lines[tensor]) / c.outer, o = (line - lines[tensor]) % c.outer;
      const char* src = c.src + b * c.src_batch + o * c.src_outer;
      char* dst = c.dst + b * c.dst_batch + o * c.dst_outer;
      const int64_t row = c.width * c.element, stop = std::min(kept, j + end - done);
      done += stop - j;
      for (; j < stop; ++j) {
        const int64_t token = indices.at(b, j);
        if (token < 0 || token >= tokens) {
          memset(dst + j * c.dst_token, 0, row);
          bad.store(true, std::memory_order_relaxed);
        } else if (c.src_step == c.element) {
          memcpy(dst + j * c.dst_token, src + token * c.src_token, row);
        } else {
          copy_strided(dst + j * c.dst_token, src + token * c.src_token, c);
        }
      }
    }
  });
  return bad.load();
}

}  // namespace vtkernels::cpu
