// Compaction of paged caches against host loops.
#pragma once

#include <algorithm>

#include "device.h"

namespace {

// Two rows that are in order, and rows whose page, length, indices or new page are not: those stay as they are.
void test_paged(bool in_place) {
  constexpr int kRows = 7, kWidth = 3, kSize = 4, kBlocks = 24, kKept = 5, kToken = 2 * 24, kFreshWidth = 2;
  const std::vector<unsigned char> before = [] {
    std::vector<unsigned char> bytes(kBlocks * kSize * kToken);
    for (unsigned char& b : bytes) b = static_cast<unsigned char>(generator());
    return bytes;
  }();
  const std::vector<int> table = {4, 9, 1, 7, 2, 11, 3, INT32_MAX, 0, 5, -1, 6, 8, 10, 12, 13, 14, 15, 16, 16, 17};
  const std::vector<int> lengths = {12, 9, 12, 12, 13, 12, 12};
  const std::vector<int> fresh = {18, 19, 20, 21, 22, 23, 22, 23, 22, 23, 22, 23, 4, INT32_MIN};
  const std::vector<int> kept = {0, 2, 5, 10, 11, 1, 3, 4, 8, -1, 0,  1,         2, 3, 4, 1, 2, 3,
                                 4, 5, 0, 1,  2,  3, 4, 2, 1, 3,  12, INT32_MAX, 0, 3, 5, 6, 7};
  std::vector<unsigned char> want = before;
  for (int row = 0; row < 2; ++row) {
    for (int j = 0; j < kKept && kept[row * kKept + j] >= 0; ++j) {
      const int from = kept[row * kKept + j];
      const int to = in_place ? table[row * kWidth + j / kSize] : fresh[row * kFreshWidth + j / kSize];
      const int at = table[row * kWidth + from / kSize] * kSize + from % kSize;
      std::copy_n(&before[at * kToken], kToken, &want[(to * kSize + j % kSize) * kToken]);
    }
  }
  const DeviceArray<unsigned char> first(before), second(before);
  const DeviceArray<int> pages(table), new_pages(fresh), held(lengths), indices(kept), status(1, 0);
  const DeviceArray<int> out_lengths(kRows, -7), freed(kRows * kWidth, -7);
  const DeviceArray<int64_t> slots(kRows * kKept, -7), plans(page_plans(kRows), 0);
  const DeviceArray<int> claims(page_claims(kBlocks, in_place), 0);
  PagedCompaction p{};
  p.batch = kRows;
  p.blocks = kBlocks;
  p.block_size = kSize;
  p.kept = kKept;
  p.table = {pages.data(), kWidth, kWidth, 1};
  if (!in_place) p.target = {new_pages.data(), kFreshWidth, kFreshWidth, 1};
  p.lengths = {held.data(), 1};
  p.indices = {indices.data(), false, kKept, 1};
  p.out_lengths = out_lengths.data();
  p.slots = {slots.data(), true, kKept, 1};
  p.freed = freed.data();
  p.freed_batch_stride = kWidth;
  p.status = status.data();
  p.claims = claims.data();
  p.row_plans = plans.data();
  // One pool of bytes with two heads, and the same bytes as pairs in one head.
  compact_pages(p, {{first.data(), 1, 2, 24, kSize * kToken, kToken, 24, 1}, {second.data(), 2, 1, 24, 96, 24, 24, 1}},
                nullptr);
  expect(first.read() == want && second.read() == want, in_place ? "compact in place" : "compact to new pages");
  const std::vector<int> old = in_place ? lengths : std::vector<int>(kRows, 0);
  expect(out_lengths.read() == std::vector<int>{kKept, kKept - 1, old[2], old[3], old[4], old[5], old[6]},
         "new lengths");
  expect(status.read()[0] == (kBadIndex | kBadSeqlens | kBadPage | kSharedPage), "status of bad pages");
}

// Packed tokens of four rows with tokens before and after them in their caches; the last one does not fit in its cache.
void test_packed_pages(bool in_place) {
  constexpr int kRows = 4, kWidth = 3, kSize = 4, kBlocks = 24, kKept = 7, kToken = 24;
  const std::vector<unsigned char> before = [] {
    std::vector<unsigned char> bytes(kBlocks * kSize * kToken);
    for (unsigned char& b : bytes) b = static_cast<unsigned char>(generator());
    return bytes;
  }();
  const std::vector<int> bounds = {0, 6, 6, 11, 13}, kept_bounds = {0, 2, 2, 5, 6}, indices = {1, 4, 7, 8, 10, 12, -1};
  const std::vector<int> context = {2, 1, 0, 4}, lengths = {9, 3, 7, 5};
  const std::vector<int> table = {4, 9, 1, 7, 2, 11, 3, 0, 5, 6, 8, 10}, fresh = {12, 13, 14, 15, 16, 17, 18, 19};
  std::vector<unsigned char> want = before;
  std::vector<int> want_lengths;
  std::vector<int64_t> want_slots(kKept, -1);
  for (int row = 0; row < kRows - 1; ++row) {
    std::vector<int> positions;
    for (int t = 0; t < context[row]; ++t) positions.push_back(t);
    for (int j = kept_bounds[row]; j < kept_bounds[row + 1]; ++j) {
      positions.push_back(indices[j] - bounds[row] + context[row]);
    }
    for (int t = context[row] + bounds[row + 1] - bounds[row]; t < lengths[row]; ++t) positions.push_back(t);
    const int count = static_cast<int>(positions.size());
    for (int j = 0; j < count; ++j) {
      const int page = in_place ? table[row * kWidth + j / kSize] : fresh[row * 2 + j / kSize];
      const int from = table[row * kWidth + positions[j] / kSize] * kSize + positions[j] % kSize;
      const int to = page * kSize + j % kSize, listed = j - context[row];
      std::copy_n(&before[from * kToken], kToken, &want[to * kToken]);
      if (listed >= 0 && listed < kept_bounds[row + 1] - kept_bounds[row]) want_slots[kept_bounds[row] + listed] = to;
    }
    want_lengths.push_back(count);
  }
  want_lengths.push_back(in_place ? lengths[kRows - 1] : 0);
  const DeviceArray<unsigned char> pool(before);
  const DeviceArray<int> pages(table), new_pages(fresh), held(lengths), positions(indices), status(1, 0);
  const DeviceArray<int> of_tokens(bounds), of_kept(kept_bounds), places(context);
  const DeviceArray<int> out_lengths(kRows, -7), freed(kRows * kWidth, -7), claims(page_claims(kBlocks, in_place), 0);
  const DeviceArray<int64_t> slots(kKept, -7), plans(page_plans(kRows), 0);
  PagedCompaction p{};
  p.batch = kRows;
  p.blocks = kBlocks;
  p.block_size = kSize;
  p.kept = kKept;
  p.table = {pages.data(), kWidth, kWidth, 1};
  if (!in_place) p.target = {new_pages.data(), 2, 2, 1};
  p.lengths = {held.data(), 1};
  p.indices = {positions.data(), false, 0, 1};
  p.packed = {bounds.back(), {of_tokens.data(), 1}, {of_kept.data(), 1}, {places.data(), 1}};
  p.out_lengths = out_lengths.data();
  p.slots = {slots.data(), true, 0, 1};
  p.freed = freed.data();
  p.freed_batch_stride = kWidth;
  p.status = status.data();
  p.claims = claims.data();
  p.row_plans = plans.data();
  compact_pages(p, {{pool.data(), 1, 1, kToken, kSize * kToken, kToken, kToken, 1}}, nullptr);
  expect(pool.read() == want, in_place ? "packed rows in place" : "packed rows to new pages");
  expect(out_lengths.read() == want_lengths && slots.read() == want_slots, "lengths and slots of packed rows");
  expect(status.read()[0] == (kBadIndex | kBadSeqlens), "status of packed rows");
}

}  // namespace
