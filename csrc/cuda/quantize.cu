// quantize_kv in three launches for all classes: what each chunk of rows has seen of the channels, their ranges, the
// codes.
#include <vtkernels/cuda/quantize_launch.cuh>

namespace vtkernels::cuda {
namespace {

struct ChannelsShared {
  float low[4][kQuantizeThreads], high[4][kQuantizeThreads], largest[4][kQuantizeThreads];
};

// An item is a chunk of rows of one head, in a tile of its channels.
template <class T>
__global__ void __launch_bounds__(kQuantizeThreads) channels_kernel(const __grid_constant__ QuantizeParams p) {
  flag_bad_tokens(p);
  auto& s = shared_memory<ChannelsShared>();
  const int lane = threadIdx.x % p.lanes, group = threadIdx.x / p.lanes, groups = kQuantizeThreads / p.lanes;
  const int tile = 4 * p.lanes;
  const int64_t tiles = (p.width + tile - 1) / tile;
  for (int64_t item = blockIdx.x; item < p.items; item += gridDim.x) {
    const ClassPlan& c = p.class_of(item);
    const int64_t in_class = item - c.first_item, chunk = in_class / tiles % c.chunks;
    const int64_t line = in_class / tiles / c.chunks, b = line / p.heads, head = line % p.heads;
    const int64_t first = in_class % tiles * tile, at = first + 4 * lane;
    const int64_t last_row = c.of.count < (chunk + 1) * kChunkRows ? c.of.count : (chunk + 1) * kChunkRows;
    Range keys[4];
    float largest[4] = {};
    for (int64_t row = chunk * kChunkRows + group; row < last_row; row += groups) {
      const int64_t token = p.token(c, b, row);
      if (token < 0 || at >= p.width) continue;
      const Four k = load_four(row_at<const T>(p.key, b, head, token), p.key.dim_stride, at, p.width, p.vector);
      const Four v = load_four(row_at<const T>(p.value, b, head, token), p.value.dim_stride, at, p.width, p.vector);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        keys[i].see(k.at[i]);
        const float size = fabsf(v.at[i]);
        if (size <= FLT_MAX && size > largest[i]) largest[i] = size;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s.low[i][threadIdx.x] = keys[i].low;
      s.high[i][threadIdx.x] = keys[i].high;
      s.largest[i][threadIdx.x] = largest[i];
    }
    __syncthreads();
    const int channel = threadIdx.x;
    if (channel < tile && first + channel < p.width) {
      Range all;
      float size = 0.0f;
      for (int g = 0; g < groups; ++g) {
        const int from = g * p.lanes + channel / 4;
        all.widen(s.low[channel % 4][from], s.high[channel % 4][from]);
        size = s.largest[channel % 4][from] > size ? s.largest[channel % 4][from] : size;
      }
      float* seen = c.seen + (line * c.chunks + chunk) * 3 * p.width + first + channel;
      seen[0] = all.low;
      seen[p.width] = all.high;
      seen[2 * p.width] = size;
    }
    __syncthreads();
  }
}

// An item is a channel. Its smallest value, the inverse of its step and its scale replace what the first chunk saw.
__global__ void __launch_bounds__(kQuantizeThreads) ranges_kernel(const __grid_constant__ QuantizeParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kQuantizeThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kQuantizeThreads + threadIdx.x; item < p.items; item += step) {
    const ClassPlan& c = p.class_of(item);
    const int64_t channel = (item - c.first_item) % p.width, line = (item - c.first_item) / p.width;
    const int64_t b = line / p.heads, head = line % p.heads;
    float* seen = c.seen + line * c.chunks * 3 * p.width + channel;
    Range all;
    float size = 0.0f;
    for (int64_t chunk = 0; chunk < c.chunks; ++chunk) {
      const float* part = seen + chunk * 3 * p.width;
      all.widen(part[0], part[p.width]);
      size = part[2 * p.width] > size ? part[2 * p.width] : size;
    }
    const Steps steps = steps_of(all, static_cast<float>((1 << c.of.bits) - 1));
    const float scale = size == 0.0f ? 1.0f : sqrtf(size);
    row_at<float>(c.of.key_params, b, head, 0)[channel] = steps.low;
    row_at<float>(c.of.key_params, b, head, 1)[channel] = steps.step;
    row_at<float>(c.of.value_scales, b, head, 0)[channel] = scale;
    seen[0] = steps.low;
    seen[p.width] = steps.inverse;
    seen[2 * p.width] = scale;
  }
}

// Rows of one head, each by `lanes` neighbouring threads. Byte i of a row holds the elements i, i + bytes, ..
template <class T, int kBits>
__device__ void encode_rows(const QuantizeParams& p, const ClassPlan& c, int64_t line, int64_t first_row) {
  constexpr int kParts = 8 / kBits;
  constexpr float kMost = (1 << kBits) - 1;
  const int lane = threadIdx.x % c.lanes, group = threadIdx.x / c.lanes, groups = kQuantizeThreads / c.lanes;
  const int64_t b = line / p.heads, head = line % p.heads;
  const int64_t last_row = c.of.count < first_row + kQuantizeRows ? c.of.count : first_row + kQuantizeRows;
  const float* low = c.seen + line * c.chunks * 3 * p.width;
  const float *inverse = low + p.width, *scale = inverse + p.width;
  for (int64_t first = first_row; first < last_row; first += groups) {
    const int64_t row = first + group;
    const int64_t token = row < last_row ? p.token(c, b, row) : -1;
    const T* key = row_at<const T>(p.key, b, head, token < 0 ? 0 : token);
    const T* value = row_at<const T>(p.value, b, head, token < 0 ? 0 : token);
    const auto scaled = [&](int64_t at) {
      Four v = load_four(value, p.value.dim_stride, at, p.width, c.vector);
      const Four by = load_four(scale, 1, at, p.width, c.vector);
#pragma unroll
      for (int i = 0; i < 4; ++i) v.at[i] = v.at[i] / by.at[i];
      return v;
    };
    Range range;
    for (int64_t byte = 4 * lane; byte < c.bytes && row < last_row; byte += 4 * c.lanes) {
      unsigned word = 0;
      for (int part = 0; part < kParts && token >= 0; ++part) {
        const int64_t at = part * c.bytes + byte;
        const Four k = load_four(key, p.key.dim_stride, at, p.width, c.vector);
        const Four least = load_four(low, 1, at, p.width, c.vector), by = load_four(inverse, 1, at, p.width, c.vector);
        const Four v = scaled(at);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (at + i >= p.width) continue;
          word |= level_of(k.at[i], least.at[i], by.at[i], kMost) << (8 * i + part * kBits);
          range.see(v.at[i]);
        }
      }
      store_bytes(row_at<uint8_t>(c.of.key_codes, b, head, row), byte, c.bytes, c.vector, word);
    }
    for (int distance = c.lanes / 2; distance > 0; distance /= 2) {
      const float least = __shfl_xor_sync(kFullWarp, range.low, distance);
      range.widen(least, __shfl_xor_sync(kFullWarp, range.high, distance));
    }
    if (row >= last_row) continue;  // every group of the block takes part in the same number of shuffles
    const Steps steps = steps_of(range, kMost);
    if (lane == 0) {
      float* params = row_at<float>(c.of.value_params, b, head, row);
      params[0] = steps.low;
      params[1] = steps.step;
    }
    for (int64_t byte = 4 * lane; byte < c.bytes; byte += 4 * c.lanes) {
      unsigned word = 0;
      for (int part = 0; part < kParts && token >= 0; ++part) {
        const int64_t at = part * c.bytes + byte;
        const Four v = scaled(at);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (at + i >= p.width) continue;
          word |= level_of(v.at[i], steps.low, steps.inverse, kMost) << (8 * i + part * kBits);
        }
      }
      store_bytes(row_at<uint8_t>(c.of.value_codes, b, head, row), byte, c.bytes, c.vector, word);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kQuantizeThreads) codes_kernel(const __grid_constant__ QuantizeParams p) {
  for (int64_t item = blockIdx.x; item < p.items; item += gridDim.x) {
    const ClassPlan& c = p.class_of(item);
    const int64_t blocks = (c.of.count + kQuantizeRows - 1) / kQuantizeRows;
    const int64_t line = (item - c.first_item) / blocks, first_row = (item - c.first_item) % blocks * kQuantizeRows;
    switch (c.of.bits) {
      case 8:
        encode_rows<T, 8>(p, c, line, first_row);
        break;
      case 4:
        encode_rows<T, 4>(p, c, line, first_row);
        break;
      default:
        encode_rows<T, 2>(p, c, line, first_row);
    }
  }
}

int64_t chunks_of(const QuantizedClass& c) { return std::max<int64_t>(1, (c.count + kChunkRows - 1) / kChunkRows); }

template <class T>
void run_quantize(const QuantizeProblem& p, float* scratch, Stream stream) {
  const int64_t lines = p.batch * p.heads;
  for (size_t next = 0; next < p.classes.size();) {
    QuantizeParams params = params_of(p);
    for (; next < p.classes.size() && params.class_count < QuantizeParams::kMaxClasses; ++next) {
      ClassPlan& plan = params.classes[params.class_count++] = plan_of(p, p.classes[next]);
      plan.chunks = chunks_of(plan.of);
      plan.seen = scratch;
      plan.vector = plan.vector && params.vector && reinterpret_cast<uintptr_t>(scratch) % 16 == 0;
      scratch += lines * plan.chunks * 3 * p.width;
    }
    const int64_t tile = 4 * params.lanes, tiles = (p.width + tile - 1) / tile;
    count_items(params, [&](const ClassPlan& c) { return lines * c.chunks * tiles; });
    launch_any(channels_kernel<T>, blocks_with_status(params, params.items), sizeof(ChannelsShared), stream, params);
    count_items(params, [&](const ClassPlan&) { return lines * p.width; });
    launch_any(ranges_kernel, std::min((params.items + kQuantizeThreads - 1) / kQuantizeThreads, kMaxQuantizeBlocks), 0,
               stream, params);
    count_items(params, [&](const ClassPlan& c) { return lines * ((c.of.count + kQuantizeRows - 1) / kQuantizeRows); });
    launch_any(codes_kernel<T>, std::min(params.items, kMaxQuantizeBlocks), 0, stream, params);
  }
}

}  // namespace

int64_t quantize_scratch(const QuantizeProblem& p) {
  int64_t words = 0;
  for (const QuantizedClass& c : p.classes) words += p.batch * p.heads * chunks_of(c) * 3 * p.width;
  return words;
}

void quantize_kv(const QuantizeProblem& p, float* scratch, Stream stream) {
  switch (p.dtype) {
    case Dtype::kFloat32:
      return run_quantize<float>(p, scratch, stream);
    case Dtype::kFloat16:
      return run_quantize<Half>(p, scratch, stream);
    case Dtype::kBFloat16:
      return run_quantize<BFloat16>(p, scratch, stream);
  }
}

}  // namespace vtkernels::cuda
