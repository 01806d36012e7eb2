// The attention kernel, for one instruction set. Included by attention_<isa>.cpp inside a namespace, after
// tile.inl and the vector type V:
//   kWidth float lanes; kKeys, keys of the register tile
//   zero, load, broadcast, set1, store, dot(a, b, acc), max, nan_max (a NaN of either stays), where_le(a, b, yes, no),
//   sum, exp2; what tile.inl wants
//
// A lane is a slot: a query row of one head. The rows that one key head serves are packed into panels of slots; a block
// of keys is multiplied with one panel at a time, key values broadcast. With `lse` or `logits` each product is final
// and is reduced at once. Otherwise a panel meets all keys first: the exponentials of each block, relative to the
// block's own maximum, are kept for one panel, and reduced when the panel's sums are known. So every product and every
// exponential is computed once, and what is kept is a panel's share of the matrix. Blocks lie at fixed places and are
// reduced in their order, whoever computes them.

constexpr int64_t kBlockKeys = 84;  // a multiple of every kKeys
constexpr int64_t kSlots = 64;      // of a panel
constexpr int64_t kSmall = 4096;    // sequences of at most as many keys are computed by one thread per key head
constexpr int64_t kAhead = 16;      // keys between a request for kept values and their use
constexpr float kFarAway = 1e9f;    // past every key of a block
constexpr float kLog2e = 1.44269504f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Floats on cache lines that are not initialised and live until the next `get`.
class Floats {
 public:
  Floats() = default;
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { std::free(data_); }
  float* get(int64_t count) {
    if (count > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, ceil_div(count, 16) * 64));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = count;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

struct AttentionMemory {
  Floats packed, slots, kept, states;
};

// The rows of a sequence that count.
struct UsedRows {
  UsedRows(const AttentionProblem& p, const AttentionSequence& s) {
    for (int64_t i = 0; i < s.rows; ++i) {
      const float weight = p.weights == nullptr ? 1.0f : p.weights[s.weights + i * p.weight_stride];
      weight_sum += weight;
      if (weight != 0) rows.push_back(i);
    }
  }
  std::vector<int64_t> rows;
  float weight_sum = 0;
};

// Whether rows and heads are reduced by one weighted sum.
inline bool is_flat(const AttentionProblem& p) {
  return p.reduce_rows != Reduce::kMax && (p.reduce_heads == Reduce::kMean || p.reduce_heads == Reduce::kSum);
}

// after the constants
#include "attention_multiply.inl"
// after the register tile
#include "attention_unit.inl"

// Scores of one sequence from its results: reduces the heads, divides by the weights' sum.
inline void finish(const Parallel& parallel, const AttentionProblem& p, const AttentionSequence& s,
                   const UsedRows& used, const float* results, int64_t stride) {
  const bool flat = is_flat(p), none = p.reduce_heads == Reduce::kNone;
  const int64_t count = flat ? p.key_heads : p.heads;
  const int64_t last = used.rows.empty() ? -1 : p.causal ? s.offset + used.rows.back() : s.keys;
  const auto mean = [&](float x) {
    return p.reduce_rows != Reduce::kMean ? x : used.weight_sum == 0 ? 0.0f : x / used.weight_sum;
  };
  parallel(s.count, std::max<int64_t>(1, (1 << 16) / count), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t key = s.first + j;
      const bool seen = key <= last && (p.block_size == 0 || p.block_of(s, key) >= 0);
      float score = 0;
      for (int64_t h = 0; h < count; ++h) {
        const float value = seen ? results[h * stride + j] : 0.0f;
        if (flat) {
          score += value;
        } else if (none) {
          p.out[s.scores + h * p.out_head + j] = mean(value) + 0.0f;
        } else if (p.reduce_heads == Reduce::kMax) {
          const float head = mean(value);
          score = h == 0 || head > score || head != head ? head : score;
        } else {
          score += mean(value);
        }
      }
      if (none) continue;
      if (flat) score = mean(score);
      if (p.reduce_heads == Reduce::kMean) score /= static_cast<float>(p.heads);
      p.out[s.scores + j] = score + 0.0f;
    }
  });
}

template <class V>
void attention(const Parallel& parallel, const AttentionProblem& p, const AttentionSequence* sequences,
               int64_t sequence_count) {
  const bool flat = is_flat(p);
  const int64_t group = p.heads / p.key_heads;
  std::vector<UsedRows> used;
  std::vector<int64_t> start{0}, together;
  for (int64_t i = 0; i < sequence_count; ++i) {
    used.emplace_back(p, sequences[i]);
    start.push_back(start.back() + sequences[i].count);
  }
  const int64_t stride = start.back();
  Floats memory;
  float* results = memory.get(stride * (flat ? p.key_heads : p.heads));
  const auto run = [&](int64_t i, int64_t head, const Parallel& pool, AttentionMemory& scratch) {
    float* to = results + (flat ? head : head * group) * stride + start[i];
    AttentionUnit<V>(p, sequences[i], used[i], head, to, stride, scratch).run(pool);
  };
  AttentionMemory shared;
  for (int64_t i = 0; i < sequence_count; ++i) {
    if (sequences[i].count == 0 || used[i].rows.empty()) continue;
    const int64_t rows = static_cast<int64_t>(used[i].rows.size()) * group;
    const bool many = sequence_count * p.key_heads >= 16 || sequences[i].keys * p.width * rows < 1 << 20;
    if (sequences[i].keys <= kSmall && many) {
      together.push_back(i);
    } else {
      for (int64_t head = 0; head < p.key_heads; ++head) run(i, head, parallel, shared);
    }
  }
  parallel(static_cast<int64_t>(together.size()) * p.key_heads, 1, [&](int64_t begin, int64_t end) {
    AttentionMemory own;
    for (int64_t unit = begin; unit < end; ++unit) {
      run(together[unit / p.key_heads], unit % p.key_heads, Parallel{nullptr}, own);
    }
  });
  for (int64_t i = 0; i < sequence_count; ++i) {
    finish(parallel, p, sequences[i], used[i], results + start[i], stride);
  }
}
