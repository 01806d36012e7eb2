// One sequence and key head of the attention kernel. Included by attention_kernel.inl.

// The rows of one sequence that one key head serves.
template <class V>
class AttentionUnit {
  using Reg = typename V::Reg;
  static constexpr int64_t kWidth = V::kWidth, kPair = 2 * V::kWidth, kKeys = V::kKeys;

 public:
  // `results` are rows of scores, `stride` apart: one in all when flat, else one for each head.
  AttentionUnit(const AttentionProblem& p, const AttentionSequence& s, const UsedRows& used, int64_t key_head,
                float* results, int64_t stride, AttentionMemory& memory)
      : p_(p),
        s_(s),
        flat_(is_flat(p)),
        maximum_(p.reduce_rows == Reduce::kMax),
        summed_(p.logits && !p.causal && !maximum_),
        given_(p.logits || p.lse != nullptr),
        sign_(p.scale < 0 && !p.logits && p.lse == nullptr ? -1.0f : 1.0f),
        factor_(p.logits ? p.scale : sign_ * p.scale * kLog2e),
        key_(s.key + key_head * p.key_head),
        results_(results),
        stride_(stride),
        memory_(memory) {
    // Strides that send all keys of a register tile to one set of the first-level cache are worth a copy.
    direct_ = p.dtype == DType::kFloat32 && p.key_dim == 1 && p.block_size == 0 && p.key_token % 512 != 0;
    copy_stride_ = ceil_div(p.width, 16) * 16 + 16;
    place_slots(used, key_head * (p.heads / p.key_heads));
    pack(used);
  }

  void run(const Parallel& parallel) {
    const int64_t first = s_.first / kBlockKeys, last = ceil_div(s_.first + s_.count, kBlockKeys);
    const int64_t flops = kBlockKeys * p_.width * (given_ ? static_cast<int64_t>(rows_.size()) : kSlots);
    const int64_t grain = std::max<int64_t>(1, (1 << 18) / flops);
    if (given_) {
      parallel(last - first, grain, [&](int64_t begin, int64_t end) { reduce_given(first + begin, first + end); });
      return;
    }
    const int64_t blocks = ceil_div(s_.keys, kBlockKeys), states = (blocks * 2 + 2) * kSlots;
    pitch_ = kBlockKeys * std::min<int64_t>(kSlots, rows_.size());
    kept_ = memory_.kept.get((last - first) * pitch_);
    float* both = memory_.states.get(2 * states);
    // A block of the panel before is reduced just before its place is written again, while it is in the cache.
    for (size_t i = 0; i <= panels_.size(); ++i) {
      float* done = both + (i + 1) % 2 * states;
      float* now = both + i % 2 * states;
      parallel(blocks, grain, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          if (i > 0 && block >= first && block < last) reduce_kept(panels_[i - 1], block, first, done);
          if (i < panels_.size()) exponentials(panels_[i], block, first, last, now);
        }
      });
      if (i < panels_.size()) merge(panels_[i], blocks, now);
    }
  }

 private:
  struct Piece {  // vectors of a panel that belong to one result
    int64_t begin, end, result;
    bool first;  // of this result
  };
  struct Panel {
    int64_t slot;  // the first one
    int64_t vectors;
    bool padded;              // some slots hold no row
    int64_t lowest, highest;  // the last key that each row sees, and that any row sees
    const float* packed;
    std::vector<Piece> pieces;
  };
  struct Keys {
    const float* rows;
    const float* tail;   // the last kKeys of them, where the others are not copied
    const float* ahead;  // the block's successor, or null
    int64_t stride;
    int64_t count;
    bool missing;                // some keys are in no block
    float position[kBlockKeys];  // of each key in the block; far away when it is missing
  };
  // Which slots see which keys of a block.
  struct Mask {
    const float* position;
    float limit[kSlots];
  };

  const char* element(const void* data, int64_t offset) const {
    return static_cast<const char*>(data) + offset * element_size(p_.dtype);
  }

  // Heads begin at a vector of their own unless all slots end up in one sum.
  void place_slots(const UsedRows& used, int64_t first_head) {
    const int64_t group = p_.heads / p_.key_heads;
    std::vector<int64_t> results;
    for (int64_t h = 0; h < group; ++h) {
      for (int64_t row : used.rows) {
        heads_.push_back(first_head + h);
        rows_.push_back(row);
        results.push_back(flat_ ? 0 : h);
        if (summed_) break;
      }
      if (summed_ && flat_) break;
      while ((!flat_ || h == group - 1) && rows_.size() % kWidth != 0) {
        heads_.push_back(first_head + h);
        rows_.push_back(-1);
        results.push_back(results.back());
      }
    }
    while (rows_.size() % kWidth != 0) {
      heads_.push_back(first_head);
      rows_.push_back(-1);
      results.push_back(0);
    }
    const int64_t slots = rows_.size();
    for (int64_t slot = 0; slot < slots; slot += kSlots) {
      Panel panel{slot, std::min(kSlots, slots - slot) / kWidth, false, s_.keys, -1, nullptr, {}};
      for (int64_t i = slot; i < slot + panel.vectors * kWidth; ++i) {
        if (i % kWidth == 0 && (i == slot || results[i] != results[i - 1])) {
          const int64_t v = (i - slot) / kWidth;
          if (v > 0) panel.pieces.back().end = v;
          panel.pieces.push_back({v, panel.vectors, results[i], i == 0 || results[i] != results[i - 1]});
        }
        panel.padded |= rows_[i] < 0;
        if (rows_[i] < 0) continue;
        const int64_t limit = p_.causal ? std::clamp<int64_t>(s_.offset + rows_[i], -1, s_.keys) : s_.keys;
        panel.lowest = std::min(panel.lowest, limit);
        panel.highest = std::max(panel.highest, limit);
      }
      panels_.push_back(std::move(panel));
    }
  }

  // Rows into panels [pair of vectors][width][kPair], and what each slot multiplies its values with.
  void pack(const UsedRows& used) {
    const int64_t slots = rows_.size(), pairs = ceil_div(slots, kPair), padded = ceil_div(p_.width, kWidth) * kWidth;
    float* packed = memory_.packed.get(pairs * kPair * p_.width);
    float* lanes = memory_.slots.get(2 * slots + 2 * padded);
    weights_ = lanes;
    shifts_ = lanes + slots;
    std::fill_n(packed, pairs * kPair * p_.width, 0.0f);
    float* units = lanes + 2 * slots;
    float* sums = units + padded;
    const int64_t group = p_.heads / p_.key_heads;
    for (int64_t i = 0; i < slots; ++i) {
      weights_[i] = shifts_[i] = 0;
      if (rows_[i] < 0) continue;
      const float* row = units;
      if (summed_) {  // sum_i w_i <q_i, k> = <sum_i w_i q_i, k>
        std::fill_n(sums, padded, 0.0f);
        for (int64_t h = heads_[i]; h < heads_[i] + (flat_ ? group : 1); ++h) {
          for (int64_t r : used.rows) {
            load_row(h, r, units);
            const float weight = this->weight(r);
            for (int64_t k = 0; k < p_.width; ++k) sums[k] += weight * units[k];
          }
        }
        weights_[i] = 1;
        row = sums;
      } else {
        load_row(heads_[i], rows_[i], units);
        weights_[i] = weight(rows_[i]);
        if (p_.lse != nullptr) shifts_[i] = -p_.lse[s_.lse + heads_[i] * p_.lse_head + rows_[i] * p_.lse_row] * kLog2e;
      }
      float* to = packed + i / kPair * kPair * p_.width + i % kPair;
      for (int64_t k = 0; k < p_.width; ++k) to[k * kPair] = sign_ * row[k];
    }
    for (Panel& panel : panels_) panel.packed = packed + panel.slot * p_.width;
  }

  float weight(int64_t row) const {
    return p_.weights == nullptr ? 1.0f : p_.weights[s_.weights + row * p_.weight_stride];
  }

  void load_row(int64_t head, int64_t row, float* to) const {
    const char* from = element(p_.query, s_.query + head * p_.query_head + row * p_.query_row);
    load_units<V>(from, p_.dtype, p_.width, p_.query_dim, reinterpret_cast<uint32_t*>(to));
  }

  int64_t block_count(int64_t block) const { return std::min(kBlockKeys, s_.keys - block * kBlockKeys); }

  // The keys of a block as float rows: in place, or copied to `copy` with zeros up to a whole register tile.
  void load_keys(int64_t block, float* copy, Keys& keys) const {
    const int64_t begin = block * kBlockKeys, count = block_count(block), whole = count / kKeys * kKeys;
    keys.count = count;
    keys.missing = false;
    keys.ahead = nullptr;
    const int64_t copied = direct_ ? whole : 0;
    const auto* in_place = static_cast<const float*>(p_.key) + key_ + begin * p_.key_token;
    for (int64_t i = 0; i < count; ++i) keys.position[i] = static_cast<float>(i);
    for (int64_t i = copied; i < count; ++i) {
      auto* to = reinterpret_cast<uint32_t*>(copy + i * copy_stride_);
      int64_t offset = (begin + i) * p_.key_token;
      bool there = true;
      if (p_.block_size > 0) {
        const int64_t page = p_.block_of(s_, begin + i);
        there = page >= 0;
        offset = page * p_.block_stride + (begin + i) % p_.block_size * p_.key_token;
      }
      if (there) {
        load_units<V>(element(p_.key, key_ + offset), p_.dtype, p_.width, p_.key_dim, to);
      } else {
        keys.missing = true;
        keys.position[i] = kFarAway;
        memset(to, 0, p_.width * sizeof(float));
      }
    }
    for (int64_t i = count; i % kKeys != 0; ++i) memset(copy + i * copy_stride_, 0, p_.width * sizeof(float));
    keys.tail = copy + whole * copy_stride_;
    keys.rows = direct_ ? in_place : copy;
    keys.stride = direct_ ? p_.key_token : copy_stride_;
    if (direct_ && begin + 2 * kBlockKeys <= s_.keys) keys.ahead = in_place + kBlockKeys * p_.key_token;
  }

  // tile[key][slot] = <key, row>, a tile of whole register tiles.
  void multiply(const Keys& keys, const Panel& panel, float* tile) const {
    const int64_t stride = panel.vectors * kWidth;
    for (int64_t pair = 0; pair * 2 < panel.vectors; ++pair) {
      const float* packed = panel.packed + pair * kPair * p_.width;
      const bool single = pair * 2 + 1 == panel.vectors;
      for (int64_t i = 0; i < keys.count; i += kKeys) {
        const bool copied = i + kKeys > keys.count;
        const float* from = copied ? keys.tail : keys.rows + i * keys.stride;
        const float* ahead = nullptr;
        if (pair == 0 && direct_ && !copied) {
          ahead = i + 2 * kKeys <= keys.count ? from + kKeys * keys.stride : keys.ahead;
        }
        const auto kernel = single ? multiply_keys<V, 1> : multiply_keys<V, 2>;
        kernel(from, copied ? copy_stride_ : keys.stride, packed, p_.width, ahead, tile + i * stride + pair * kPair,
               stride);
      }
    }
  }

  // Fills the mask when not every slot sees every key.
  bool masked(const Panel& panel, int64_t block, const Keys& keys, Mask& mask) const {
    const int64_t begin = block * kBlockKeys;
    if (!panel.padded && !keys.missing && panel.lowest >= begin + keys.count - 1) return false;
    mask.position = keys.position;
    for (int64_t i = 0; i < panel.vectors * kWidth; ++i) {
      const int64_t row = rows_[panel.slot + i];
      const int64_t limit = p_.causal ? std::clamp<int64_t>(s_.offset + row - begin, -1, kBlockKeys) : kBlockKeys;
      mask.limit[i] = static_cast<float>(row < 0 ? -1 : limit);
    }
    return true;
  }

  // First pass of a panel: tile[key][slot] = exp(logit - m), with m[slot] and sum[slot] of the block.
  void exponentials(const Panel& panel, int64_t block, int64_t first, int64_t last, float* states) {
    const int64_t stride = panel.vectors * kWidth;
    Scratch scratch(kBlockKeys * (copy_stride_ + kSlots));
    float* copy = scratch.take<float>(kBlockKeys * copy_stride_);
    float* tile = scratch.take<float>(kBlockKeys * kSlots);
    Keys keys;
    Mask mask;
    float* m = states + block * 2 * kSlots;
    if (block * kBlockKeys > panel.highest) {
      std::fill_n(m, kSlots, -kInfinity);
      std::fill_n(m + kSlots, kSlots, 0.0f);
      return;
    }
    load_keys(block, copy, keys);
    multiply(keys, panel, tile);
    float* kept = block >= first && block < last ? kept_ + (block - first) * pitch_ : tile;
    const bool some = masked(panel, block, keys, mask);
    for (int64_t v = 0; v < panel.vectors;) {  // as many vectors at a time as make a line of work
      if (panel.vectors - v >= 4) {
        some ? exponentials_of_block<true, 4>(tile, kept, stride, keys.count, v, mask, m)
             : exponentials_of_block<false, 4>(tile, kept, stride, keys.count, v, mask, m);
        v += 4;
      } else {
        some ? exponentials_of_block<true, 1>(tile, kept, stride, keys.count, v, mask, m)
             : exponentials_of_block<false, 1>(tile, kept, stride, keys.count, v, mask, m);
        v += 1;
      }
    }
  }

  // kept = exp(tile - m) for vectors [v, v + kVectors), with their maxima and sums to `state`.
  template <bool kMasked, int kVectors>
  void exponentials_of_block(const float* tile, float* kept, int64_t stride, int64_t count, int64_t v, const Mask& mask,
                             float* state) const {
    // The products are compared and subtracted before they are scaled: a fused multiply-add would differ from the
    // maximum by its rounding, which is large for large logits.
    const Reg factor = V::set1(factor_), none = V::set1(-kInfinity);
    Reg limit[kVectors], most[kVectors], shift[kVectors], sum[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      limit[j] = kMasked ? V::load(mask.limit + (v + j) * kWidth) : V::zero();
      most[j] = none;
      sum[j] = V::zero();
    }
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        Reg x = V::load(tile + i * stride + (v + j) * kWidth);
        if (kMasked) x = V::where_le(V::set1(mask.position[i]), limit[j], x, none);
        most[j] = V::max(most[j], x);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) shift[j] = V::where_le(most[j], none, V::zero(), most[j]);
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        __builtin_prefetch(kept + (i + kAhead) * stride + (v + j) * kWidth, 1);
        Reg e = V::exp2((V::load(tile + i * stride + (v + j) * kWidth) - shift[j]) * factor);
        if (kMasked) e = V::where_le(V::set1(mask.position[i]), limit[j], e, V::zero());
        V::store(kept + i * stride + (v + j) * kWidth, e);
        sum[j] = V::add(sum[j], e);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      V::store(state + (v + j) * kWidth, V::where_le(most[j], none, none, most[j] * factor));
      V::store(state + kSlots + (v + j) * kWidth, sum[j]);
    }
  }

  // After the first pass: the maximum of each row, and its weight over its sum.
  void merge(const Panel& panel, int64_t blocks, float* states) {
    float* total = states + blocks * 2 * kSlots;
    for (int64_t v = 0; v < panel.vectors; ++v) {
      const float* m = states + v * kWidth;
      Reg most = V::set1(-kInfinity), sum = V::zero();
      for (int64_t b = 0; b < blocks; ++b) most = V::max(most, V::load(m + b * 2 * kSlots));
      most = V::where_le(most, V::set1(-kInfinity), V::zero(), most);
      for (int64_t b = 0; b < blocks; ++b) {
        const float* state = m + b * 2 * kSlots;
        sum = V::dot(V::load(state + kSlots), V::exp2(V::load(state) - most), sum);
      }
      V::store(total + v * kWidth, most);
      // A row that sees only -inf has a sum of 0: it becomes NaN.
      V::store(total + kSlots + v * kWidth, V::load(weights_ + panel.slot + v * kWidth) / sum);
    }
  }

  // Second pass of a panel.
  void reduce_kept(const Panel& panel, int64_t block, int64_t first, const float* states) {
    const int64_t blocks = ceil_div(s_.keys, kBlockKeys);
    const float* total = states + blocks * 2 * kSlots;
    const float* m = states + block * 2 * kSlots;
    alignas(64) float factors[kSlots];
    for (int64_t v = 0; v < panel.vectors; ++v) {
      const Reg share = V::exp2(V::load(m + v * kWidth) - V::load(total + v * kWidth));
      V::store(factors + v * kWidth, share * V::load(total + kSlots + v * kWidth));
    }
    Keys keys;
    Mask mask;
    keys.count = block_count(block);
    keys.missing = false;
    for (int64_t i = 0; i < keys.count; ++i) {
      const bool there = p_.block_size == 0 || p_.block_of(s_, block * kBlockKeys + i) >= 0;
      keys.position[i] = there ? static_cast<float>(i) : kFarAway;
      keys.missing |= !there;
    }
    const float* tile = kept_ + (block - first) * pitch_;
    reduce(panel, block, masked(panel, block, keys, mask) ? &mask : nullptr, keys.count, tile, factors);
  }

  // With `lse` or `logits`: all panels of one block after the other.
  void reduce_given(int64_t begin, int64_t end) {
    Scratch scratch(kBlockKeys * (copy_stride_ + kSlots));
    float* copy = scratch.take<float>(kBlockKeys * copy_stride_);
    float* tile = scratch.take<float>(kBlockKeys * kSlots);
    Keys keys;
    Mask mask;
    const Reg factor = V::set1(factor_);
    for (int64_t block = begin; block < end; ++block) {
      load_keys(block, copy, keys);
      for (const Panel& panel : panels_) {
        if (block * kBlockKeys <= panel.highest) {
          multiply(keys, panel, tile);
          const int64_t stride = panel.vectors * kWidth;
          for (int64_t i = 0; i < keys.count; ++i) {
            for (int64_t v = 0; v < panel.vectors; ++v) {
              float* at = tile + i * stride + v * kWidth;
              const Reg shift = V::load(shifts_ + panel.slot + v * kWidth);
              V::store(at, p_.logits ? V::load(at) * factor : V::exp2(V::dot(V::load(at), factor, shift)));
            }
          }
        }
        const bool some = masked(panel, block, keys, mask);
        reduce(panel, block, some ? &mask : nullptr, keys.count, tile, weights_ + panel.slot);
      }
    }
  }

  // Adds a tile of a panel, times a factor for each slot, to the scores of the block's keys.
  void reduce(const Panel& panel, int64_t block, const Mask* mask, int64_t count, const float* tile,
              const float* factors) {
    const int64_t begin = block * kBlockKeys;
    const int64_t from = std::max(begin, s_.first), to = std::min(begin + count, s_.first + s_.count);
    const bool unseen = begin > panel.highest;
    float values[kBlockKeys];
    for (const Piece& piece : panel.pieces) {
      if (unseen) {
        if (!piece.first) continue;
        std::fill_n(values, count, maximum_ ? -kInfinity : 0.0f);
      } else if (maximum_) {
        mask == nullptr ? reduce_piece<false, true>(panel, piece, mask, count, tile, factors, values)
                        : reduce_piece<true, true>(panel, piece, mask, count, tile, factors, values);
      } else {
        mask == nullptr ? reduce_piece<false, false>(panel, piece, mask, count, tile, factors, values)
                        : reduce_piece<true, false>(panel, piece, mask, count, tile, factors, values);
      }
      float* out = results_ + piece.result * stride_ + from - s_.first;
      for (int64_t i = 0; i < to - from; ++i) {
        const float value = values[from - begin + i];
        if (piece.first) {
          out[i] = value;
        } else if (maximum_) {
          out[i] = value > out[i] || value != value ? value : out[i];
        } else {
          out[i] += value;
        }
      }
    }
  }

  template <bool kMasked, bool kMaximum>
  void reduce_piece(const Panel& panel, const Piece& piece, const Mask* mask, int64_t count, const float* tile,
                    const float* factors, float* values) const {
    const int64_t stride = panel.vectors * kWidth;
    const Reg neutral = V::set1(kMaximum ? -kInfinity : 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      Reg acc = neutral;
      for (int64_t v = piece.begin; v < piece.end; ++v) {
        __builtin_prefetch(tile + (i + kAhead) * stride + v * kWidth);
        const Reg x = V::load(tile + i * stride + v * kWidth), factor = V::load(factors + v * kWidth);
        if (!kMasked && !kMaximum) {
          acc = V::dot(x, factor, acc);
          continue;
        }
        Reg term = x * factor;
        if (kMasked) term = V::where_le(V::set1(mask->position[i]), V::load(mask->limit + v * kWidth), term, neutral);
        acc = kMaximum ? V::nan_max(acc, term) : V::add(acc, term);
      }
      if (kMaximum) {
        alignas(64) float lanes[kWidth];
        V::store(lanes, acc);
        float most = lanes[0];
        for (int64_t l = 1; l < kWidth; ++l) most = lanes[l] > most || lanes[l] != lanes[l] ? lanes[l] : most;
        values[i] = most;
      } else {
        values[i] = V::sum(acc);
      }
    }
  }

  const AttentionProblem& p_;
  const AttentionSequence& s_;
  const bool flat_, maximum_;
  const bool summed_;  // the weighted sum of the rows stands for all of them
  const bool given_;   // values are final as soon as they are computed
  const float sign_;   // of the rows: with it the largest product is the largest logit
  const float factor_;
  const int64_t key_;  // offset of key 0
  float* results_;
  const int64_t stride_;
  AttentionMemory& memory_;
  bool direct_;
  int64_t copy_stride_;
  std::vector<int64_t> heads_, rows_;  // of each slot; row -1: none
  std::vector<Panel> panels_;
  float* weights_ = nullptr;  // [slots]
  float* shifts_ = nullptr;   // [slots] what is added to the exponent
  int64_t pitch_ = 0;         // of a block of kept values
  float* kept_ = nullptr;     // [scored blocks][kBlockKeys][slots of a panel]
};
