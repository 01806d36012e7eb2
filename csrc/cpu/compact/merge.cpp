// Merging: the members of each group by a counting sort, then one group after the other.
#include "merge.h"

#include <atomic>

#include "../common/kernel.h"
#include "../common/target.h"

namespace vtkernels::cpu {
namespace {

struct Group {
  const int32_t* members;  // tokens, ascending
  int64_t count;
  const char* tokens;  // of this batch row
  const float* weights;
  float size;
  char* out;
};

}  // namespace

#define VTK_KERNEL "../compact/merge_kernel.inl"
#include "../common/isa_kernels.inl"

namespace {

// The members of every group of one batch row: group g has members[begin[g] .. begin[g + 1]), ascending.
struct Members {
  std::vector<int64_t> begin;
  std::vector<int32_t> members;
  std::vector<float> sizes;
};

bool sort_members(const MergeProblem& p, int64_t b, Members& m) {
  const float* weights = p.weights == nullptr ? nullptr : p.weights + b * p.weight_batch;
  bool bad = false;
  m.begin.assign(p.groups + 1, 0);
  m.sizes.assign(p.groups, 0.0f);
  std::vector<int64_t> group(p.n);
  for (int64_t t = 0; t < p.n; ++t) {
    const int64_t g = p.assignment.at(b, t);
    const float weight = weights == nullptr ? 1.0f : weights[t * p.weight_token];
    const bool valid = g >= 0 && g < p.groups;
    bad |= !valid && g != -1;
    group[t] = valid && weight != 0 ? g : -1;
    if (group[t] >= 0) {
      ++m.begin[g + 1];
      m.sizes[g] += weight;
    }
  }
  for (int64_t g = 0; g < p.groups; ++g) m.begin[g + 1] += m.begin[g];
  m.members.resize(m.begin[p.groups]);
  std::vector<int64_t> next(m.begin.begin(), m.begin.end() - 1);
  for (int64_t t = 0; t < p.n; ++t) {
    if (group[t] >= 0) m.members[next[group[t]]++] = static_cast<int32_t>(t);
  }
  return bad;
}

}  // namespace

bool merge_tokens(const Parallel& parallel, const MergeProblem& p) {
  std::vector<Members> rows(p.batch);
  std::atomic<bool> bad{false};
  parallel(p.batch, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, p.n)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (sort_members(p, b, rows[b])) bad.store(true, std::memory_order_relaxed);
    }
  });
  const auto merge = VTK_PICK(merge_group);
  const int64_t size = element_size(p.dtype);
  parallel(p.batch * p.groups, element_grain(p.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / p.groups, g = i % p.groups;
      const Members& m = rows[b];
      p.sizes[b * p.size_batch + g] = m.sizes[g];
      merge(p, {m.members.data() + m.begin[g], m.begin[g + 1] - m.begin[g], p.tokens + b * p.batch_stride * size,
                p.weights == nullptr ? nullptr : p.weights + b * p.weight_batch, m.sizes[g],
                p.out + (b * p.out_batch + g * p.out_row) * size});
    }
  });
  return bad.load();
}

}  // namespace vtkernels::cpu
