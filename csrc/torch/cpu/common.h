// What the registration files of the CPU ops share: torch's thread pool, checks, and tensors in the kernels' terms.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../box.h"
#include "../tensor.h"
#include "vtkernels/cpu.h"

namespace vtkernels {

using cpu::IndexOut;
using cpu::Indices;
using cpu::Matrix;
using cpu::Parallel;
using cpu::RowCopy;
using cpu::ScoreProblem;
using cpu::Segment;
using Tensors = std::vector<Tensor>;

constexpr int32_t kBadIndex = 1, kBadSpan = 2, kBadSeqlens = 4, kTruncated = 8;

inline int32_t cpu_type() {
  static const int32_t type = aoti_torch_device_type_cpu();
  return type;
}

inline Tensor empty_cpu(Shape shape, int32_t dtype) { return empty(shape, dtype, cpu_type(), 0); }

inline Parallel torch_pool() {
  return {[](int64_t count, int64_t grain, cpu::ParallelBody body, void* context) {
    torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
  }};
}

inline cpu::DType float_dtype(const char* op, const char* arg, int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return cpu::DType::kFloat32;
  if (dtype == aoti_torch_dtype_float16()) return cpu::DType::kFloat16;
  VTK_CHECK(dtype == aoti_torch_dtype_bfloat16(), op, arg, dtype_name(dtype), "float32, float16, bfloat16");
  return cpu::DType::kBFloat16;
}

inline IndexOut index_out(const Tensor& t) {
  const View v(t);
  return {v.mutable_data(), v.dtype == aoti_torch_dtype_int64()};
}

inline int64_t token_dim(const char* op, const std::string& layout) {
  VTK_CHECK(layout == "HND" || layout == "NHD", op, "kv_layout", "'" + layout + "'", "'HND' or 'NHD'");
  return layout == "HND" ? 2 : 1;
}

inline void set_status(const std::optional<Tensor>& status, int32_t bits) {
  if (status.has_value() && bits != 0) *reinterpret_cast<int32_t*>(View(*status).mutable_data()) |= bits;
}

inline void check_status(const char* op, const std::optional<Tensor>& status) {
  if (status.has_value()) check_vector(op, "status", *status, 1, aoti_torch_dtype_int32(), "1", cpu_type());
}

// The tokens and prototypes of a call, checked.
inline ScoreProblem score_problem(const char* op, const char* token_arg, const Tensor& tokens, const Tensor& prototypes,
                                  const std::optional<Tensor>& rnorm, bool grouped = false) {
  check_device(op, token_arg, tokens, cpu_type());
  check_device(op, "prototypes", prototypes, cpu_type());
  const View x(tokens), p(prototypes);
  ScoreProblem problem{};
  problem.dtype = float_dtype(op, token_arg, x.dtype);
  check_rank(op, "prototypes", p, grouped ? 3 : 2, grouped ? "a 3-D tensor [G, P, d]" : "a 2-D tensor [P, D]");
  const int64_t row = grouped ? 1 : 0;
  VTK_CHECK(p.sizes[row] >= 1, op, "prototypes", "empty, of shape " + text(p.shape()), "at least one prototype");
  VTK_CHECK(p.dtype == x.dtype, op, "prototypes", dtype_name(p.dtype), dtype_name(x.dtype));
  problem.width = x.sizes[x.dims - 1];
  check_size(op, "prototypes", p.sizes[row + 1], problem.width, "D");
  problem.prototype_count = p.sizes[row];
  problem.tokens = {x.data(), x.strides[x.dims - 2], x.strides[x.dims - 1]};
  problem.prototypes = {p.data(), p.strides[row], p.strides[row + 1]};
  problem.cosine = true;
  if (rnorm.has_value()) {
    check_vector(op, "prototype_rnorm", *rnorm, p.sizes[0], aoti_torch_dtype_float32(), "P", cpu_type());
    const View r(*rnorm);
    problem.rnorm = reinterpret_cast<const float*>(r.data());
    problem.rnorm_stride = r.strides[0];
  }
  return problem;
}

// Rows of a dense cache [B, H, N, d] or [B, N, H, d], or of a packed one without B. The heads of a token move as one
// row where they lie together, unless each has indices of its own.
inline RowCopy kv_rows(const View& src, const View& dst, bool heads_first, bool packed, bool own_indices = false) {
  const int64_t first = packed ? 0 : 1, head = heads_first ? first : first + 1, token = heads_first ? first + 1 : first;
  const int64_t size = src.element(), last = src.dims - 1;
  RowCopy c{src.data(),
            dst.mutable_data(),
            src.sizes[head],
            src.sizes[last],
            size,
            src.strides[last] * size,
            packed ? 0 : src.strides[0] * size,
            src.strides[head] * size,
            src.strides[token] * size,
            packed ? 0 : dst.strides[0] * size,
            dst.strides[head] * size,
            dst.strides[token] * size};
  const int64_t row = c.width * size;
  if (c.width == 1) c.src_step = size;
  if (!heads_first && !own_indices && c.src_step == size && c.src_outer == row && c.dst_outer == row) {
    c.width *= c.outer;
    c.outer = 1;
  }
  return c;
}

inline std::vector<int64_t> with_tokens(const View& v, int64_t dim, int64_t count) {
  std::vector<int64_t> shape = v.shape();
  shape[dim] = count;
  return shape;
}

inline void check_outputs(const char* op, const char* arg, const Tensors& out, const Tensors& like,
                          const std::vector<int64_t>& dims, int64_t kept) {
  check_size(op, arg, static_cast<int64_t>(out.size()), static_cast<int64_t>(like.size()), "tensors");
  for (size_t i = 0; i < out.size(); ++i) {
    const View v(like[i]);
    check_output(op, {arg, static_cast<int64_t>(i)}, out[i], with_tokens(v, dims[i], kept), v.dtype, false, cpu_type());
  }
}

inline void check_kv(const char* op, const Tensors& kv, int64_t dim, int64_t batch, int64_t tokens, bool packed) {
  for (size_t i = 0; i < kv.size(); ++i) {
    const Arg arg("kv", static_cast<int64_t>(i));
    check_device(op, arg, kv[i], cpu_type());
    const View v(kv[i]);
    if (packed) {
      check_rank(op, arg, v, 3, "[H, T, d] or [T, H, d], as kv_layout says");
    } else {
      check_rank(op, arg, v, 4, "[B, H, N, d] or [B, N, H, d], as kv_layout says");
      check_size(op, arg, v.sizes[0], batch, "B");
    }
    check_size(op, arg, v.sizes[dim], tokens, "tokens");
  }
}

inline Tensors empty_kv(const Tensors& kv, int64_t dim, int64_t kept) {
  Tensors out;
  out.reserve(kv.size());
  for (const Tensor& t : kv) {
    const View v(t);
    out.push_back(empty_cpu(with_tokens(v, dim, kept), v.dtype));
  }
  return out;
}

}  // namespace vtkernels
