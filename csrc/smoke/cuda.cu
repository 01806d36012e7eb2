// Runs every CUDA kernel against host loops, without any framework: for a machine with a GPU and nvcc alone, for
// compute-sanitizer, and on the tests' CPU shim under the compilers' sanitizers. Arguments: the sections to run, all
// without any. Exit status 0: all equal.
#include <vtkernels/cuda/launch.h>
#include <vtkernels/key.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vtkernels/cuda/platform.cuh>

namespace {

using namespace vtkernels;
using namespace vtkernels::cuda;

int failures = 0;

void expect(bool equal, const char* what) {
  std::printf("%s %s\n", equal ? "ok  " : "FAIL", what);
  failures += !equal;
}

// Device memory of exactly the wanted size, so that an overrun leaves it.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    void* p = nullptr;
    check(cudaMalloc(&p, std::max<size_t>(1, size_ * sizeof(T))));
    data_.reset(static_cast<T*>(p));
    check(cudaMemcpy(p, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(size_t size, int poison) : DeviceArray(std::vector<T>(size, static_cast<T>(poison))) {}
  T* data() const { return data_.get(); }
  std::vector<T> read() const {
    check(cudaDeviceSynchronize());
    std::vector<T> values(size_);
    check(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  struct Free {
    void operator()(T* p) const { cudaFree(p); }
  };
  size_t size_;
  std::unique_ptr<T, Free> data_;
};

std::mt19937 generator(7);

// Eighths between -2 and 2: exact in every dtype.
std::vector<float> random_values(int64_t count) {
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(static_cast<int>(generator() % 33) - 16) / 8;
  return values;
}

uint16_t to_bits(float value, Dtype dtype) {
  const uint32_t bits = float_bits(value);
  if (dtype == Dtype::kBFloat16) return static_cast<uint16_t>(bits >> 16);
  if (value == 0) return 0;
  return static_cast<uint16_t>((bits >> 31) << 15 | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff));
}

// A matrix on the device in one of the dtypes.
struct Matrix {
  Matrix(int64_t rows, int64_t width, Dtype dtype)
      : values(random_values(rows * width)),
        single(dtype == Dtype::kFloat32 ? values : std::vector<float>{}),
        half(dtype == Dtype::kFloat32 ? std::vector<uint16_t>{} : halves(values, dtype)),
        data(dtype == Dtype::kFloat32 ? static_cast<const void*>(single.data()) : half.data()) {}

  static std::vector<uint16_t> halves(const std::vector<float>& values, Dtype dtype) {
    std::vector<uint16_t> bits;
    for (const float v : values) bits.push_back(to_bits(v, dtype));
    return bits;
  }

  std::vector<float> values;
  DeviceArray<float> single;
  DeviceArray<uint16_t> half;
  const void* data;
};

double cosine(const float* a, const float* b, int64_t width) {
  double dot = 0, aa = 0, bb = 0;
  for (int64_t i = 0; i < width; ++i) {
    dot += static_cast<double>(a[i]) * b[i];
    aa += static_cast<double>(a[i]) * a[i];
    bb += static_cast<double>(b[i]) * b[i];
  }
  return aa == 0 || bb == 0 ? 0 : dot / std::sqrt(aa) / std::sqrt(bb);
}

bool scores_match(const float* got, const float* tokens, int64_t count, const Matrix& prototypes, int64_t p,
                  int64_t d) {
  for (int64_t n = 0; n < count; ++n) {
    double best = -2;
    for (int64_t m = 0; m < p; ++m) best = std::max(best, cosine(tokens + n * d, &prototypes.values[m * d], d));
    if (!(std::abs(got[n] - best) < 1e-5)) return false;
  }
  return true;
}

std::vector<int64_t> best_positions(const float* scores, int64_t n, int64_t k, bool largest) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return selection_key(scores[a], largest) > selection_key(scores[b], largest);
  });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

void test_select(int64_t n, bool largest) {
  std::vector<float> scores = random_values(2 * n);  // many ties
  scores[3] = NAN;
  const DeviceArray<float> device(scores);
  const int64_t k = n / 4;
  const DeviceArray<int64_t> out(2 * k, -1);
  select_topk({device.data(), n, 1}, 2, n, k, largest, {}, {out.data(), true, k, 1}, nullptr);
  std::vector<int64_t> want = best_positions(scores.data(), n, k, largest);
  const std::vector<int64_t> second = best_positions(scores.data() + n, n, k, largest);
  want.insert(want.end(), second.begin(), second.end());
  expect(out.read() == want, "select_topk");
}

void test_gather() {
  constexpr int64_t kBatch = 2, kHeads = 3, kTokens = 21, kDim = 20;
  const std::vector<int> indices{0, 20, 5, -1, 7, 7, 21, 3};  // [2, 4]
  const std::vector<float> values = random_values(kBatch * kHeads * kTokens * kDim);
  const DeviceArray<float> src(values), hnd(kBatch * kHeads * 4 * kDim, -9), nhd(kBatch * kHeads * 4 * kDim, -9);
  const DeviceArray<int> device_indices(indices), status(1, 0);
  const int64_t h = kTokens * kDim, b = kHeads * h;
  const std::vector<GatherTensor> tensors{
      {src.data(),
       hnd.data(),
       4,
       {kBatch, kHeads, kTokens, kDim},
       {b, h, kDim, 1},
       {kHeads * 4 * kDim, 4 * kDim, kDim, 1},
       0,
       2},
      {src.data(),
       nhd.data(),
       4,
       {kBatch, kTokens, kHeads, kDim},
       {b, kDim, h, 1},
       {4 * kHeads * kDim, kHeads * kDim, kDim, 1},
       0,
       1},
  };
  gather(tensors, {device_indices.data(), false, 4, 1}, kBatch, kTokens, 4, status.data(), nullptr);
  const std::vector<float> got[2] = {hnd.read(), nhd.read()};
  bool equal = true;
  for (int64_t i = 0; i < kBatch * kHeads * 4 * kDim; ++i) {
    const int64_t d = i % kDim, j = i / kDim % 4, head = i / (4 * kDim) % kHeads, row = i / (kHeads * 4 * kDim);
    const int index = indices[row * 4 + j];
    const float want = index < 0 || index >= kTokens ? 0 : values[row * b + head * h + index * kDim + d];
    equal &= got[0][i] == want && got[1][((row * 4 + j) * kHeads + head) * kDim + d] == want;
  }
  expect(equal && status.read()[0] == kBadIndex, "gather");
}

// Heads with indices of their own, rows of one warp and more tokens than a tile.
void test_gather_inplace() {
  constexpr int64_t kHeads = 2, kTokens = 300, kKept = 150, kDim = 32;
  std::vector<int> indices(kHeads * kKept);
  for (int64_t i = 0; i < kHeads * kKept; ++i) indices[i] = static_cast<int>(i % kKept * 2 + i / kKept);
  indices[70] = 60;  // overwritten by then
  const std::vector<float> values = random_values(kHeads * kTokens * kDim);
  const DeviceArray<float> cache(values);
  const DeviceArray<int> device_indices(indices), status(1, 0);
  const std::vector<int64_t> strides{kHeads * kTokens * kDim, kTokens * kDim, kDim, 1};
  GatherTensor tensor{cache.data(), cache.data(), 4, {1, kHeads, kTokens, kDim}, strides, strides, 0, 2, 1};
  IndexView view{device_indices.data(), false, kHeads * kKept, 1};
  view.heads = kHeads;
  view.head_stride = kKept;
  gather_inplace({tensor}, view, 1, kTokens, kKept, status.data(), nullptr);
  const std::vector<float> got = cache.read();
  bool equal = true;
  for (int64_t i = 0; i < kHeads * kTokens * kDim; ++i) {
    const int64_t d = i % kDim, j = i / kDim % kTokens, head = i / kDim / kTokens;
    const int64_t from = j < kKept ? indices[head * kKept + j] : j;
    equal &= got[i] == (from < j ? 0 : values[(head * kTokens + from) * kDim + d]);
  }
  expect(equal && status.read()[0] == kBadIndex, "gather_inplace");
}

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
  const DeviceArray<int64_t> slots(kRows * kKept, -7), plans(2 * kRows, 0);
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

void test_scores(Dtype dtype, int64_t rows, int64_t width, int64_t count) {
  const Matrix tokens(rows, width, dtype), prototypes(count, width, dtype);
  const DeviceArray<float> scores(rows, -9);
  const DeviceArray<int> argmax(rows, -9);
  const ScoreProblem problem{dtype, width, {tokens.data, 0, width, 1}, {prototypes.data, count, width, 1, nullptr, 0}};
  prototype_scores(problem, true, 1, rows, {scores.data(), 0, 1}, {argmax.data(), false, 0, 1}, nullptr);
  const std::vector<float> got = scores.read();
  const std::vector<int> arg = argmax.read();
  bool attained = true;
  for (int64_t n = 0; n < rows; ++n) {
    attained &= arg[n] >= 0 && arg[n] < count &&
                std::abs(cosine(&tokens.values[n * width], &prototypes.values[arg[n] * width], width) - got[n]) < 1e-5;
  }
  expect(scores_match(got.data(), tokens.values.data(), rows, prototypes, count, width) && attained,
         "prototype_scores");
}

// Sequences of 40 and 25 tokens, dense rows alike, spans inside; two calls with one workspace.
void test_prune(Dtype dtype, bool packed) {
  constexpr int64_t kWidth = 72, kCount = 9;
  const std::vector<int> bounds = packed ? std::vector<int>{0, 40, 65} : std::vector<int>{0, 40, 80};
  const std::vector<int> starts{3, 8}, lens = packed ? std::vector<int>{30, 17} : std::vector<int>{30, 30};
  const std::vector<int> kept = packed ? std::vector<int>{11, 4} : std::vector<int>{11, 11};
  const int64_t total = bounds[2];
  const Matrix tokens(total, kWidth, dtype), prototypes(kCount, kWidth, dtype);
  const int64_t out = total - lens[0] - lens[1] + kept[0] + kept[1];
  const DeviceArray<float> scores(packed ? total : 60, -9);
  const DeviceArray<int> indices(out, -9), cu(bounds), k(kept), first(starts), length(lens), out_cu(3, -9);
  const DeviceArray<int> workspace(workspace_size(2), 0), status(1, 0);
  const ScoreProblem score{dtype,
                           kWidth,
                           {tokens.data, packed ? 0 : 40 * kWidth, kWidth, 1},
                           {prototypes.data, kCount, kWidth, 1, nullptr, 0}};
  for (int call = 0; call < 2; ++call) {
    if (packed) {
      PruneVarlen problem{};
      problem.score = score;
      problem.batch = 2;
      problem.tokens = total;
      problem.total_out = out;
      problem.cu_seqlens = {cu.data(), 1};
      problem.k = {k.data(), 1};
      problem.span_starts = {first.data(), 1};
      problem.span_lens = {length.data(), 1};
      problem.scores = {scores.data(), 0, 1};
      problem.indices = {indices.data(), false, 0, 1};
      problem.out_cu_seqlens = out_cu.data();
      problem.out_cu_seqlens_stride = 1;
      problem.workspace = workspace.data();
      problem.status = status.data();
      prune_topk_varlen(problem, nullptr);
    } else {
      PruneDense problem{};
      problem.score = score;
      problem.batch = 2;
      problem.tokens = 40;
      problem.span_len = lens[0];
      problem.k = kept[0];
      problem.span_starts = first.data();
      problem.span_starts_stride = 1;
      problem.scores = {scores.data(), 30, 1};
      problem.indices = {indices.data(), false, out / 2, 1};
      problem.workspace = workspace.data();
      problem.status = status.data();
      prune_topk(problem, nullptr);
    }
    const std::vector<float> got = scores.read();
    std::vector<int> want;
    bool equal = true;
    for (int row = 0; row < 2; ++row) {
      const int begin = bounds[row], span = begin + starts[row];
      const float* row_scores = got.data() + (packed ? span : 30 * row);
      equal &= scores_match(row_scores, &tokens.values[span * kWidth], lens[row], prototypes, kCount, kWidth);
      const int base = packed ? 0 : begin;  // dense positions count from the row
      for (int i = begin; i < span; ++i) want.push_back(i - base);
      for (const int64_t i : best_positions(row_scores, lens[row], kept[row], false)) {
        want.push_back(span - base + static_cast<int>(i));
      }
      for (int i = span + lens[row]; i < bounds[row + 1]; ++i) want.push_back(i - base);
    }
    expect(equal && indices.read() == want, packed ? "prune_topk_varlen" : "prune_topk");
  }
  const std::vector<int> left = workspace.read();
  expect(std::count(left.begin(), left.end(), 0) == static_cast<int64_t>(left.size()) && status.read()[0] == 0,
         "workspace left zeroed");
}

void run(const std::vector<std::string>& sections) {
  const auto wanted = [&](const char* name) {
    return sections.empty() || std::find(sections.begin(), sections.end(), name) != sections.end();
  };
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  if (wanted("select")) {
    test_select(37, true);
    test_select(600, false);
  }
  if (wanted("select-long")) {
    test_select(5000, true);
    test_select(40000, false);
  }
  if (wanted("gather")) test_gather();
  if (wanted("gather-inplace")) test_gather_inplace();
  if (wanted("paged")) {
    test_paged(true);
    test_paged(false);
  }
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    if (wanted("scores")) {
      test_scores(dtype, 33, 130, 70);
      test_scores(dtype, int64_t{64} * multiprocessors, 40, 5);  // enough rows for the large tiles
    }
    if (wanted("prune")) test_prune(dtype, false);
    if (wanted("prune-varlen")) test_prune(dtype, true);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run({argv + 1, argv + argc});
  } catch (const std::runtime_error& error) {
    expect(false, error.what());
  }
  std::printf("smoke: %s\n", failures == 0 ? "ok" : "FAILED");
  return failures != 0;
}
