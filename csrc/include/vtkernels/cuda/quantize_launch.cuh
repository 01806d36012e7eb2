// Host side of quantize_kv and dequantize_kv: the parameters of their kernels.
#pragma once

#include <algorithm>
#include <vtkernels/cuda/quantize.cuh>

namespace vtkernels::cuda {

constexpr int64_t kMaxQuantizeBlocks = 1 << 20;

// Threads that share a row of so many units: a power of two, a warp at most.
inline int lanes_for(int64_t units) {
  int lanes = 1;
  while (lanes < 32 && lanes < units) lanes *= 2;
  return lanes;
}

// Whether four elements of `size` bytes can be moved at once, wherever a row begins.
inline bool in_fours(const HeadRows& rows, int64_t size, const QuantizeProblem& p, int64_t count) {
  return rows.dim_stride == 1 && reinterpret_cast<uintptr_t>(rows.data) % (4 * size) == 0 &&
         (p.batch <= 1 || rows.batch_stride % 4 == 0) && (p.heads <= 1 || rows.head_stride % 4 == 0) &&
         (count <= 1 || rows.row_stride % 4 == 0);
}

inline QuantizeParams params_of(const QuantizeProblem& p) {
  QuantizeParams params{};
  params.batch = p.batch;
  params.heads = p.heads;
  params.tokens = p.tokens;
  params.width = p.width;
  params.key = p.key;
  params.value = p.value;
  params.status = p.status;
  params.lanes = lanes_for((p.width + 3) / 4);
  const int64_t size = p.dtype == Dtype::kFloat32 ? 4 : 2;
  params.vector = p.width % 4 == 0 && in_fours(p.key, size, p, p.tokens) && in_fours(p.value, size, p, p.tokens);
  return params;
}

inline ClassPlan plan_of(const QuantizeProblem& p, const QuantizedClass& c) {
  ClassPlan plan{};
  plan.of = c;
  plan.bytes = (p.width * c.bits + 7) / 8;
  plan.lanes = lanes_for((plan.bytes + 3) / 4);
  plan.vector = plan.bytes % 4 == 0 && plan.bytes * 8 == p.width * c.bits && in_fours(c.key_codes, 1, p, c.count) &&
                in_fours(c.value_codes, 1, p, c.count);
  return plan;
}

// Lays the items of all classes out one after the other.
template <class Items>
void count_items(QuantizeParams& params, Items items_of) {
  params.items = 0;
  for (int i = 0; i < params.class_count; ++i) {
    params.classes[i].first_item = params.items;
    params.items += items_of(params.classes[i]);
  }
}

// Blocks enough for the positions too, which are checked where a status is wanted.
inline int64_t blocks_with_status(const QuantizeParams& params, int64_t blocks) {
  for (int i = 0; i < params.class_count && params.status != nullptr; ++i) {
    const int64_t positions = params.batch * params.classes[i].of.count;
    blocks = std::max(blocks, (positions + kQuantizeThreads - 1) / kQuantizeThreads);
  }
  return std::min(blocks, kMaxQuantizeBlocks);
}

template <class Kernel, class... Params>
void launch_any(Kernel* kernel, int64_t blocks, size_t shared_bytes, Stream stream, const Params&... params) {
  if (blocks > 0) launch(kernel, blocks, kQuantizeThreads, shared_bytes, stream, params...);
}

}  // namespace vtkernels::cuda
