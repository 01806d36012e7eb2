// Scores a tile of tokens against all prototypes: the maximum similarity and the lowest prototype that attains it.
//
// One thread block keeps the running maxima of kRows tokens and streams chunks of 128 bytes of every row, prototypes in
// tiles of kProtos, through a ring of stages in shared memory. No token-by-prototype matrix leaves the registers. Sums
// run in the same order in every shape, so a token's score does not depend on its neighbours or on the shape chosen.
#pragma once

#include <vtkernels/cuda/launch.h>

#include <cfloat>
#include <cmath>
#include <vtkernels/cuda/arch.cuh>

namespace vtkernels::cuda {

__device__ inline float reciprocal_norm(float squares) {
  if (squares < FLT_MIN) return 0.0f;
  return squares <= FLT_MAX ? 1.0f / sqrtf(squares) : NAN;  // NaN squares too
}

// Strided fp32, fp16 or bf16 rows. `vectors`: rows are contiguous and start on 16-byte boundaries.
struct ScoreSource {
  const void* data;
  int64_t dim_stride;
  bool vectors;
};

struct ScoreParams {
  int64_t width;
  ScoreSource tokens;
  int64_t token_batch_stride, token_stride;
  ScoreSource prototypes;
  int64_t prototype_stride, prototype_count;
  const float* rnorm;  // null: computed from the prototypes
  int64_t rnorm_stride;
  bool cosine, l2;  // neither: the inner product
};

// kRowWarps warps stand along the tokens, 16 rows each; the rest along the prototypes.
template <class T, int kRowWarps>
struct ScoreTile {
  using Element = T;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kProtos = 64;
  static constexpr int kWarpProtos = kProtos / (kWarps / kRowWarps);
  static constexpr int kStages = kRowWarps == 1 ? 4 : 2;
  static constexpr int kUnits = 8;  // of 16 bytes in the chunk of a row
  static constexpr int kUnitElements = 16 / sizeof(T);
  static constexpr int kChunk = kUnits * kUnitElements;
  static constexpr int kPitch = 16 * kUnits + 16;  // padded, so that eight rows fall into different banks
  static constexpr int kRowsPerPass = kThreads / kUnits;
  static constexpr bool kMma = arch::has_mma<T>();
  static constexpr int kThreadRows = kMma ? 2 : 4;
  static constexpr int kThreadProtos = 16 * kWarpProtos / 32 / kThreadRows;

  struct Stage {
    unsigned char tokens[kRows][kPitch];
    unsigned char prototypes[kProtos][kPitch];
  };

  struct Shared {
    Stage stages[kStages];
    int64_t row_offset[kRows];  // elements from the first token; negative: no token, nothing is read
    unsigned long long best[kRows];
    float prototype_scale[kProtos];  // half of its square where l2
    float token_scale[kRows];        // its square where l2

    // Valid once `run` has returned.
    __device__ float score(int row, bool l2 = false) const {
      const auto key = static_cast<int32_t>(static_cast<uint32_t>(best[row] >> 32) ^ 0x80000000u);
      const float similarity = max_key_value(key);
      if (!l2) return similarity * token_scale[row] + 0.0f;  // -0 becomes +0
      const float distance = 2.0f * similarity - token_scale[row];
      return distance > 0.0f ? 0.0f : distance + 0.0f;
    }
    __device__ int64_t argmax(int row) const { return ~static_cast<uint32_t>(best[row]); }
  };

  // row_offset must be filled. The whole block takes part, and is in step when this returns.
  __device__ static void run(Shared& s, const ScoreParams& p) {
    const int64_t chunks = p.width > kChunk ? (p.width + kChunk - 1) / kChunk : 1;
    const int64_t steps = (p.prototype_count + kProtos - 1) / kProtos * chunks;
    const bool token_squared = p.cosine || p.l2;
    const bool prototype_squared = p.l2 || (p.cosine && p.rnorm == nullptr);
    for (int row = threadIdx.x; row < kRows; row += kThreads) {
      s.best[row] = 0;
      s.token_scale[row] = 1.0f;
    }
    __syncthreads();

    Position loading{0, 0}, current{0, 0};
    for (int step = 0; step < kStages - 1; ++step) {
      if (step < steps) load(s.stages[step], s, p, loading);
      arch::copy_async_commit();
      loading.advance(chunks);
    }
    float sums[kThreadRows][kThreadProtos] = {};
    float token_squares[(kRows + kRowsPerPass - 1) / kRowsPerPass] = {};
    float prototype_squares[kProtos / kRowsPerPass] = {};
    unsigned long long best[kThreadRows] = {};
    int stage = 0;
    for (int64_t step = 0; step < steps; ++step) {
      arch::copy_async_wait<kStages - 2>();
      __syncthreads();
      if (step + kStages - 1 < steps) load(s.stages[stage == 0 ? kStages - 1 : stage - 1], s, p, loading);
      arch::copy_async_commit();
      loading.advance(chunks);

      add_products(s.stages[stage], sums);
      if (token_squared && current.first_prototype == 0) add_squares<kRows>(s.stages[stage].tokens, token_squares);
      if (prototype_squared) add_squares<kProtos>(s.stages[stage].prototypes, prototype_squares);
      if (current.chunk == chunks - 1) {
        scale_prototypes(s, p, current.first_prototype, prototype_squared, prototype_squares);
        __syncthreads();
        update_best(s, p, current.first_prototype, sums, best);
      }
      current.advance(chunks);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }

#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) atomicMax(&s.best[thread_row(i)], best[i]);
    if (token_squared) {
      finish_squares<kRows>(token_squares, [&](int row, float squares) {
        s.token_scale[row] = p.l2 ? squares : reciprocal_norm(squares);
      });
    }
    __syncthreads();
  }

 protected:
  struct Position {
    int64_t first_prototype, chunk;
    __device__ void advance(int64_t chunks) {
      if (++chunk == chunks) {
        chunk = 0;
        first_prototype += kProtos;
      }
    }
  };

  // Where the accumulators of a thread lie in the tile: as the tensor cores place them, or 4 x 8 lanes side by side.
  __device__ static int thread_row(int i) {
    const int lane = threadIdx.x % 32;
    return threadIdx.x / 32 % kRowWarps * 16 + (kMma ? lane / 4 + 8 * i : lane / 8 + 4 * i);
  }
  __device__ static int thread_prototype(int j) {
    const int lane = threadIdx.x % 32;
    return threadIdx.x / 32 / kRowWarps * kWarpProtos + (kMma ? j / 2 * 8 + lane % 4 * 2 + j % 2 : lane % 8 + 8 * j);
  }

  __device__ static void load(Stage& stage, const Shared& s, const ScoreParams& p, const Position& at) {
    const int unit = threadIdx.x % kUnits;
    const int64_t first = at.chunk * kChunk + unit * kUnitElements;
    const int64_t left = p.width - first;
    const int elements = left <= 0 ? 0 : left < kUnitElements ? static_cast<int>(left) : kUnitElements;
    for (int row = threadIdx.x / kUnits; row < kRows; row += kRowsPerPass) {
      const int64_t offset = s.row_offset[row];
      load_unit(&stage.tokens[row][16 * unit], p.tokens, offset, first, offset < 0 ? 0 : elements);
    }
    for (int row = threadIdx.x / kUnits; row < kProtos; row += kRowsPerPass) {
      const int64_t prototype = at.first_prototype + row;
      load_unit(&stage.prototypes[row][16 * unit], p.prototypes, prototype * p.prototype_stride, first,
                prototype < p.prototype_count ? elements : 0);
    }
  }

  __device__ static void load_unit(void* to, const ScoreSource& source, int64_t row_offset, int64_t first,
                                   int elements) {
    const T* data = static_cast<const T*>(source.data);
    if (source.vectors) {
      const int bytes = elements * static_cast<int>(sizeof(T));
      arch::copy_async(to, elements > 0 ? data + row_offset + first : data, bytes);
    } else {
#pragma unroll
      for (int i = 0; i < kUnitElements; ++i) {
        static_cast<T*>(to)[i] = i < elements ? data[row_offset + (first + i) * source.dim_stride] : T{};
      }
    }
  }

  // Each chunk is summed from zero and then added: tensor cores truncate, and short sums keep that out of the total.
  __device__ static void add_products(const Stage& stage, float (&sums)[kThreadRows][kThreadProtos]) {
    float part[kThreadRows][kThreadProtos] = {};
    if constexpr (kMma) {
      const int lane = threadIdx.x % 32;
      const unsigned char* tokens = stage.tokens[thread_row(0)];
      const unsigned char* prototypes = stage.prototypes[threadIdx.x / 32 / kRowWarps * kWarpProtos + lane / 4];
#pragma unroll
      for (int block = 0; block < kUnits / 4; ++block) {
        // A lane loads 16 consecutive bytes of a row, operands for two products of depth 16. This reorders the
        // elements within 32, tokens and prototypes alike.
        const int at = 64 * block + lane % 4 * 16;
        const uint4 low = arch::load<uint4>(tokens + at), high = arch::load<uint4>(tokens + 8 * kPitch + at);
        const unsigned left[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
        for (int j = 0; j < kThreadProtos; j += 2) {
          const uint4 unit = arch::load<uint4>(prototypes + j / 2 * 8 * kPitch + at);
          const unsigned right[2][2] = {{unit.x, unit.y}, {unit.z, unit.w}};
          float c[4] = {part[0][j], part[0][j + 1], part[1][j], part[1][j + 1]};
          arch::mma<T>(c, left[0], right[0]);
          arch::mma<T>(c, left[1], right[1]);
          part[0][j] = c[0];
          part[0][j + 1] = c[1];
          part[1][j] = c[2];
          part[1][j + 1] = c[3];
        }
      }
    } else {
#pragma unroll 1
      for (int unit = 0; unit < kUnits; ++unit) {
        float left[kThreadRows][kUnitElements];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          arch::unpack<T>(arch::load<uint4>(&stage.tokens[thread_row(i)][16 * unit]), left[i]);
        }
#pragma unroll
        for (int j = 0; j < kThreadProtos; ++j) {
          float right[kUnitElements];
          arch::unpack<T>(arch::load<uint4>(&stage.prototypes[thread_prototype(j)][16 * unit]), right);
#pragma unroll
          for (int e = 0; e < kUnitElements; ++e) {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) part[i][j] = fmaf(left[i][e], right[e], part[i][j]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < kThreadProtos; ++j) sums[i][j] += part[i][j];
    }
  }

  // Eight lanes share a row, one unit each.
  template <int kCount>
  __device__ static void add_squares(const unsigned char (&rows)[kCount][kPitch],
                                     float (&squares)[(kCount + kRowsPerPass - 1) / kRowsPerPass]) {
#pragma unroll
    for (int pass = 0; pass < (kCount + kRowsPerPass - 1) / kRowsPerPass; ++pass) {
      const int row = threadIdx.x / kUnits + pass * kRowsPerPass;
      if (row >= kCount) continue;
      float values[kUnitElements];
      arch::unpack<T>(arch::load<uint4>(&rows[row][threadIdx.x % kUnits * 16]), values);
      float part = 0.0f;
#pragma unroll
      for (int e = 0; e < kUnitElements; ++e) part = fmaf(values[e], values[e], part);
      squares[pass] += part;
    }
  }

  // Calls finish(row, sum) once per row and clears the sums.
  template <int kCount, class Finish>
  __device__ static void finish_squares(float (&squares)[(kCount + kRowsPerPass - 1) / kRowsPerPass], Finish finish) {
#pragma unroll
    for (int pass = 0; pass < (kCount + kRowsPerPass - 1) / kRowsPerPass; ++pass) {
      float sum = squares[pass];
#pragma unroll
      for (int distance = kUnits / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kFullWarp, sum, distance);
      squares[pass] = 0.0f;
      const int row = threadIdx.x / kUnits + pass * kRowsPerPass;
      if (threadIdx.x % kUnits == 0 && row < kCount) finish(row, sum);
    }
  }

  __device__ static void scale_prototypes(Shared& s, const ScoreParams& p, int64_t first, bool computed,
                                          float (&squares)[kProtos / kRowsPerPass]) {
    if (computed) {
      finish_squares<kProtos>(
          squares, [&](int row, float sum) { s.prototype_scale[row] = p.l2 ? 0.5f * sum : reciprocal_norm(sum); });
    } else if (threadIdx.x < kProtos) {
      const int64_t prototype = first + threadIdx.x;
      const bool given = p.cosine && prototype < p.prototype_count;
      s.prototype_scale[threadIdx.x] = given ? p.rnorm[prototype * p.rnorm_stride] : 1.0f;
    }
  }

  // The best similarity as one integer: its order first, then the inverted prototype. NaN is above everything.
  __device__ static void update_best(const Shared& s, const ScoreParams& p, int64_t first,
                                     float (&sums)[kThreadRows][kThreadProtos],
                                     unsigned long long (&best)[kThreadRows]) {
#pragma unroll
    for (int j = 0; j < kThreadProtos; ++j) {
      const int64_t prototype = first + thread_prototype(j);
      const float scale = s.prototype_scale[thread_prototype(j)];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const float similarity = p.l2 ? sums[i][j] - scale : sums[i][j] * scale;
        const uint32_t order = static_cast<uint32_t>(max_key(similarity)) ^ 0x80000000u;
        const unsigned long long candidate =
            static_cast<unsigned long long>(order) << 32 | ~static_cast<uint32_t>(prototype);
        if (prototype < p.prototype_count && candidate > best[i]) best[i] = candidate;
        sums[i][j] = 0.0f;
      }
    }
  }
};

}  // namespace vtkernels::cuda
