// Tensors, caches and indices in the terms of the gather.
#pragma once

#include "common.h"

namespace vtkernels {

// Adds a tensor to the gather, after checking the buffer it goes to.
inline void add_rows(const Checker& check, const Tensor& src, const std::string& out_arg, const Tensor& dst,
                     int batch_dim, int token_dim, int64_t kept, std::vector<cuda::GatherTensor>& rows) {
  const View s(src), d(dst);
  std::vector<int64_t> shape = s.shape();
  cuda::GatherTensor row{s.data(), nullptr,   s.element(), shape, {s.strides, s.strides + s.dims},
                         {},       batch_dim, token_dim};
  shape[token_dim] = kept;
  check.output(out_arg, dst, shape, s.dtype);
  row.dst = d.mutable_data();
  row.dst_strides.assign(d.strides, d.strides + d.dims);
  rows.push_back(row);
}

// Of a tensor that is written in place.
inline void check_own_memory(const Checker& check, const std::string& arg, const View& v) {
  for (int64_t d = 0; d < v.dims; ++d) {
    VTK_CHECK(v.sizes[d] <= 1 || v.strides[d] != 0, check.op, arg, "expanded",
              "a tensor whose elements each have their own memory");
  }
}

struct GatherShape {
  int64_t batch, tokens;
};

inline View check_indices(const Checker& check, const Tensor& indices, const GatherShape& shape) {
  const View i(indices);
  check.place("indices", indices);
  VTK_CHECK(is_index(i.dtype), check.op, "indices", dtype_name(i.dtype), "int32, int64");
  check_rank(check.op, "indices", i, 2, "[B, k]");
  check_size(check.op, "indices", i.sizes[0], shape.batch, "B");
  return i;
}

// Caches [B, H, N, d] or [B, N, H, d]; without the batch where `packed`.
inline void add_caches(const Checker& check, const std::vector<Tensor>& kv, const std::string& kv_layout, bool packed,
                       const GatherShape& shape, const char* out_arg, const std::vector<Tensor>& out, int64_t kept,
                       std::vector<cuda::GatherTensor>& rows) {
  VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
  const int token_dim = (kv_layout == "HND" ? 2 : 1) - packed;
  const char* dims =
      kv_layout == "HND" ? (packed ? "[H, T, d]" : "[B, H, N, d]") : (packed ? "[T, H, d]" : "[B, N, H, d]");
  check_size(check.op, out_arg, out.size(), kv.size(), "tensors");
  for (size_t i = 0; i < kv.size(); ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    const View t(kv[i]);
    check.place("kv" + at, kv[i]);
    check_rank(check.op, "kv" + at, t, packed ? 3 : 4, dims);
    if (!packed) check_size(check.op, "kv" + at, t.sizes[0], shape.batch, "B");
    check_size(check.op, "kv" + at, t.sizes[token_dim], shape.tokens, "tokens");
    add_rows(check, kv[i], out_arg + at, out[i], packed ? -1 : 0, token_dim, kept, rows);
  }
}

}  // namespace vtkernels
