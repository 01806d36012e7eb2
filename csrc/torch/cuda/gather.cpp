// Rows of tensors and caches moved by indices.
#include "gather.h"

namespace vtkernels {
namespace {

void gather_tokens_out(const std::vector<Tensor>& tensors, const Tensor& indices,
                       const std::optional<std::vector<int64_t>>& token_dims, const std::vector<Tensor>& out,
                       const OptionalTensor& status) {
  const Device device(indices);
  const Checker check{"gather_tokens.out", device.index};
  VTK_CHECK(!tensors.empty(), check.op, "tensors", "empty", "at least one tensor");
  check_size(check.op, "out", out.size(), tensors.size(), "tensors");
  if (token_dims) check_size(check.op, "token_dims", token_dims->size(), tensors.size(), "entries");
  GatherShape shape{};
  std::vector<cuda::GatherTensor> rows;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    const View t(tensors[i]);
    const int64_t dim = token_dims ? (*token_dims)[i] : 1;
    check.place("tensors" + at, tensors[i]);
    VTK_CHECK(dim >= 1 && dim < t.dims, check.op, "token_dims" + at, dim, "1 to " + std::to_string(t.dims - 1));
    if (i == 0) {
      shape = {t.sizes[dim - 1], t.sizes[dim]};
      check_indices(check, indices, shape);
    }
    check_size(check.op, "tensors" + at, t.sizes[dim - 1], shape.batch, "B");
    check_size(check.op, "tensors" + at, t.sizes[dim], shape.tokens, "tokens");
    add_rows(check, tensors[i], "out" + at, out[i], static_cast<int>(dim) - 1, static_cast<int>(dim),
             View(indices).sizes[1], rows);
  }
  const View i(indices);
  cuda::gather(rows, index_view(i), shape.batch, shape.tokens, i.sizes[1], check.status(status), device.stream);
}

// Indices [B, k], [B, H, k] or [L, B, H, k] of caches; H of 1 is shared by the heads.
cuda::IndexView cache_indices(const Checker& check, const Tensor& indices, const std::vector<Tensor>& kv,
                              int head_dim) {
  const View i(indices);
  check.place("indices", indices);
  VTK_CHECK(is_index(i.dtype), check.op, "indices", dtype_name(i.dtype), "int32, int64");
  VTK_CHECK(i.dims >= 2 && i.dims <= 4, check.op, "indices", "of shape " + text(i.shape()),
            "[B, k], [B, H, k] or [L, B, H, k]");
  const int64_t row = i.dims == 2 ? 0 : i.dims - 3, last = i.dims - 1, heads = i.dims == 2 ? 1 : i.sizes[last - 1];
  if (i.dims == 4) check_size(check.op, "indices", i.sizes[0], kv.size(), "L (tensors)");
  check_size(check.op, "indices", i.sizes[row], View(kv[0]).sizes[0], "B");
  for (const Tensor& t : kv) {
    if (heads != 1) check_size(check.op, "indices", heads, View(t).sizes[head_dim], "H");
  }
  cuda::IndexView view{const_cast<char*>(i.data()), i.dtype == aoti_torch_dtype_int64(), i.strides[row],
                       i.strides[last]};
  view.heads = heads;
  view.head_stride = heads == 1 ? 0 : i.strides[last - 1];
  if (i.dims == 4) {
    view.tensors = i.sizes[0];
    view.tensor_stride = i.strides[0];
  }
  return view;
}

// A cache [B, H, N, d] or [B, N, H, d] whose rows move within it.
void add_written_cache(const Checker& check, const Tensor& cache, size_t i, const GatherShape& shape, int token_dim,
                       std::vector<cuda::GatherTensor>& rows) {
  const std::string arg = "kv[" + std::to_string(i) + "]";
  const View t(cache);
  check.place(arg, cache);
  check_rank(check.op, arg, t, 4, token_dim == 2 ? "[B, H, N, d]" : "[B, N, H, d]");
  check_size(check.op, arg, t.sizes[0], shape.batch, "B");
  check_size(check.op, arg, t.sizes[token_dim], shape.tokens, "tokens");
  check_own_memory(check, arg, t);
  const std::vector<int64_t> strides(t.strides, t.strides + t.dims);
  rows.push_back({t.data(), t.mutable_data(), t.element(), t.shape(), strides, strides, 0, token_dim});
}

using Gather = decltype(cuda::gather);

void run_gather_kv(const char* op, Gather& gather, const std::vector<Tensor>& kv, const Tensor& indices,
                   const std::string& kv_layout, const std::vector<Tensor>& out, bool in_place,
                   const OptionalTensor& status) {
  const Device device(indices);
  const Checker check{op, device.index};
  VTK_CHECK(!kv.empty(), check.op, "kv", "empty", "at least one tensor");
  const View first(kv[0]);
  check_rank(check.op, "kv[0]", first, 4, kv_layout == "HND" ? "[B, H, N, d]" : "[B, N, H, d]");
  const int token_dim = kv_layout == "HND" ? 2 : 1, head_dim = 3 - token_dim;
  const GatherShape shape{first.sizes[0], first.sizes[token_dim]};
  const View i(indices);
  const int64_t kept = i.dims > 0 ? i.sizes[i.dims - 1] : 0;
  std::vector<cuda::GatherTensor> rows;
  if (in_place) {
    VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
    check_size(check.op, "indices", std::min(kept, shape.tokens), kept, "k (at most N)");
    for (size_t t = 0; t < kv.size(); ++t) add_written_cache(check, kv[t], t, shape, token_dim, rows);
  } else {
    add_caches(check, kv, kv_layout, false, shape, "out", out, kept, rows);
  }
  const cuda::IndexView view = cache_indices(check, indices, kv, head_dim);
  if (view.heads != 1) {
    for (cuda::GatherTensor& row : rows) row.head_dim = head_dim;
  }
  gather(rows, view, shape.batch, shape.tokens, kept, check.status(status), device.stream);
}

void gather_kv_out(const std::vector<Tensor>& kv, const Tensor& indices, const std::string& kv_layout,
                   const std::vector<Tensor>& out, const OptionalTensor& status) {
  run_gather_kv("gather_kv.out", cuda::gather, kv, indices, kv_layout, out, false, status);
}

void gather_kv_inplace_out(const std::vector<Tensor>& kv, const Tensor& indices, const std::string& kv_layout,
                           const OptionalTensor& status) {
  run_gather_kv("gather_kv_inplace.out", cuda::gather_inplace, kv, indices, kv_layout, kv, true, status);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("gather_tokens.out", VTK_BOX(gather_tokens_out));
  m.impl("gather_kv.out", VTK_BOX(gather_kv_out));
  m.impl("gather_kv_inplace.out", VTK_BOX(gather_kv_inplace_out));
}

}  // namespace vtkernels
