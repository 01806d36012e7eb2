// rotate_keys as a torch op on the CPU.
#include "../../cpu/compact/rotate.h"

#include "common.h"

namespace vtkernels {
namespace {

cpu::RotateProblem check_rotate(const char* op, const Tensor& keys, const Tensor& deltas, const Tensor& inv_freq,
                                bool interleaved, const std::string& layout) {
  const int64_t token = token_dim(op, layout), head = 3 - token;
  for (const auto& [arg, t] : {std::pair{"keys", &keys}, {"deltas", &deltas}, {"inv_freq", &inv_freq}}) {
    check_device(op, arg, *t, cpu_type());
  }
  const View k(keys), d(deltas), f(inv_freq);
  cpu::RotateProblem p{};
  p.dtype = float_dtype(op, "keys", k.dtype);
  check_rank(op, "keys", k, 4, "[B, H, N, d] or [B, N, H, d], as kv_layout says");
  VTK_CHECK(is_index(d.dtype), op, "deltas", dtype_name(d.dtype), "int32, int64");
  VTK_CHECK(d.dims == 2 || d.dims == 3, op, "deltas", "of shape " + text(d.shape()), "[B, N] or [axes, B, N]");
  check_size(op, "deltas", d.sizes[d.dims - 2], k.sizes[0], "B");
  check_size(op, "deltas", d.sizes[d.dims - 1], k.sizes[token], "N");
  VTK_CHECK(f.dtype == aoti_torch_dtype_float32(), op, "inv_freq", dtype_name(f.dtype), "float32");
  check_rank(op, "inv_freq", f, d.dims - 1, d.dims == 2 ? "[pairs]" : "[axes, pairs]");
  p.axes = d.dims == 3 ? d.sizes[0] : 1;
  if (d.dims == 3) check_size(op, "inv_freq", f.sizes[0], p.axes, "axes (those of `deltas`)");
  p.pairs = f.sizes[f.dims - 1];
  VTK_CHECK(p.pairs <= k.sizes[3] / 2, op, "inv_freq", p.pairs,
            "0 to " + std::to_string(k.sizes[3] / 2) + " (pairs, at most d / 2)");
  p.batch = k.sizes[0], p.heads = k.sizes[head], p.tokens = k.sizes[token], p.width = k.sizes[3];
  p.keys = k.data();
  p.key_batch = k.strides[0], p.key_head = k.strides[head], p.key_token = k.strides[token], p.key_dim = k.strides[3];
  p.deltas = {d.data(), d.dtype == aoti_torch_dtype_int64(), d.strides[d.dims - 2], d.strides[d.dims - 1],
              d.dims == 3 ? d.strides[0] : 0};
  p.inv_freq = reinterpret_cast<const float*>(f.data());
  p.freq_axis = f.dims == 2 ? f.strides[0] : 0, p.freq_pair = f.strides[f.dims - 1];
  p.interleaved = interleaved;
  return p;
}

void run_rotate(cpu::RotateProblem p, const Tensor& out, const std::string& layout) {
  const View o(out);
  p.out = o.mutable_data();
  p.out_batch = o.strides[0];
  p.out_head = o.strides[layout == "HND" ? 1 : 2], p.out_token = o.strides[layout == "HND" ? 2 : 1];
  cpu::rotate_keys(torch_pool(), p);
}

Tensor rotate_keys(const Tensor& keys, const Tensor& deltas, const Tensor& inv_freq, bool interleaved,
                   const std::string& layout) {
  const cpu::RotateProblem p = check_rotate("rotate_keys", keys, deltas, inv_freq, interleaved, layout);
  const View k(keys);
  Tensor out = empty_cpu(Shape(k.sizes, k.dims), k.dtype);
  run_rotate(p, out, layout);
  return out;
}

void rotate_keys_out(const Tensor& keys, const Tensor& deltas, const Tensor& inv_freq, bool interleaved,
                     const std::string& layout, const Tensor& out) {
  const char* op = "rotate_keys.out";
  const cpu::RotateProblem p = check_rotate(op, keys, deltas, inv_freq, interleaved, layout);
  const View k(keys);
  check_output(op, "out", out, Shape(k.sizes, k.dims), k.dtype, false, cpu_type());
  run_rotate(p, out, layout);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("rotate_keys", VTK_BOX(rotate_keys));
  m.impl("rotate_keys.out", VTK_BOX(rotate_keys_out));
}
