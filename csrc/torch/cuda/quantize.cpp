// K and V in few bits, and back.
#include <vtkernels/cuda/quantize.h>

#include "../quantize_parts.h"
#include "common.h"

namespace vtkernels {
namespace {

using Tensors = std::vector<Tensor>;
using Bits = std::vector<int64_t>;

using Parts = const Tensors* [kParts];

cuda::HeadRows& part_of(cuda::QuantizedClass& c, int part) {
  cuda::HeadRows* const parts[kParts] = {&c.key_codes, &c.key_params, &c.value_codes, &c.value_params, &c.value_scales};
  return *parts[part];
}

cuda::HeadRows head_rows(const View& v, void* data) {
  const int64_t last = v.dims - 1;
  return {data, v.strides[0], v.strides[1], v.dims == 3 ? 0 : v.strides[2], v.sizes[last] == 1 ? 1 : v.strides[last]};
}

cuda::HeadRows head_rows(const Tensor& t) {
  const View v(t);
  return head_rows(v, const_cast<char*>(v.data()));
}

cuda::HeadRows written_rows(const Tensor& t) {
  const View v(t);
  return head_rows(v, v.mutable_data());
}

std::string entry(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void check_entries(const Checker& check, const char* arg, size_t got, size_t classes) {
  check_size(check.op, arg, static_cast<int64_t>(got), static_cast<int64_t>(classes), "entries (one for each class)");
}

void add_classes(const Checker& check, const Tensors& indices, const Bits& bits, cuda::QuantizeProblem& p) {
  VTK_CHECK(!indices.empty(), check.op, "indices", "empty", "at least one class of tokens");
  check_entries(check, "bits", bits.size(), indices.size());
  for (size_t i = 0; i < indices.size(); ++i) {
    const std::string arg = entry("indices", i);
    check.place(arg, indices[i]);
    const View v(indices[i]);
    VTK_CHECK(is_index(v.dtype), check.op, arg, dtype_name(v.dtype), "int32, int64");
    check_rank(check.op, arg, v, 2, "[B, k]");
    check_size(check.op, arg, v.sizes[0], p.batch, "B");
    VTK_CHECK(bits[i] == 2 || bits[i] == 4 || bits[i] == 8, check.op, entry("bits", i), bits[i], "2, 4 or 8");
    cuda::QuantizedClass c{};
    c.bits = static_cast<int>(bits[i]);
    c.count = v.sizes[1];
    c.tokens = index_view(v);
    p.classes.push_back(c);
  }
}

// Memory of this call alone; torch aligns it to 16 bytes and more.
template <class T>
T* words(const Tensor& t) {
  return reinterpret_cast<T*>(View(t).mutable_data());
}

void quantize_kv_out(const Tensor& key, const Tensor& value, const Tensors& indices, const Bits& bits,
                     const Tensors& key_codes, const Tensors& key_params, const Tensors& value_codes,
                     const Tensors& value_params, const Tensors& value_scales, const OptionalTensor& status) {
  const Device device(key);
  const Checker check{"quantize_kv.out", device.index};
  check.place("key", key);
  check.place("value", value);
  const View k(key), v(value);
  cuda::QuantizeProblem p{};
  p.dtype = floating(check, "key", k);
  check_rank(check.op, "key", k, 4, "[B, H, N, d]");
  VTK_CHECK(v.dtype == k.dtype, check.op, "value", dtype_name(v.dtype), dtype_name(k.dtype));
  VTK_CHECK(v.shape() == k.shape(), check.op, "value", "of shape " + text(v.shape()),
            "that of `key`, " + text(k.shape()));
  p.batch = k.sizes[0], p.heads = k.sizes[1], p.tokens = k.sizes[2], p.width = k.sizes[3];
  p.key = head_rows(key);
  p.value = head_rows(value);
  add_classes(check, indices, bits, p);
  const Parts outs = {&key_codes, &key_params, &value_codes, &value_params, &value_scales};
  for (int part = 0; part < kParts; ++part) {
    check_entries(check, kOutNames[part], outs[part]->size(), p.classes.size());
    for (size_t i = 0; i < p.classes.size(); ++i) {
      const Tensor& out = (*outs[part])[i];
      check.output(entry(kOutNames[part], i), out, part_shape(part, p, p.classes[i]), part_dtype(part));
      part_of(p.classes[i], part) = written_rows(out);
    }
  }
  p.status = check.status(status);
  const Tensor scratch = empty({cuda::quantize_scratch(p)}, aoti_torch_dtype_float32(), device_type(), device.index);
  cuda::quantize_kv(p, words<float>(scratch), device.stream);
}

int32_t float_dtype(const Checker& check, torch::headeronly::ScalarType dtype, cuda::Dtype& kernel_dtype) {
  using torch::headeronly::ScalarType;
  VTK_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, check.op, "dtype",
            dtype_name(static_cast<int32_t>(dtype)), "float32, float16, bfloat16");
  kernel_dtype = dtype == ScalarType::Float  ? cuda::Dtype::kFloat32
                 : dtype == ScalarType::Half ? cuda::Dtype::kFloat16
                                             : cuda::Dtype::kBFloat16;
  return static_cast<int32_t>(dtype);
}

void dequantize_kv_out(const Tensors& key_codes, const Tensors& key_params, const Tensors& value_codes,
                       const Tensors& value_params, const Tensors& value_scales, const Tensors& indices,
                       const Bits& bits, int64_t tokens, torch::headeronly::ScalarType dtype, const Tensor& out_key,
                       const Tensor& out_value, const OptionalTensor& status) {
  const Device device(out_key);
  const Checker check{"dequantize_kv.out", device.index};
  VTK_CHECK(!value_scales.empty(), check.op, "value_scales", "empty", "at least one class of tokens");
  const View scales(value_scales[0]);
  check_rank(check.op, "value_scales[0]", scales, 3, "[B, H, d]");
  cuda::QuantizeProblem p{};
  const int32_t type = float_dtype(check, dtype, p.dtype);
  p.batch = scales.sizes[0], p.heads = scales.sizes[1], p.tokens = tokens, p.width = scales.sizes[2];
  check.range("tokens", tokens, 0, INT32_MAX);
  add_classes(check, indices, bits, p);
  const Parts parts = {&key_codes, &key_params, &value_codes, &value_params, &value_scales};
  for (int part = 0; part < kParts; ++part) {
    check_entries(check, kPartNames[part], parts[part]->size(), p.classes.size());
    for (size_t i = 0; i < p.classes.size(); ++i) {
      const std::string arg = entry(kPartNames[part], i);
      const Tensor& t = (*parts[part])[i];
      check.place(arg, t);
      const View v(t);
      const std::vector<int64_t> shape = part_shape(part, p, p.classes[i]);
      VTK_CHECK(v.dtype == part_dtype(part), check.op, arg, dtype_name(v.dtype), dtype_name(part_dtype(part)));
      VTK_CHECK(v.shape() == shape, check.op, arg, "of shape " + text(v.shape()),
                text(shape) + ", as the other arguments say");
      part_of(p.classes[i], part) = head_rows(t);
    }
  }
  const std::vector<int64_t> shape{p.batch, p.heads, p.tokens, p.width};
  check.output("out_key", out_key, shape, type);
  check.output("out_value", out_value, shape, type);
  p.key = written_rows(out_key);
  p.value = written_rows(out_value);
  p.status = check.status(status);
  const Tensor owners = empty({p.batch * p.tokens}, aoti_torch_dtype_int32(), device_type(), device.index);
  cuda::dequantize_kv(p, words<int>(owners), device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VTK_CUDA_NAMESPACE, VTK_DISPATCH_KEY, m) {
  m.impl("quantize_kv.out", VTK_BOX(quantize_kv_out));
  m.impl("dequantize_kv.out", VTK_BOX(dequantize_kv_out));
}

}  // namespace vtkernels
