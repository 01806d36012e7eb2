// The CPU kernels without torch, from several threads, against plain loops. Exits non-zero on the first difference.
#include "vtkernels/cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "vtkernels/c_api.h"
#include "vtkernels/key.h"

namespace cpu = vtkernels::cpu;

namespace {

constexpr int64_t kTokens = 1000, kWidth = 300, kPrototypes = 45, kKept = 250;

void expect(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "smoke: %s differs\n", what);
  std::exit(1);
}

std::vector<float> random(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(engine);
  return values;
}

double norm(const float* x) {
  double sum = 0;
  for (int64_t d = 0; d < kWidth; ++d) sum += static_cast<double>(x[d]) * x[d];
  return std::sqrt(sum);
}

void run_on_threads(int64_t count, int64_t, cpu::ParallelBody body, void* context) {
  constexpr int64_t kThreads = 4;
  std::vector<std::thread> pool;
  for (int64_t t = 0; t < kThreads; ++t) {
    pool.emplace_back(body, context, count * t / kThreads, count * (t + 1) / kThreads);
  }
  for (std::thread& t : pool) t.join();
}

}  // namespace

int main() {
  const std::vector<float> tokens = random(kTokens * kWidth, 1), prototypes = random(kPrototypes * kWidth, 2);
  std::vector<float> scores(kTokens), threaded(kTokens);
  for (int32_t isa = 0; isa <= vtk_cpu_supported_isa(); ++isa) {
    vtk_cpu_limit_isa(isa);
    vtk_cpu_prototype_scores(0, tokens.data(), kTokens, kWidth, prototypes.data(), kPrototypes, scores.data());
    for (int64_t n = 0; n < kTokens; ++n) {
      double best = -2;
      for (int64_t p = 0; p < kPrototypes; ++p) {
        double dot = 0;
        for (int64_t d = 0; d < kWidth; ++d) {
          dot += static_cast<double>(tokens[n * kWidth + d]) * prototypes[p * kWidth + d];
        }
        best = std::max(best, dot / norm(&tokens[n * kWidth]) / norm(&prototypes[p * kWidth]));
      }
      expect(std::fabs(best - scores[n]) < 1e-6, "prototype_scores");
    }
    const cpu::ScoreProblem problem{cpu::DType::kFloat32,
                                    {tokens.data(), kWidth, 1},
                                    {prototypes.data(), kWidth, 1},
                                    kWidth,
                                    kPrototypes,
                                    nullptr,
                                    true,
                                    threaded.data(),
                                    {nullptr, false}};
    const cpu::Segment all{0, 0, kTokens, 0};
    cpu::prototype_scores({run_on_threads}, problem, &all, 1);
    expect(threaded == scores, "prototype_scores on four threads");
  }

  std::vector<int64_t> kept(kKept), order(kTokens);
  vtk_cpu_select_topk(scores.data(), kTokens, kKept, 0, kept.data());
  for (int64_t i = 0; i < kTokens; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] < scores[b]; });
  order.resize(kKept);
  std::sort(order.begin(), order.end());
  expect(order == kept, "select_topk");

  std::vector<float> rows(kKept * kWidth);
  expect(vtk_cpu_gather(tokens.data(), kTokens, kWidth * 4, kept.data(), kKept, rows.data()) == 0, "gather status");
  for (int64_t i = 0; i < kKept; ++i) {
    expect(std::equal(&rows[i * kWidth], &rows[i * kWidth] + kWidth, &tokens[kept[i] * kWidth]), "gather");
  }
  kept[3] = kTokens;
  expect(vtk_cpu_gather(tokens.data(), kTokens, kWidth * 4, kept.data(), kKept, rows.data()) == 1, "gather status");
  expect(rows[3 * kWidth] == 0.0f, "a row out of range");
  std::puts("smoke: ok");
  return 0;
}
