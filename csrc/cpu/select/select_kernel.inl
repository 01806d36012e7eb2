// Exact selection, included once per instruction set after `struct V` with
//   keep(keys, n, first, last, to): the keys in first .. last, in order;
//   places(keys, n, first, to): the positions of the keys from `first` on, in order.
// Both return how many, and may write up to kSelectPadding words behind them.
//
// The k-th key is found by samples: two keys of a sample enclose it, one pass counts the keys above the two and keeps
// those between, and so on with what was kept. Samples only decide how fast that goes, not what is found.

constexpr int64_t kChunk = 512;
constexpr int64_t kSample = 128;
constexpr int64_t kMargin = 14;  // 2.5 standard deviations of the median's rank in a sample

void keys_of(const float* scores, int64_t n, bool largest, uint32_t* keys) {
  for (int64_t i = 0; i < n; ++i) keys[i] = selection_key(scores[i], largest);
}

int64_t count_above(const uint32_t* keys, int64_t n, uint32_t key) {
  uint32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] > key;
  return count;
}

int64_t count_equal(const uint32_t* keys, int64_t n, uint32_t key) {
  uint32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] == key;
  return count;
}

// The keys still in play: computed from scores at first, then those that a pass kept.
struct Source {
  const float* scores;  // or null
  bool largest;
  const uint32_t* keys;
  int64_t size;

  uint32_t at(int64_t i) const { return scores != nullptr ? selection_key(scores[i], largest) : keys[i]; }

  // Keys i .. i + n, n <= kChunk.
  const uint32_t* chunk(int64_t i, int64_t n, uint32_t* buffer) const {
    if (scores == nullptr) return keys + i;
    keys_of(scores + i, n, largest, buffer);
    return buffer;
  }

  // Keeps the keys in first .. last, and counts those above.
  int64_t keep(uint32_t first, uint32_t last, uint32_t* to, int64_t* above) const {
    alignas(64) uint32_t buffer[kChunk];
    int64_t kept = 0;
    *above = 0;
    for (int64_t i = 0; i < size; i += kChunk) {
      const int64_t n = std::min(kChunk, size - i);
      const uint32_t* part = chunk(i, n, buffer);
      *above += count_above(part, n, last);
      kept += V::keep(part, n, first, last, to + kept);
    }
    return kept;
  }
};

struct Bracket {
  uint32_t first, last;
};

// Two keys that probably enclose the k-th one; both in low .. high, as all keys are.
Bracket sample(const Source& source, int64_t k, uint32_t low, uint32_t high) {
  alignas(64) uint32_t keys[kSample];
  const int64_t stride = source.size / kSample;
  uint32_t random = 0x9e3779b9u;
  for (int64_t i = 0; i < kSample; ++i) {
    random = random * 1664525u + 1013904223u;
    keys[i] = source.at(source.size * i / kSample + static_cast<int64_t>((random >> 8) % stride));
  }
  const int64_t rank = kSample * k / source.size;
  Bracket bracket{low, high};
  uint32_t first = high, last = high;
  for (const uint32_t key : keys) {
    const int64_t better = count_above(keys, kSample, key);
    if (better <= rank + kMargin) first = std::min(first, key);
    if (better <= rank - kMargin) last = std::min(last, key);
  }
  if (rank + kMargin < kSample) bracket.first = first;
  if (rank - kMargin >= 0) bracket.last = last;
  return bracket;
}

Cut find_of_few(const uint32_t* keys, int64_t n, int64_t k) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t above = count_above(keys, n, keys[i]);
    if (above < k && k <= above + count_equal(keys, n, keys[i])) return {keys[i], k - above};
  }
  return {0, 0};  // not reached
}

Cut find(const float* scores, int64_t n, int64_t k, bool largest, uint32_t* scratch) {
  uint32_t* kept = scratch;
  uint32_t* spare = scratch + n + kSelectPadding;
  Source source{scores, largest, nullptr, n};
  uint32_t low = 0, high = ~0u;  // the k-th key and all keys of the source are in between
  bool halve = false;
  while (low < high) {
    if (source.size <= kSample) {
      alignas(64) uint32_t buffer[kChunk];
      return find_of_few(source.chunk(0, source.size, buffer), source.size, k);
    }
    // Where samples do not help, as with many equal keys, the range of keys is halved instead.
    const Bracket bracket = halve ? Bracket{low + (high - low) / 2 + 1, high} : sample(source, k, low, high);
    int64_t above = 0;
    int64_t count = source.keep(bracket.first, bracket.last, kept, &above);
    if (k <= above) {
      low = bracket.last + 1;
      count = source.keep(low, high, kept, &above);
    } else if (k > above + count) {
      high = bracket.first - 1;
      k -= above + count;
      count = source.keep(low, high, kept, &above);
    } else {
      low = bracket.first;
      high = bracket.last;
      k -= above;
    }
    halve = count > source.size / 2;
    source = {nullptr, largest, kept, count};
    std::swap(kept, spare);
  }
  return {low, k};
}

int64_t emit(const float* scores, int64_t n, Cut cut, bool largest, int64_t base, const IndexOut& out, int64_t at) {
  alignas(64) uint32_t keys[kChunk];
  alignas(64) int32_t places[kChunk + kSelectPadding];
  int64_t filled = at;
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t size = std::min(kChunk, n - i);
    keys_of(scores + i, size, largest, keys);
    const int64_t equal = cut.equal > 0 ? count_equal(keys, size, cut.key) : 0;
    int64_t count = 0;
    if (equal > cut.equal) {  // the last of the equal ones are in this chunk
      for (int64_t j = 0; j < size; ++j) {
        places[count] = static_cast<int32_t>(j);
        count += keys[j] > cut.key || (keys[j] == cut.key && cut.equal-- > 0);
      }
      cut.equal = 0;
    } else if (equal > 0) {
      count = V::places(keys, size, cut.key, places);
      cut.equal -= equal;
    } else if (cut.key != ~0u) {
      count = V::places(keys, size, cut.key + 1, places);
    }
    if (out.wide) {
      auto* to = static_cast<int64_t*>(out.data) + filled;
      for (int64_t j = 0; j < count; ++j) to[j] = base + i + places[j];
    } else {
      auto* to = static_cast<int32_t*>(out.data) + filled;
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<int32_t>(base + i) + places[j];
    }
    filled += count;
  }
  return filled - at;
}
