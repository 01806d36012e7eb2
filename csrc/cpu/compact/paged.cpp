#include "paged.h"

#include <algorithm>
#include <cstring>

namespace vtkernels::cpu {
namespace {

constexpr int32_t kBadIndex = 1, kBadSeqlens = 4, kBadPage = 16, kSharedPage = 32;

int64_t pages_of(int64_t tokens, int64_t block_size) { return (tokens + block_size - 1) / block_size; }

// How many rows name a page: as one that holds tokens, and as a new one.
struct Claims {
  std::vector<uint32_t> readers, writers;
};

int64_t kept_tokens(const KeptSpan& k, int64_t held) { return k.prefix + k.listed + held - k.suffix; }

Claims claim_pages(const PagedProblem& p) {
  Claims claims{std::vector<uint32_t>(p.blocks), std::vector<uint32_t>(p.target.data != nullptr ? p.blocks : 0)};
  const auto claim = [&](std::vector<uint32_t>& counts, const PageTable& table, int64_t row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t page = table.at(row, i);
      if (page >= 0 && page < p.blocks) ++counts[page];
    }
  };
  for (int64_t b = 0; b < p.rows; ++b) {
    const int64_t held = held_tokens(p, b);
    // A row whose length is bad may hold any page of its table.
    claim(claims.readers, p.table, b, held == p.lengths[b] ? pages_of(held, p.block_size) : p.table.width);
    if (p.target.data != nullptr) {
      const int64_t wanted = pages_of(kept_tokens(p.kept[b], held), p.block_size);
      claim(claims.writers, p.target, b, std::min(wanted, p.target.width));
    }
  }
  return claims;
}

// The status bits of a row, and how many leading tokens are where they belong.
int32_t check_row(const PagedProblem& p, const Claims& claims, int64_t b, int64_t held, int64_t count, int64_t& stay) {
  const KeptSpan& k = p.kept[b];
  int32_t flags = k.flags;
  if (held != p.lengths[b]) flags |= kBadSeqlens;
  stay = k.suffix == k.prefix + k.listed ? count : k.prefix + k.listed;
  int64_t before = k.prefix - 1;
  for (int64_t j = 0; j < k.listed; ++j) {
    const int64_t position = p.indices.at(k.index_row, k.first + j) + k.base;
    if (position <= before || position < 0 || position >= k.suffix) flags |= kBadIndex;
    if (position != k.prefix + j) stay = std::min(stay, k.prefix + j);
    before = position;
  }
  const bool in_place = p.target.data == nullptr;
  const int64_t live = pages_of(held, p.block_size), kept = pages_of(count, p.block_size);
  const int64_t own = !in_place ? 0 : stay < count ? stay / p.block_size : kept;
  for (int64_t i = 0; i < live; ++i) {
    const int64_t page = p.table.at(b, i);
    if (page < 0 || page >= p.blocks) {
      flags |= kBadPage;
    } else if (!p.allow_shared && i >= own && claims.readers[page] > 1) {
      flags |= kSharedPage;
    }
  }
  if (in_place) return flags;
  if (kept > p.target.width) flags |= kBadSeqlens;
  for (int64_t i = 0; i < std::min(kept, p.target.width); ++i) {
    const int64_t page = p.target.at(b, i);
    if (page < 0 || page >= p.blocks) {
      flags |= kBadPage;
    } else if (claims.readers[page] > 0 || claims.writers[page] > 1) {
      flags |= kSharedPage;
    }
  }
  return flags;
}

// Tokens that lie together before and after the move.
void add_token(std::vector<TokenRun>& runs, int64_t source, int64_t target, int64_t block_size) {
  if (!runs.empty()) {
    TokenRun& last = runs.back();
    if (source == last.source + last.count && target == last.target + last.count && source % block_size != 0 &&
        target % block_size != 0) {
      ++last.count;
      return;
    }
  }
  runs.push_back({source, target, 1});
}

void copy_tokens(const Pool& pool, char* dst, const char* src, int64_t count) {
  const int64_t row = pool.width * pool.element;
  if (pool.step == pool.element) {
    if (pool.token_stride == row) {
      memmove(dst, src, count * row);  // in place the two may overlap
      return;
    }
    for (int64_t t = 0; t < count; ++t) memmove(dst + t * pool.token_stride, src + t * pool.token_stride, row);
    return;
  }
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t i = 0; i < pool.width; ++i) {
      const int64_t at = t * pool.token_stride + i * pool.step;
      memcpy(dst + at, src + at, pool.element);
    }
  }
}

}  // namespace

int64_t held_tokens(const PagedProblem& p, int64_t row) {
  return std::clamp<int64_t>(p.lengths[row], 0, p.table.width * p.block_size);
}

PagedPlan plan_pages(const PagedProblem& p, const PagedOutputs& out) {
  const Claims claims = claim_pages(p);
  const bool in_place = p.target.data == nullptr;
  const PageTable& target = in_place ? p.table : p.target;
  PagedPlan plan{std::vector<std::vector<TokenRun>>(p.rows), 0};
  for (int64_t b = 0; b < p.rows; ++b) {
    const KeptSpan& k = p.kept[b];
    const int64_t held = held_tokens(p, b), count = kept_tokens(k, held), live = pages_of(held, p.block_size);
    int64_t stay = 0;
    const int32_t flags = check_row(p, claims, b, held, count, stay);
    plan.flags |= flags;
    const bool done = flags == 0;
    out.lengths[b] = static_cast<int32_t>(done ? count : in_place ? p.lengths[b] : 0);
    const int64_t unused = in_place ? pages_of(count, p.block_size) : 0;
    for (int64_t i = 0; i < p.table.width; ++i) {
      out.freed[b * out.freed_row + i] =
          done && unused + i < live ? static_cast<int32_t>(p.table.at(b, unused + i)) : -1;
    }
    const auto slot = [&](const PageTable& table, int64_t position) {
      return table.at(b, position / p.block_size) * p.block_size + position % p.block_size;
    };
    for (int64_t j = 0; j < k.listed; ++j) {
      out.slots.store(out.slot_row[b] + j, done ? slot(target, k.prefix + j) : -1);
    }
    if (!done) continue;
    for (int64_t j = in_place ? stay : 0; j < count; ++j) {
      const int64_t position = j < k.prefix              ? j
                               : j < k.prefix + k.listed ? p.indices.at(k.index_row, k.first + j - k.prefix) + k.base
                                                         : k.suffix + j - k.prefix - k.listed;
      add_token(plan.runs[b], slot(p.table, position), slot(target, j), p.block_size);
    }
  }
  return plan;
}

void move_pages(const Parallel& parallel, const PagedPlan& plan, const std::vector<Pool>& pools, int64_t block_size) {
  // A stripe is (pool, outer): it walks the tokens of a row in order, so that in place nothing is overwritten unread.
  std::vector<int64_t> stripes(pools.size() + 1, 0);
  int64_t bytes = 0, tokens = 0;
  for (size_t i = 0; i < pools.size(); ++i) {
    stripes[i + 1] = stripes[i] + (pools[i].width > 0 ? pools[i].outer : 0);
    bytes += pools[i].outer * pools[i].width * pools[i].element;
  }
  for (const auto& runs : plan.runs) {
    for (const TokenRun& run : runs) tokens += run.count;
  }
  const int64_t rows = static_cast<int64_t>(plan.runs.size()), total = rows * stripes.back();
  if (total == 0 || tokens == 0) return;
  const int64_t item_bytes = std::max<int64_t>(1, bytes * tokens / total);
  parallel(total, std::max<int64_t>(1, 65536 / item_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t stripe = item / rows;
      const size_t i = std::upper_bound(stripes.begin(), stripes.end(), stripe) - stripes.begin() - 1;
      const Pool& pool = pools[i];
      char* data = pool.data + (stripe - stripes[i]) * pool.outer_stride;
      for (const TokenRun& run : plan.runs[item % rows]) {
        const int64_t from = run.source / block_size * pool.block_stride + run.source % block_size * pool.token_stride;
        const int64_t to = run.target / block_size * pool.block_stride + run.target % block_size * pool.token_stride;
        copy_tokens(pool, data + to, data + from, run.count);
      }
    }
  });
}

}  // namespace vtkernels::cpu
