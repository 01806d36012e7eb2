// Selection with masks, quotas, thresholds and shares of the weight, over the exact selection of select_kernel.inl.
#include <algorithm>
#include <numeric>

#include "select_isa.h"
#include "vtkernels/cpu_select.h"
#include "vtkernels/key.h"
#include "weights.h"

namespace vtkernels::cpu {
namespace {

enum Standing : uint8_t { kExcluded, kOrdinary, kProtected, kTaken };

// A row whose tokens are taken bit by bit.
class Row {
 public:
  Row(const ScoreRow& row, const Masks& masks) : row_(row), standing_(row.count) {
    for (int64_t i = 0; i < row.count; ++i) {
      standing_[i] = masks.excluded.at(i) ? kExcluded : masks.protected_tokens.at(i) ? kProtected : kOrdinary;
    }
  }

  // Takes the best `wanted` of begin .. end that are left, protected ones first.
  void take(int64_t begin, int64_t end, int64_t wanted) {
    for (const Standing standing : {kProtected, kOrdinary}) {
      places_.clear();
      scores_.clear();
      for (int64_t i = begin; i < end; ++i) {
        if (standing_[i] != standing) continue;
        places_.push_back(i);
        scores_.push_back(row_.data[i * row_.stride]);
      }
      const int64_t left = static_cast<int64_t>(places_.size()), count = std::min(wanted, left);
      best_.resize(count);
      select_row(scores_.data(), 1, left, count, row_.largest, 0, {best_.data(), true}, 0);
      for (const int64_t i : best_) standing_[places_[i]] = kTaken;
      taken_ += count;
      wanted -= count;
    }
  }

  int64_t taken() const { return taken_; }

  void positions(int64_t* chosen) const {
    for (int64_t i = 0; i < row_.count; ++i) {
      if (standing_[i] == kTaken) *chosen++ = i;
    }
  }

 private:
  const ScoreRow& row_;
  std::vector<uint8_t> standing_;
  std::vector<int64_t> places_, best_;
  std::vector<float> scores_;
  int64_t taken_ = 0;
};

// Ascending positions to best first; equal scores stay in order of position.
void sort_by_score(const ScoreRow& row, const Flags& first, int64_t* chosen, int64_t count) {
  struct Entry {
    uint32_t key;
    int64_t place;
  };
  std::vector<Entry> entries(count);
  for (int64_t i = 0; i < count; ++i) {
    entries[i] = {selection_key(row.data[chosen[i] * row.stride], row.largest), chosen[i]};
  }
  const auto ordinary =
      std::stable_partition(entries.begin(), entries.end(), [&](const Entry& entry) { return first.at(entry.place); });
  const auto better = [](const Entry& a, const Entry& b) { return a.key != b.key ? a.key > b.key : a.place < b.place; };
  std::sort(entries.begin(), ordinary, better);
  std::sort(ordinary, entries.end(), better);
  for (int64_t i = 0; i < count; ++i) chosen[i] = entries[i].place;
}

const float* dense(const ScoreRow& row, std::vector<float>& copy) {
  if (row.stride == 1) return row.data;
  copy.resize(row.count);
  for (int64_t i = 0; i < row.count; ++i) copy[i] = row.data[i * row.stride];
  return copy.data();
}

// The cut where the weight of the best tokens reaches `need`, 1 <= need <= the sum of the weights: the key is searched
// from the top in digits of 11, 11 and 10 bits. `above` is how many tokens lie above it.
Cut find_weight(const std::vector<uint32_t>& keys, const std::vector<uint32_t>& weights, int64_t need, int64_t* above) {
  struct Digit {
    int shift, bits;
  };
  struct Bucket {
    int64_t weight, count;
  };
  uint32_t prefix = 0;
  *above = 0;
  std::vector<Bucket> buckets;
  for (const Digit digit : {Digit{21, 11}, Digit{10, 11}, Digit{0, 10}}) {
    const int top = digit.shift + digit.bits;
    const uint32_t mask = (1u << digit.bits) - 1;
    buckets.assign(mask + 1, {0, 0});
    for (size_t i = 0; i < keys.size(); ++i) {
      if (top < 32 && (keys[i] ^ prefix) >> top != 0) continue;
      Bucket& bucket = buckets[(keys[i] >> digit.shift) & mask];
      bucket.weight += weights[i];
      ++bucket.count;
    }
    uint32_t bucket = mask;
    for (; need > buckets[bucket].weight; --bucket) {
      need -= buckets[bucket].weight;
      *above += buckets[bucket].count;
    }
    prefix |= bucket << digit.shift;
  }
  const Bucket& last = buckets[prefix & ((1u << 10) - 1)];
  const int64_t each = last.weight / last.count;  // equal keys weigh the same
  return {prefix, (need + each - 1) / each};
}

}  // namespace

int64_t select_masked(const ScoreRow& row, const Masks& masks, int64_t k, bool by_score, int64_t* chosen) {
  int64_t count = std::min(k, row.count);
  if (masks.none()) {
    select_row(row.data, row.stride, row.count, count, row.largest, 0, {chosen, true}, 0);
  } else {
    Row left(row, masks);
    left.take(0, row.count, k);
    left.positions(chosen);
    count = left.taken();
  }
  if (by_score) sort_by_score(row, masks.protected_tokens, chosen, count);
  return count;
}

int64_t select_quota(const ScoreRow& row, const Masks& masks, const std::vector<int64_t>& bounds, int64_t k,
                     int64_t quota, bool by_score, int64_t* chosen) {
  Row left(row, masks);
  for (size_t s = 1; s < bounds.size(); ++s) left.take(bounds[s - 1], bounds[s], quota);
  left.take(0, row.count, k - left.taken());
  left.positions(chosen);
  if (by_score) sort_by_score(row, masks.protected_tokens, chosen, left.taken());
  return left.taken();
}

int64_t select_threshold(const ScoreRow& row, float threshold, int64_t min_keep, const IndexOut& out, int64_t at) {
  std::vector<float> copy;
  const float* scores = dense(row, copy);
  int64_t count = 0;
  if (threshold == threshold) {
    count =
        select_kernel().emit(scores, row.count, {selection_key(threshold, row.largest), 0}, row.largest, 0, out, at);
  }
  if (count >= min_keep) return count;
  select_row(scores, 1, row.count, min_keep, row.largest, 0, out, at);
  return min_keep;
}

int64_t select_top_p(const ScoreRow& row, int64_t part, int64_t min_keep, const IndexOut& out, int64_t at) {
  std::vector<float> copy;
  const float* scores = dense(row, copy);
  const std::vector<uint32_t> weights = integer_weights(scores, 1, row.count);
  const int64_t total = std::accumulate(weights.begin(), weights.end(), int64_t{0});
  if (total > 0) {
    constexpr int64_t kOne = int64_t{1} << 31;
    const int64_t need = (total >> 31) * part + (((total & (kOne - 1)) * part + kOne - 1) >> 31);
    std::vector<uint32_t> keys(row.count);
    for (int64_t i = 0; i < row.count; ++i) keys[i] = selection_key(scores[i], true);
    int64_t above = 0;
    const Cut cut = find_weight(keys, weights, need, &above);
    if (above + cut.equal >= min_keep) return select_kernel().emit(scores, row.count, cut, true, 0, out, at);
  }
  select_row(scores, 1, row.count, min_keep, true, 0, out, at);
  return min_keep;
}

}  // namespace vtkernels::cpu
