// Runs every CUDA kernel against host loops, without any framework: for a machine with a GPU and nvcc alone, for
// compute-sanitizer, and on the tests' CPU shim under the compilers' sanitizers. Arguments: the sections to run, all
// without any. Exit status 0: all equal.
#include <algorithm>
#include <cmath>

#include "attention.h"
#include "device.h"
#include "match.h"
#include "pages.h"
#include "quantize.h"
#include "select.h"
#include "temporal.h"

namespace {

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

void test_scores(Dtype dtype, int64_t rows, int64_t width, int64_t count) {
  const Matrix tokens(rows, width, dtype), prototypes(count, width, dtype);
  const DeviceArray<float> scores(rows, -9);
  const DeviceArray<int> argmax(rows, -9);
  const ScoreProblem problem{dtype, width, {tokens.data, 0, width, 1}, {prototypes.data, count, width, 1, nullptr, 0}};
  prototype_scores(problem, ScoreMetric::kCosine, 1, rows, {scores.data(), 0, 1}, {argmax.data(), false, 0, 1},
                   nullptr);
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
    test_select(37, true, false);
    test_select(600, false, true);
  }
  if (wanted("select-packed")) {
    test_select_packed(40, false);
    test_select_packed(400, true);
  }
  if (wanted("select-ragged")) test_select_ragged(500);
  if (wanted("select-long")) {
    test_select(5000, true, true);
    test_select(40000, false, false);
    test_select_packed(5000, false);
    test_select_packed(5000, true);
    test_select_ragged(20000);
  }
  if (wanted("gather")) test_gather();
  if (wanted("gather-inplace")) test_gather_inplace();
  if (wanted("paged")) {
    test_paged(true);
    test_paged(false);
    test_packed_pages(true);
    test_packed_pages(false);
  }
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    if (wanted("scores")) {
      test_scores(dtype, 33, 130, 70);
      test_scores(dtype, int64_t{64} * multiprocessors, 40, 5);  // enough rows for the large tiles
    }
    if (wanted("attention")) {
      test_attention(dtype, false);
      test_attention(dtype, true);
    }
    if (wanted("match")) {
      test_match(dtype, 50);
      test_match(dtype, int64_t{64} * multiprocessors);  // enough sources for the large tiles
    }
    if (wanted("temporal")) {
      test_temporal(dtype, 70);    // a warp for each token
      test_temporal(dtype, 1400);  // a block
    }
    if (wanted("quantize")) {
      test_quantize(dtype, 32);  // four elements at once
      test_quantize(dtype, 39);
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
