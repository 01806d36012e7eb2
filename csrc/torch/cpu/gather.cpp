// gather_tokens, gather_kv and gather_kv_inplace as torch ops on the CPU.
#include "common.h"

namespace vtkernels {
namespace {

// Dimensions [first, last) of a tensor as one loop, when their strides allow it.
struct Loop {
  int64_t count, stride;
};

std::optional<Loop> merge_dims(const View& v, int64_t first, int64_t last) {
  Loop loop{1, 0};
  for (int64_t i = last - 1; i >= first; --i) {
    if (v.sizes[i] == 1) continue;
    if (loop.count == 1) {
      loop = {v.sizes[i], v.strides[i]};
    } else if (v.strides[i] == loop.count * loop.stride) {
      loop.count *= v.sizes[i];
    } else if (v.sizes[i] == 0) {
      loop.count = 0;
    } else {
      return std::nullopt;
    }
  }
  return loop;
}

// Rows of a [.., B, tokens, ..] tensor: dimensions before the batch are the outer loop, those after the tokens the row.
bool is_empty(const View& v) { return std::find(v.sizes, v.sizes + v.dims, 0) != v.sizes + v.dims; }

std::optional<RowCopy> token_rows(const View& src, const View& dst, int64_t dim) {
  const auto outer = merge_dims(src, 0, dim - 1), row = merge_dims(src, dim + 1, src.dims);
  const auto outer_dst = merge_dims(dst, 0, dim - 1), row_dst = merge_dims(dst, dim + 1, dst.dims);
  if (!outer || !row || !outer_dst || !row_dst || (row_dst->count > 1 && row_dst->stride != 1)) return std::nullopt;
  const int64_t size = src.element();
  return RowCopy{src.data(),
                 dst.mutable_data(),
                 outer->count,
                 row->count,
                 size,
                 row->count > 1 ? row->stride * size : size,
                 src.strides[dim - 1] * size,
                 outer->stride * size,
                 src.strides[dim] * size,
                 dst.strides[dim - 1] * size,
                 outer_dst->stride * size,
                 dst.strides[dim] * size};
}

Indices index_view(const char* op, const Tensor& indices, int64_t batch) {
  check_device(op, "indices", indices, cpu_type());
  const View v(indices);
  VTK_CHECK(is_index(v.dtype), op, "indices", dtype_name(v.dtype), "int32, int64");
  check_rank(op, "indices", v, 2, "a 2-D tensor [B, k]");
  check_size(op, "indices", v.sizes[0], batch, "B");
  return {v.data(), v.dtype == aoti_torch_dtype_int64(), v.strides[0], v.strides[1]};
}

std::vector<int64_t> check_tokens(const char* op, const Tensors& tensors,
                                  const std::optional<std::vector<int64_t>>& dims) {
  VTK_CHECK(!tensors.empty(), op, "tensors", "empty", "at least one tensor");
  const std::vector<int64_t> token_dims = dims.value_or(std::vector<int64_t>(tensors.size(), 1));
  check_size(op, "token_dims", static_cast<int64_t>(token_dims.size()), static_cast<int64_t>(tensors.size()),
             "entries");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Arg arg("tensors", static_cast<int64_t>(i));
    check_device(op, arg, tensors[i], cpu_type());
    const View v(tensors[i]), first(tensors[0]);
    const int64_t dim = token_dims[i];
    VTK_CHECK(dim >= 1 && dim < v.dims, op, Arg("token_dims", static_cast<int64_t>(i)), dim,
              "1 to " + std::to_string(v.dims - 1) + " (batch is the dimension before it)");
    check_size(op, arg, v.sizes[dim - 1], first.sizes[token_dims[0] - 1], "B");
    check_size(op, arg, v.sizes[dim], first.sizes[token_dims[0]], "tokens");
  }
  return token_dims;
}

int32_t run_gather_tokens(const char* op, const Tensors& tensors, const Tensor& indices,
                          const std::vector<int64_t>& dims, const Tensors& out) {
  const View first(tensors[0]);
  const int64_t batch = first.sizes[dims[0] - 1], tokens = first.sizes[dims[0]];
  const Indices idx = index_view(op, indices, batch);
  std::vector<RowCopy> copies;
  copies.reserve(tensors.size());
  Tensors dense;  // keeps copies alive: inputs whose inner dimensions are not one loop
  for (size_t i = 0; i < tensors.size(); ++i) {
    const View from(tensors[i]), to(out[i]);
    if (is_empty(to)) {  // no bytes, but the indices are checked
      copies.push_back({from.data(), to.mutable_data(), 1, 0, to.element(), to.element()});
      continue;
    }
    // Without tokens every row becomes zeros; the strides of nothing say nothing.
    std::optional<RowCopy> rows = token_rows(is_empty(from) ? to : from, to, dims[i]);
    if (!rows) {
      VTK_CHECK(token_rows(to, to, dims[i]), op, Arg("out", static_cast<int64_t>(i)),
                "of strides that are not dense around batch and tokens", "dense inner dimensions");
      dense.push_back(torch::stable::contiguous(tensors[i]));
      rows = token_rows(View(dense.back()), to, dims[i]);
    }
    copies.push_back(*rows);
  }
  return cpu::gather_rows(torch_pool(), copies, idx, batch, View(indices).sizes[1], tokens) ? kBadIndex : 0;
}

Tensors gather_tokens(const Tensors& tensors, const Tensor& indices,
                      const std::optional<std::vector<int64_t>>& token_dims) {
  const char* op = "gather_tokens";
  const std::vector<int64_t> dims = check_tokens(op, tensors, token_dims);
  index_view(op, indices, View(tensors[0]).sizes[dims[0] - 1]);
  Tensors out;
  out.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const View v(tensors[i]);
    out.push_back(empty_cpu(with_tokens(v, dims[i], View(indices).sizes[1]), v.dtype));
  }
  run_gather_tokens(op, tensors, indices, dims, out);
  return out;
}

void gather_tokens_out(const Tensors& tensors, const Tensor& indices,
                       const std::optional<std::vector<int64_t>>& token_dims, const Tensors& out,
                       const std::optional<Tensor>& status) {
  const char* op = "gather_tokens.out";
  const std::vector<int64_t> dims = check_tokens(op, tensors, token_dims);
  index_view(op, indices, View(tensors[0]).sizes[dims[0] - 1]);
  check_outputs(op, "out", out, tensors, dims, View(indices).sizes[1]);
  check_status(op, status);
  set_status(status, run_gather_tokens(op, tensors, indices, dims, out));
}

struct KvProblem {
  int64_t dim, batch, tokens, kept;
  bool own_heads;
  Indices indices;
};

// Indices [B, k], [B, H, k] or [L, B, H, k]; H of 1 is shared by the heads.
KvProblem check_gather_kv(const char* op, const Tensors& kv, const Tensor& indices, const std::string& layout) {
  VTK_CHECK(!kv.empty(), op, "kv", "empty", "at least one tensor");
  const int64_t dim = token_dim(op, layout), head_dim = 3 - dim;
  const View first(kv[0]);
  check_rank(op, "kv[0]", first, 4, "[B, H, N, d] or [B, N, H, d], as kv_layout says");
  check_kv(op, kv, dim, first.sizes[0], first.sizes[dim], false);
  check_device(op, "indices", indices, cpu_type());
  const View v(indices);
  VTK_CHECK(is_index(v.dtype), op, "indices", dtype_name(v.dtype), "int32, int64");
  VTK_CHECK(v.dims >= 2 && v.dims <= 4, op, "indices", "of shape " + text(v.shape()),
            "[B, k], [B, H, k] or [L, B, H, k]");
  const int64_t last = v.dims - 1, row = v.dims == 2 ? 0 : last - 2;
  if (v.dims == 4) check_size(op, "indices", v.sizes[0], static_cast<int64_t>(kv.size()), "L (tensors)");
  check_size(op, "indices", v.sizes[row], first.sizes[0], "B");
  const int64_t heads = v.dims == 2 ? 1 : v.sizes[last - 1];
  for (const Tensor& t : kv) {
    if (heads != 1) check_size(op, "indices", heads, View(t).sizes[head_dim], "H");
  }
  return {dim,
          first.sizes[0],
          first.sizes[dim],
          v.sizes[last],
          heads != 1,
          {v.data(), v.dtype == aoti_torch_dtype_int64(), v.strides[row], v.strides[last],
           v.dims == 4 ? v.strides[0] : 0, heads == 1 ? 0 : v.strides[last - 1]}};
}

using MoveRows = decltype(cpu::gather_rows);

int32_t run_gather_kv(MoveRows& move, const Tensors& kv, const KvProblem& p, const Tensors& out) {
  std::vector<RowCopy> copies;
  copies.reserve(kv.size());
  for (size_t i = 0; i < kv.size(); ++i) {
    copies.push_back(kv_rows(View(kv[i]), View(out[i]), p.dim == 2, false, p.own_heads));
  }
  return move(torch_pool(), copies, p.indices, p.batch, p.kept, p.tokens) ? kBadIndex : 0;
}

Tensors gather_kv(const Tensors& kv, const Tensor& indices, const std::string& layout) {
  const KvProblem p = check_gather_kv("gather_kv", kv, indices, layout);
  Tensors out = empty_kv(kv, p.dim, p.kept);
  run_gather_kv(cpu::gather_rows, kv, p, out);
  return out;
}

void gather_kv_out(const Tensors& kv, const Tensor& indices, const std::string& layout, const Tensors& out,
                   const std::optional<Tensor>& status) {
  const char* op = "gather_kv.out";
  const KvProblem p = check_gather_kv(op, kv, indices, layout);
  check_outputs(op, "out", out, kv, std::vector<int64_t>(kv.size(), p.dim), p.kept);
  check_status(op, status);
  set_status(status, run_gather_kv(cpu::gather_rows, kv, p, out));
}

void gather_kv_inplace_out(const Tensors& kv, const Tensor& indices, const std::string& layout,
                           const std::optional<Tensor>& status) {
  const char* op = status.has_value() ? "gather_kv_inplace.out" : "gather_kv_inplace";
  const KvProblem p = check_gather_kv(op, kv, indices, layout);
  VTK_CHECK(p.kept <= p.tokens, op, "indices", "of size " + std::to_string(p.kept) + " in k",
            "at most " + std::to_string(p.tokens) + " (N)");
  for (size_t i = 0; i < kv.size(); ++i) {
    const Arg arg("kv", static_cast<int64_t>(i));
    const View v(kv[i]);
    for (int64_t d = 0; d < v.dims; ++d) {
      VTK_CHECK(v.sizes[d] <= 1 || v.strides[d] != 0, op, arg, "expanded",
                "a tensor whose elements each have their own memory");
    }
    for (size_t j = 0; j < i; ++j) {
      VTK_CHECK(v.data() == nullptr || View(kv[j]).data() != v.data(), op, arg,
                "in the memory of kv[" + std::to_string(j) + "]", "each tensor once");
    }
  }
  check_status(op, status);
  set_status(status, run_gather_kv(cpu::gather_rows_inplace, kv, p, kv));
}

void gather_kv_inplace(const Tensors& kv, const Tensor& indices, const std::string& layout) {
  gather_kv_inplace_out(kv, indices, layout, std::nullopt);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("gather_tokens", VTK_BOX(gather_tokens));
  m.impl("gather_tokens.out", VTK_BOX(gather_tokens_out));
  m.impl("gather_kv", VTK_BOX(gather_kv));
  m.impl("gather_kv.out", VTK_BOX(gather_kv_out));
  m.impl("gather_kv_inplace", VTK_BOX(gather_kv_inplace));
  m.impl("gather_kv_inplace.out", VTK_BOX(gather_kv_inplace_out));
}
