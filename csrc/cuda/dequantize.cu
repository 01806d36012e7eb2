// dequantize_kv in two launches: which row of which class stands for a token, then the values.
#include <vtkernels/cuda/quantize_launch.cuh>

namespace vtkernels::cuda {
namespace {

// An item is a row of a class in one batch row.
__global__ void __launch_bounds__(kQuantizeThreads)
    owners_kernel(const __grid_constant__ QuantizeParams p, int* owner) {
  flag_bad_tokens(p);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kQuantizeThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kQuantizeThreads + threadIdx.x; item < p.items; item += step) {
    const ClassPlan& c = p.class_of(item);
    const int64_t row = (item - c.first_item) % c.of.count, b = (item - c.first_item) / c.of.count;
    const int64_t token = p.token(c, b, row);
    if (token >= 0) atomicMax(owner + b * p.tokens + token, static_cast<int>(c.first_row + row));
  }
}

// The elements at .. at + 4 of a row, each as value(level, i).
template <class Value>
__device__ Four decode_four(const uint8_t* row, int64_t dim_stride, const ClassPlan& c, int64_t at, int64_t width,
                            Value value) {
  const auto part_of = [&](int64_t element) {
    return (element >= c.bytes) + (element >= 2 * c.bytes) + (element >= 3 * c.bytes);
  };
  const unsigned mask = (1u << c.of.bits) - 1;
  Four x{};
  if (c.vector) {
    const int part = part_of(at);
    const unsigned word = arch::load<unsigned>(row + at - part * c.bytes) >> (part * c.of.bits);
#pragma unroll
    for (int i = 0; i < 4; ++i) x.at[i] = value(word >> (8 * i) & mask, i);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (at + i >= width) continue;
      const int part = part_of(at + i);
      x.at[i] = value(row[(at + i - part * c.bytes) * dim_stride] >> (part * c.of.bits) & mask, i);
    }
  }
  return x;
}

// An item is a block of tokens of one head, each restored by `lanes` neighbouring threads.
template <class T>
__global__ void __launch_bounds__(kQuantizeThreads) restore_kernel(const __grid_constant__ QuantizeParams p) {
  const int lane = threadIdx.x % p.lanes, group = threadIdx.x / p.lanes, groups = kQuantizeThreads / p.lanes;
  const int64_t blocks = (p.tokens + kQuantizeRows - 1) / kQuantizeRows;
  const ClassPlan& last = p.classes[p.class_count - 1];
  for (int64_t item = blockIdx.x; item < p.items; item += gridDim.x) {
    const int64_t line = item / blocks, b = line / p.heads, head = line % p.heads;
    const int64_t first = item % blocks * kQuantizeRows;
    const int64_t end = p.tokens < first + kQuantizeRows ? p.tokens : first + kQuantizeRows;
    for (int64_t token = first + group; token < end; token += groups) {
      const int64_t owner = p.owner[b * p.tokens + token];
      const bool found = owner >= p.classes[0].first_row && owner < last.first_row + last.of.count;
      if (!found && !(p.fill && owner < 0)) continue;
      T* key = row_at<T>(p.key, b, head, token);
      T* value = row_at<T>(p.value, b, head, token);
      int at_class = 0;
      while (found && at_class + 1 < p.class_count && owner >= p.classes[at_class + 1].first_row) ++at_class;
      const ClassPlan& c = p.classes[at_class];
      const int64_t row = owner - c.first_row;
      for (int64_t at = 4 * lane; at < p.width; at += 4 * p.lanes) {
        Four k{}, v{};
        if (found) {
          const auto params = [&](const HeadRows& of, int64_t of_row) {
            return load_four(row_at<const float>(of, b, head, of_row), of.dim_stride, at, p.width, c.vector);
          };
          const Four low = params(c.of.key_params, 0), steps = params(c.of.key_params, 1);
          const Four scale = params(c.of.value_scales, 0);
          const float* range = row_at<const float>(c.of.value_params, b, head, row);
          const float least = range[0], step = range[c.of.value_params.dim_stride];
          k = decode_four(row_at<const uint8_t>(c.of.key_codes, b, head, row), c.of.key_codes.dim_stride, c, at,
                          p.width, [&](unsigned level, int i) { return value_of(level, low.at[i], steps.at[i]); });
          v = decode_four(row_at<const uint8_t>(c.of.value_codes, b, head, row), c.of.value_codes.dim_stride, c, at,
                          p.width, [&](unsigned level, int i) { return value_of(level, least, step) * scale.at[i]; });
        }
        store_four(key, at, p.width, p.vector, k);
        store_four(value, at, p.width, p.vector, v);
      }
    }
  }
}

template <class T>
void run_dequantize(const QuantizeProblem& p, int* owners, Stream stream) {
  std::vector<QuantizeParams> all;
  int64_t rows = 0;
  for (const QuantizedClass& c : p.classes) {
    if (all.empty() || all.back().class_count == QuantizeParams::kMaxClasses) {
      all.push_back(params_of(p));
      all.back().owner = owners;
      all.back().fill = all.size() == 1;
    }
    ClassPlan& plan = all.back().classes[all.back().class_count++] = plan_of(p, c);
    plan.vector = plan.vector && in_fours(c.key_params, 4, p, 2) && in_fours(c.value_scales, 4, p, 1);
    plan.first_row = rows;
    rows += c.count;
  }
  if (rows > INT32_MAX) throw std::runtime_error("dequantize_kv: the classes have more than 2^31 - 1 rows");
  check(cudaMemsetAsync(owners, 0xff, sizeof(int) * p.batch * p.tokens, stream));
  for (QuantizeParams& params : all) {
    count_items(params, [&](const ClassPlan& c) { return p.batch * c.of.count; });
    const int64_t blocks = (params.items + kQuantizeThreads - 1) / kQuantizeThreads;
    launch_any(owners_kernel, blocks_with_status(params, blocks), 0, stream, params, owners);
  }
  for (QuantizeParams& params : all) {
    params.items = p.width == 0 ? 0 : p.batch * p.heads * ((p.tokens + kQuantizeRows - 1) / kQuantizeRows);
    launch_any(restore_kernel<T>, std::min(params.items, kMaxQuantizeBlocks), 0, stream, params);
  }
}

}  // namespace

void dequantize_kv(const QuantizeProblem& p, int* owners, Stream stream) {
  switch (p.dtype) {
    case Dtype::kFloat32:
      return run_dequantize<float>(p, owners, stream);
    case Dtype::kFloat16:
      return run_dequantize<Half>(p, owners, stream);
    case Dtype::kBFloat16:
      return run_dequantize<BFloat16>(p, owners, stream);
  }
}

}  // namespace vtkernels::cuda
