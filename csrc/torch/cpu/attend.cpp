// cell_attention and argmax_attention as torch ops on the CPU.
#include "../../cpu/attend/attend.h"

#include <cmath>

#include "../box.h"
#include "common.h"

namespace vtkernels {
namespace {

cpu::Heads heads(const View& v) { return {v.data(), v.strides[0], v.strides[1], v.strides[2], v.strides[3]}; }

// [B, H, .., d], with the B, H, d, dtype of `query`.
void check_heads(const char* op, const char* arg, const Tensor& t, const View& query) {
  check_device(op, arg, t, cpu_type());
  const View v(t);
  VTK_CHECK(v.dtype == query.dtype, op, arg, dtype_name(v.dtype), dtype_name(query.dtype));
  check_rank(op, arg, v, 4, "a 4-D tensor [B, H, N, d]");
  check_size(op, arg, v.sizes[0], query.sizes[0], "B");
  check_size(op, arg, v.sizes[1], query.sizes[1], "H");
  check_size(op, arg, v.sizes[3], query.sizes[3], "d");
}

cpu::CellProblem check_cells(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                             int64_t grid_width, int64_t cell, const std::optional<double>& scale) {
  check_device(op, "query", query, cpu_type());
  const View q(query);
  cpu::CellProblem p{};
  p.dtype = float_dtype(op, "query", q.dtype);
  check_rank(op, "query", q, 4, "a 4-D tensor [B, H, cells, d]");
  check_heads(op, "key", key, q);
  check_heads(op, "value", value, q);
  VTK_CHECK(cell >= 1 && cell <= 64, op, "cell", cell, "1 to 64 (side of a cell)");
  VTK_CHECK(grid_width >= 1 && grid_width % cell == 0, op, "grid_width", grid_width,
            "a multiple of `cell` (" + std::to_string(cell) + "), at least 1");
  const int64_t cells = q.sizes[2], columns = grid_width / cell;
  VTK_CHECK(cells % columns == 0, op, "query", "of " + std::to_string(cells) + " cells",
            "whole rows of " + std::to_string(columns) + " cells");
  const View k(key), v(value);
  check_size(op, "key", k.sizes[2], cells * cell * cell, "N (cells x cell x cell)");
  check_size(op, "value", v.sizes[2], cells * cell * cell, "N (cells x cell x cell)");
  p.query = heads(q), p.key = heads(k), p.value = heads(v);
  p.batch = q.sizes[0], p.heads = q.sizes[1], p.cells = cells, p.width = q.sizes[3];
  p.columns = columns, p.cell = cell;
  p.scale = static_cast<float>(scale.has_value() ? *scale : 1 / std::sqrt(static_cast<double>(p.width)));
  return p;
}

void run_cells(cpu::CellProblem p, const Tensor& out) {
  const View o(out);
  p.out = o.mutable_data();
  p.out_batch = o.strides[0], p.out_head = o.strides[1], p.out_row = o.strides[2];
  cpu::cell_attention(torch_pool(), p);
}

Tensor cell_attention(const Tensor& query, const Tensor& key, const Tensor& value, int64_t grid_width, int64_t cell,
                      const std::optional<double>& scale) {
  const cpu::CellProblem p = check_cells("cell_attention", query, key, value, grid_width, cell, scale);
  Tensor out = empty_cpu(View(query).shape(), View(query).dtype);
  run_cells(p, out);
  return out;
}

void cell_attention_out(const Tensor& query, const Tensor& key, const Tensor& value, int64_t grid_width, int64_t cell,
                        const std::optional<double>& scale, const Tensor& out) {
  const char* op = "cell_attention.out";
  const cpu::CellProblem p = check_cells(op, query, key, value, grid_width, cell, scale);
  check_output(op, "out", out, View(query).shape(), View(query).dtype, false, cpu_type());
  run_cells(p, out);
}

cpu::ArgmaxProblem check_argmax(const char* op, const Tensor& query, const Tensor& key,
                                const std::optional<Tensor>& allowed) {
  check_device(op, "query", query, cpu_type());
  const View q(query);
  cpu::ArgmaxProblem p{};
  p.dtype = float_dtype(op, "query", q.dtype);
  check_rank(op, "query", q, 4, "a 4-D tensor [B, H, Q, d]");
  check_heads(op, "key", key, q);
  const View k(key);
  p.query = heads(q), p.key = heads(k);
  p.batch = q.sizes[0], p.heads = q.sizes[1], p.rows = q.sizes[2], p.keys = k.sizes[2], p.width = q.sizes[3];
  if (allowed.has_value()) {
    check_device(op, "allowed", *allowed, cpu_type());
    const View a(*allowed);
    VTK_CHECK(a.dtype == aoti_torch_dtype_bool(), op, "allowed", dtype_name(a.dtype), "bool");
    VTK_CHECK(a.dims == 3 && a.sizes[0] == p.batch && a.sizes[1] == p.rows && a.sizes[2] == p.keys, op, "allowed",
              "of shape " + text(a.shape()), "[B, Q, N], here " + text(std::vector<int64_t>{p.batch, p.rows, p.keys}));
    p.allowed = reinterpret_cast<const bool*>(a.data());
    p.allowed_batch = a.strides[0], p.allowed_row = a.strides[1], p.allowed_key = a.strides[2];
  }
  return p;
}

void run_argmax(cpu::ArgmaxProblem p, const Tensor& out, const Tensor& indices) {
  const View o(out), i(indices);
  p.out = o.mutable_data();
  p.out_batch = o.strides[0], p.out_head = o.strides[1], p.out_row = o.strides[2];
  p.indices = index_out(indices);
  p.index_batch = i.strides[0], p.index_head = i.strides[1];
  cpu::argmax_attention(torch_pool(), p);
}

std::tuple<Tensor, Tensor> argmax_attention(const Tensor& query, const Tensor& key,
                                            const std::optional<Tensor>& allowed) {
  const cpu::ArgmaxProblem p = check_argmax("argmax_attention", query, key, allowed);
  Tensor out = empty_cpu(View(query).shape(), View(query).dtype);
  Tensor indices = empty_cpu({p.batch, p.heads, p.rows}, aoti_torch_dtype_int64());
  run_argmax(p, out, indices);
  return {std::move(out), std::move(indices)};
}

void argmax_attention_out(const Tensor& query, const Tensor& key, const std::optional<Tensor>& allowed,
                          const Tensor& out, const Tensor& indices) {
  const char* op = "argmax_attention.out";
  const cpu::ArgmaxProblem p = check_argmax(op, query, key, allowed);
  check_output(op, "out", out, View(query).shape(), View(query).dtype, false, cpu_type());
  check_output(op, "out_indices", indices, {p.batch, p.heads, p.rows}, aoti_torch_dtype_int64(), true, cpu_type());
  run_argmax(p, out, indices);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("cell_attention", VTK_BOX(cell_attention));
  m.impl("cell_attention.out", VTK_BOX(cell_attention_out));
  m.impl("argmax_attention", VTK_BOX(argmax_attention));
  m.impl("argmax_attention.out", VTK_BOX(argmax_attention_out));
}
