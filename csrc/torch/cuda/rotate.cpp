// Rotary keys turned by the difference of two positions.
#include "common.h"

namespace vtkernels {
namespace {

void rotate_keys_out(const Tensor& keys, const Tensor& deltas, const Tensor& inv_freq, bool interleaved,
                     const std::string& kv_layout, const Tensor& out) {
  const Device device(keys);
  const Checker check{"rotate_keys.out", device.index};
  check.place("keys", keys);
  check.place("deltas", deltas);
  check.place("inv_freq", inv_freq);
  VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
  const int token = kv_layout == "HND" ? 2 : 1, head = 3 - token;
  const View k(keys), d(deltas), f(inv_freq), o(out);
  cuda::RotateProblem p{};
  p.dtype = floating(check, "keys", k);
  check_rank(check.op, "keys", k, 4, kv_layout == "HND" ? "[B, H, N, d]" : "[B, N, H, d]");
  VTK_CHECK(is_index(d.dtype), check.op, "deltas", dtype_name(d.dtype), "int32, int64");
  VTK_CHECK(d.dims == 2 || d.dims == 3, check.op, "deltas", "of shape " + text(d.shape()), "[B, N] or [axes, B, N]");
  check_size(check.op, "deltas", d.sizes[d.dims - 2], k.sizes[0], "B");
  check_size(check.op, "deltas", d.sizes[d.dims - 1], k.sizes[token], "N");
  VTK_CHECK(f.dtype == aoti_torch_dtype_float32(), check.op, "inv_freq", dtype_name(f.dtype), "float32");
  check_rank(check.op, "inv_freq", f, d.dims - 1, d.dims == 2 ? "[pairs]" : "[axes, pairs]");
  p.axes = d.dims == 3 ? d.sizes[0] : 1;
  if (d.dims == 3) check_size(check.op, "inv_freq", f.sizes[0], p.axes, "axes");
  p.pairs = f.sizes[f.dims - 1];
  check.range("inv_freq", p.pairs, 0, k.sizes[3] / 2);
  check.output("out", out, k.shape(), k.dtype);
  p.batch = k.sizes[0], p.heads = k.sizes[head], p.tokens = k.sizes[token], p.width = k.sizes[3];
  p.keys = k.data();
  p.key_batch = k.strides[0], p.key_head = k.strides[head], p.key_token = k.strides[token], p.key_dim = k.strides[3];
  p.out = o.mutable_data();
  p.out_batch = o.strides[0], p.out_head = o.strides[head], p.out_token = o.strides[token];
  p.deltas = d.data();
  p.wide = d.dtype == aoti_torch_dtype_int64();
  p.delta_axis = d.dims == 3 ? d.strides[0] : 0;
  p.delta_batch = d.strides[d.dims - 2], p.delta_token = d.strides[d.dims - 1];
  p.inv_freq = reinterpret_cast<const float*>(f.data());
  p.freq_axis = f.dims == 2 ? f.strides[0] : 0, p.freq_pair = f.strides[f.dims - 1];
  p.interleaved = interleaved;
  cuda::rotate_keys(p, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("rotate_keys.out", VTK_BOX(rotate_keys_out));
}

}  // namespace vtkernels
