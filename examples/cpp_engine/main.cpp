// The engine in a process without Python: the schemas of the ops are compiled in, the kernels come with the native
// library. Checks itself against attention over the kept tokens, and exits non-zero where they differ.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <cstdio>
#include <cstdlib>

#include "engine.h"

namespace {

constexpr int64_t kLayers = 3, kHeads = 2, kHeadDim = 32, kWidth = 96, kText = 7;

const char* const kSchemas[] = {
#include "schemas.inc"
};

void expect(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "cpp_engine: %s is wrong\n", what);
  std::exit(1);
}

struct Prompt {
  at::Tensor hidden, keys, values;  // [N, D], K and V [layers, N, heads, head_dim]
  int64_t visual;
};

Prompt make_prompt(int64_t visual) {
  const int64_t n = kText + visual + kText;
  return {at::randn({n, kWidth}), at::randn({kLayers, n, kHeads, kHeadDim}), at::randn({kLayers, n, kHeads, kHeadDim}),
          visual};
}

// A decode step of the engine against attention over `kept` tokens of the prompt and the new one.
void check_decode(engine::Engine& engine, int64_t id, const Prompt& prompt, const at::Tensor& kept) {
  const at::Tensor query = at::randn({kLayers, 2 * kHeads, kHeadDim});
  const at::Tensor key = at::randn({kLayers, kHeads, kHeadDim}), value = at::randn({kLayers, kHeads, kHeadDim});
  const auto held = [&](const at::Tensor& rows, const at::Tensor& last) {
    return at::cat({rows.index_select(1, kept), last.unsqueeze(1)}, 1).transpose(1, 2);
  };
  const at::Tensor want = at::scaled_dot_product_attention(query.unsqueeze(2), held(prompt.keys, key),
                                                           held(prompt.values, value), {}, 0.0, false, std::nullopt,
                                                           /*enable_gqa=*/true)
                              .squeeze(2);
  const at::Tensor got = engine.decode(id, query, key, value);
  expect(got.allclose(want, 1e-5, 1e-5), "attention over the kept tokens");
}

}  // namespace

int main() {
  std::vector<c10::RegistrationHandleRAII> defined;
  for (const char* schema : kSchemas) {
    defined.push_back(c10::Dispatcher::singleton().registerDef(torch::jit::parseSchema(schema), "cpp_engine"));
  }
  engine::Engine engine({kLayers, 12, 8, kHeads, kHeadDim, 2, 256}, at::randn({16, kWidth}));
  const Prompt first = make_prompt(64), second = make_prompt(40);

  const int64_t a = engine.admit(first.keys, first.values, kText, first.visual);
  expect(engine.free_pages() == 2, "the number of free pages");
  bool refused = false;
  try {
    engine.admit(second.keys, second.values, kText, second.visual);
  } catch (const engine::OutOfPages&) {
    refused = true;
  }
  expect(refused, "admission without free pages");

  at::Tensor kept = std::get<1>(engine.prune({a}, first.hidden, {16})).clone();
  expect(engine.length(a) == 30 && engine.free_pages() == 8, "what pruning frees");
  const int64_t b = engine.admit(second.keys, second.values, kText, second.visual);
  check_decode(engine, a, first, kept);
  kept = std::get<1>(engine.prune({b}, second.hidden, {10})).clone();
  check_decode(engine, b, second, kept);
  engine.release(a);
  engine.release(b);
  expect(engine.free_pages() == 12, "the number of free pages at the end");
  std::puts("cpp_engine: ok");
  return 0;
}
