// Rows of many tensors moved by one list of indices.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "../common/target.h"

namespace vtkernels::cpu {

using CopyRow = void (*)(char* to, const char* from, int64_t bytes);

#if defined(__x86_64__)
VTK_TARGET_AVX512
namespace avx512 {
namespace {

// Whole cache lines past the cache: a usual store would read the line that it overwrites first.
void stream_row(char* to, const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
  }
}

}  // namespace
}  // namespace avx512
VTK_TARGET_END
#endif

namespace {

constexpr int64_t kGrainBytes = 65536;
// Kept rows lie apart, so the processor does not foresee them; where they go is prefetched as well, for a usual store
// reads its cache line first.
constexpr int64_t kPrefetchRows = 8, kPrefetchBytes = 512;
constexpr int64_t kStreamBytes = 1 << 24;  // so much output would only push other data out of the caches

// A line is (tensor, batch, outer): `kept` rows that share their indices.
class Lines {
 public:
  Lines(const std::vector<RowCopy>& copies, int64_t batch) : copies_(copies), before_(copies.size() + 1, 0) {
    for (size_t i = 0; i < copies.size(); ++i) {
      before_[i + 1] = before_[i] + batch * copies[i].outer;
      bytes_ += batch * copies[i].outer * copies[i].width * copies[i].element;
    }
  }

  int64_t count() const { return before_.back(); }
  int64_t bytes() const { return bytes_; }  // of one row of every line

  size_t tensor(int64_t line) const {
    return std::upper_bound(before_.begin(), before_.end(), line) - before_.begin() - 1;
  }
  int64_t batch(int64_t line, size_t tensor) const { return (line - before_[tensor]) / copies_[tensor].outer; }
  int64_t outer(int64_t line, size_t tensor) const { return (line - before_[tensor]) % copies_[tensor].outer; }

 private:
  const std::vector<RowCopy>& copies_;
  std::vector<int64_t> before_;  // lines before each tensor
  int64_t bytes_ = 0;
};

// The indices of one line.
class LineIndices {
 public:
  LineIndices(const Indices& all, int64_t tensor, int64_t batch, int64_t outer)
      : wide_(static_cast<const int64_t*>(all.data) + first(all, tensor, batch, outer)),
        narrow_(static_cast<const int32_t*>(all.data) + first(all, tensor, batch, outer)),
        step_(all.token_stride),
        is_wide_(all.wide) {}

  int64_t operator[](int64_t j) const { return is_wide_ ? wide_[j * step_] : narrow_[j * step_]; }

 private:
  static int64_t first(const Indices& all, int64_t tensor, int64_t batch, int64_t outer) {
    return tensor * all.tensor_stride + batch * all.batch_stride + outer * all.outer_stride;
  }

  const int64_t* wide_;
  const int32_t* narrow_;
  int64_t step_;
  bool is_wide_;
};

void copy_elements(char* dst, int64_t dst_step, const char* src, int64_t src_step, const RowCopy& c) {
  for (int64_t i = 0; i < c.width; ++i) memcpy(dst + i * dst_step, src + i * src_step, c.element);
}

void prefetch_row(const char* src, int64_t bytes) {
  for (int64_t i = 0; i < std::min(bytes, kPrefetchBytes); i += 64) __builtin_prefetch(src + i);
}

void copy_row(char* to, const char* from, int64_t bytes) { memcpy(to, from, bytes); }

// Streams rows of whole, aligned cache lines when there are many. Streamed stores are visible to others after a fence.
CopyRow choose_copy(const RowCopy& c, int64_t bytes_of_all) {
#if defined(__x86_64__)
  const auto address = reinterpret_cast<int64_t>(c.dst);
  const int64_t odd = address | c.dst_batch | c.dst_outer | c.dst_token | (c.width * c.element);
  if (bytes_of_all >= kStreamBytes && odd % 64 == 0 && current_isa() >= Isa::kAvx512) return avx512::stream_row;
#endif
  return copy_row;
}

void fence_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace

bool gather_rows(const Parallel& parallel, const std::vector<RowCopy>& copies, const Indices& indices, int64_t batch,
                 int64_t kept, int64_t tokens) {
  const Lines lines(copies, batch);
  const int64_t total = lines.count() * kept;
  if (total == 0) return false;
  const int64_t row_bytes = std::max<int64_t>(1, lines.bytes() / lines.count());
  std::atomic<bool> bad{false};
  parallel(total, std::max<int64_t>(1, kGrainBytes / row_bytes), [&](int64_t begin, int64_t end) {
    int64_t j = begin % kept;
    for (int64_t line = begin / kept, done = begin; done < end; j = 0, ++line) {
      const size_t tensor = lines.tensor(line);
      const RowCopy c = copies[tensor];  // a copy, which no store into a row can change: it stays in registers
      const int64_t b = lines.batch(line, tensor), o = lines.outer(line, tensor);
      const LineIndices at(indices, tensor, b, o);
      const char* src = c.src + b * c.src_batch + o * c.src_outer;
      char* dst = c.dst + b * c.dst_batch + o * c.dst_outer;
      const int64_t row = c.width * c.element, stop = std::min(kept, j + end - done);
      const bool dense = c.src_step == c.element;
      const CopyRow copy = choose_copy(c, lines.bytes() * kept);
      const bool stores_read = copy == copy_row;
      done += stop - j;
      for (; j < stop; ++j) {
        const int64_t token = at[j];
        if (dense && j + kPrefetchRows < stop) {
          const int64_t next = at[j + kPrefetchRows];
          if (next >= 0 && next < tokens) prefetch_row(src + next * c.src_token, row);
          if (stores_read) prefetch_row(dst + (j + kPrefetchRows) * c.dst_token, row);
        }
        if (token < 0 || token >= tokens) {
          memset(dst + j * c.dst_token, 0, row);
          bad.store(true, std::memory_order_relaxed);
        } else if (dense) {
          copy(dst + j * c.dst_token, src + token * c.src_token, row);
        } else {
          copy_elements(dst + j * c.dst_token, c.element, src + token * c.src_token, c.src_step, c);
        }
      }
    }
    fence_streams();
  });
  return bad.load();
}

bool gather_rows_inplace(const Parallel& parallel, const std::vector<RowCopy>& copies, const Indices& indices,
                         int64_t batch, int64_t kept, int64_t tokens) {
  const Lines lines(copies, batch);
  if (lines.count() * kept == 0) return false;
  const int64_t line_bytes = std::max<int64_t>(1, lines.bytes() / lines.count() * kept);
  std::atomic<bool> bad{false};
  parallel(lines.count(), std::max<int64_t>(1, kGrainBytes / line_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const size_t tensor = lines.tensor(line);
      const RowCopy& c = copies[tensor];
      const int64_t b = lines.batch(line, tensor), o = lines.outer(line, tensor);
      char* rows = c.dst + b * c.dst_batch + o * c.dst_outer;
      const bool dense = c.src_step == c.element;
      for (int64_t j = 0; j < kept; ++j) {
        const int64_t token = indices.at(tensor, b, o, j);
        if (dense && j + kPrefetchRows < kept) {
          const int64_t next = indices.at(tensor, b, o, j + kPrefetchRows);
          if (next >= 0 && next < tokens) prefetch_row(rows + next * c.dst_token, c.width * c.element);
        }
        char* to = rows + j * c.dst_token;
        if (token < j || token >= tokens) {
          for (int64_t i = 0; i < c.width; ++i) memset(to + i * c.src_step, 0, c.element);
          bad.store(true, std::memory_order_relaxed);
        } else if (token == j) {
          continue;
        } else if (dense) {
          memcpy(to, rows + token * c.dst_token, c.width * c.element);
        } else {
          copy_elements(to, c.src_step, rows + token * c.dst_token, c.src_step, c);
        }
      }
    }
  });
  return bad.load();
}

}  // namespace vtkernels::cpu
