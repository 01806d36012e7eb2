// Splits a number of tokens by weight, in integers: the largest remainders round up.
#include <algorithm>
#include <numeric>

#include "vtkernels/cpu_select.h"
#include "weights.h"

namespace vtkernels::cpu {
namespace {

// shares[i] of `total` for the segments `open`, by weight, equal ones where all weigh nothing.
void split(const std::vector<uint32_t>& weights, const std::vector<int64_t>& open, int64_t total,
           std::vector<int64_t>& shares) {
  int64_t whole = 0;
  for (const int64_t i : open) whole += weights[i];
  const bool equal = whole == 0;
  if (equal) whole = static_cast<int64_t>(open.size());
  std::vector<std::pair<int64_t, int64_t>> remainders;  // negated, so that sorting puts the largest first
  int64_t left = total;
  for (const int64_t i : open) {
    const int64_t product = (equal ? 1 : weights[i]) * total;
    shares[i] = product / whole;
    left -= shares[i];
    remainders.emplace_back(-(product % whole), i);
  }
  std::nth_element(remainders.begin(), remainders.begin() + left, remainders.end());
  for (int64_t j = 0; j < left; ++j) ++shares[remainders[j].second];
}

}  // namespace

void allocate_budget(const float* weights, int64_t stride, int64_t segments, int64_t total, int64_t minimum,
                     const int32_t* capacity, int64_t capacity_stride, int32_t* out) {
  const std::vector<uint32_t> integers = integer_weights(weights, stride, segments);
  std::vector<int64_t> least(segments, minimum), room(segments, total), shares(segments), open(segments);
  int64_t rest = total - minimum * segments;
  if (capacity != nullptr) {
    int64_t space = 0;
    rest = total;
    for (int64_t i = 0; i < segments; ++i) {
      const int64_t most = std::max(0, capacity[i * capacity_stride]);
      least[i] = std::min(minimum, most);
      room[i] = most - least[i];
      rest -= least[i];
      space += room[i];
    }
    rest = std::min(rest, space);
  }
  std::iota(open.begin(), open.end(), int64_t{0});
  for (size_t before = segments + 1; open.size() < before;) {
    before = open.size();
    split(integers, open, rest, shares);
    int64_t filled = 0;
    open.erase(std::remove_if(open.begin(), open.end(),
                              [&](int64_t i) {
                                if (shares[i] <= room[i]) return false;
                                shares[i] = room[i];
                                filled += room[i];
                                return true;
                              }),
               open.end());
    rest -= filled;
  }
  for (int64_t i = 0; i < segments; ++i) out[i] = static_cast<int32_t>(least[i] + shares[i]);
}

}  // namespace vtkernels::cpu
