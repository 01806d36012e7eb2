// quantize_kv and dequantize_kv as torch ops on the CPU.
#include "../../cpu/compact/quantize.h"

#include "../box.h"
#include "../quantize_parts.h"
#include "common.h"

namespace vtkernels {
namespace {

using Bits = std::vector<int64_t>;

cpu::HeadRows head_rows(const Tensor& t, bool written) {
  const View v(t);
  char* data = written ? v.mutable_data() : const_cast<char*>(v.data());
  if (v.dims == 3) return {data, v.strides[0], v.strides[1], 0, v.strides[2]};
  return {data, v.strides[0], v.strides[1], v.strides[2], v.strides[3]};
}

void set_part(int part, const Tensor& t, bool written, cpu::QuantizedClass* c) {
  cpu::HeadRows* const parts[kParts] = {&c->key_codes, &c->key_params, &c->value_codes, &c->value_params,
                                        &c->value_scales};
  *parts[part] = head_rows(t, written);
  if (part_dtype(part) == aoti_torch_dtype_uint8() && View(t).sizes[3] == 1) parts[part]->dim_stride = 1;
}

std::vector<cpu::QuantizedClass> check_classes(const char* op, const Tensors& indices, const Bits& bits,
                                               int64_t batch) {
  VTK_CHECK(!indices.empty(), op, "indices", "empty", "at least one class of tokens");
  check_size(op, "bits", static_cast<int64_t>(bits.size()), static_cast<int64_t>(indices.size()),
             "entries (one for each class)");
  std::vector<cpu::QuantizedClass> classes(indices.size());
  for (size_t i = 0; i < indices.size(); ++i) {
    const Arg arg("indices", static_cast<int64_t>(i));
    check_device(op, arg, indices[i], cpu_type());
    const View v(indices[i]);
    VTK_CHECK(is_index(v.dtype), op, arg, dtype_name(v.dtype), "int32, int64");
    check_rank(op, arg, v, 2, "a 2-D tensor [B, k]");
    check_size(op, arg, v.sizes[0], batch, "B");
    VTK_CHECK(bits[i] == 2 || bits[i] == 4 || bits[i] == 8, op, Arg("bits", static_cast<int64_t>(i)), bits[i],
              "2, 4 or 8");
    classes[i].bits = static_cast<int>(bits[i]);
    classes[i].count = v.sizes[1];
    classes[i].tokens = {v.data(), v.dtype == aoti_torch_dtype_int64(), v.strides[0], v.strides[1]};
  }
  return classes;
}

cpu::QuantizeProblem check_quantize(const char* op, const Tensor& key, const Tensor& value, const Tensors& indices,
                                    const Bits& bits) {
  check_device(op, "key", key, cpu_type());
  check_device(op, "value", value, cpu_type());
  const View k(key), v(value);
  cpu::QuantizeProblem p{};
  p.dtype = float_dtype(op, "key", k.dtype);
  check_rank(op, "key", k, 4, "a 4-D tensor [B, H, N, d]");
  float_dtype(op, "value", v.dtype);
  check_rank(op, "value", v, 4, "a 4-D tensor [B, H, N, d]");
  VTK_CHECK(v.dtype == k.dtype, op, "value", dtype_name(v.dtype), dtype_name(k.dtype));
  VTK_CHECK(v.shape() == k.shape(), op, "value", "of shape " + text(v.shape()), "that of `key`, " + text(k.shape()));
  p.batch = k.sizes[0], p.heads = k.sizes[1], p.tokens = k.sizes[2], p.width = k.sizes[3];
  p.key = head_rows(key, false);
  p.value = head_rows(value, false);
  if (p.width == 1) p.key.dim_stride = p.value.dim_stride = 1;
  p.classes = check_classes(op, indices, bits, p.batch);
  return p;
}

std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors> quantize_kv(const Tensor& key, const Tensor& value,
                                                                    const Tensors& indices, const Bits& bits) {
  cpu::QuantizeProblem p = check_quantize("quantize_kv", key, value, indices, bits);
  Tensors out[kParts];
  for (cpu::QuantizedClass& c : p.classes) {
    for (int part = 0; part < kParts; ++part) {
      out[part].push_back(empty_cpu(part_shape(part, p, c), part_dtype(part)));
      set_part(part, out[part].back(), true, &c);
    }
  }
  cpu::quantize_kv(torch_pool(), p);
  return {std::move(out[0]), std::move(out[1]), std::move(out[2]), std::move(out[3]), std::move(out[4])};
}

void quantize_kv_out(const Tensor& key, const Tensor& value, const Tensors& indices, const Bits& bits,
                     const Tensors& out_key_codes, const Tensors& out_key_params, const Tensors& out_value_codes,
                     const Tensors& out_value_params, const Tensors& out_value_scales,
                     const std::optional<Tensor>& status) {
  const char* op = "quantize_kv.out";
  cpu::QuantizeProblem p = check_quantize(op, key, value, indices, bits);
  const Tensors* const outs[kParts] = {&out_key_codes, &out_key_params, &out_value_codes, &out_value_params,
                                       &out_value_scales};
  for (int part = 0; part < kParts; ++part) {
    check_size(op, kOutNames[part], static_cast<int64_t>(outs[part]->size()), static_cast<int64_t>(p.classes.size()),
               "tensors (one for each input)");
    for (size_t i = 0; i < p.classes.size(); ++i) {
      const Tensor& out = (*outs[part])[i];
      check_output(op, {kOutNames[part], static_cast<int64_t>(i)}, out, part_shape(part, p, p.classes[i]),
                   part_dtype(part), false, cpu_type());
    }
  }
  check_status(op, status);
  for (int part = 0; part < kParts; ++part) {
    for (size_t i = 0; i < p.classes.size(); ++i) set_part(part, (*outs[part])[i], true, &p.classes[i]);
  }
  if (cpu::quantize_kv(torch_pool(), p)) set_status(status, kBadIndex);
}

cpu::QuantizeProblem check_dequantize(const char* op, const Tensors* const* parts, const Tensors& indices,
                                      const Bits& bits, int64_t tokens, int32_t dtype) {
  const Tensors& scales = *parts[kParts - 1];
  VTK_CHECK(!scales.empty(), op, "value_scales", "empty", "at least one class of tokens");
  const Arg first("value_scales", 0);
  check_device(op, first, scales[0], cpu_type());
  const View s(scales[0]);
  check_rank(op, first, s, 3, "a 3-D tensor [B, H, d]");
  cpu::QuantizeProblem p{};
  p.batch = s.sizes[0], p.heads = s.sizes[1], p.tokens = tokens, p.width = s.sizes[2];
  p.classes = check_classes(op, indices, bits, p.batch);
  for (int part = 0; part < kParts; ++part) {
    check_size(op, kPartNames[part], static_cast<int64_t>(parts[part]->size()), static_cast<int64_t>(p.classes.size()),
               "entries (one for each class)");
  }
  for (size_t i = 0; i < p.classes.size(); ++i) {
    for (int part = 0; part < kParts; ++part) {
      const Arg arg(kPartNames[part], static_cast<int64_t>(i));
      const Tensor& t = (*parts[part])[i];
      check_device(op, arg, t, cpu_type());
      const View v(t);
      const std::vector<int64_t> shape = part_shape(part, p, p.classes[i]);
      VTK_CHECK(v.dtype == part_dtype(part), op, arg, dtype_name(v.dtype), dtype_name(part_dtype(part)));
      VTK_CHECK(v.shape() == shape, op, arg, "of shape " + text(v.shape()),
                text(shape) + ", as the other arguments say");
      set_part(part, t, false, &p.classes[i]);
    }
  }
  VTK_CHECK(tokens >= 0 && tokens <= INT32_MAX, op, "tokens", tokens, "0 to 2147483647 (rows of the caches)");
  p.dtype = float_dtype(op, "dtype", dtype);
  return p;
}

bool run_dequantize(cpu::QuantizeProblem p, const Tensor& key, const Tensor& value) {
  p.key = head_rows(key, true);
  p.value = head_rows(value, true);
  return cpu::dequantize_kv(torch_pool(), p);
}

int32_t aoti_dtype(const char* op, torch::headeronly::ScalarType dtype) {
  if (dtype == torch::headeronly::ScalarType::Float) return aoti_torch_dtype_float32();
  if (dtype == torch::headeronly::ScalarType::Half) return aoti_torch_dtype_float16();
  VTK_CHECK(dtype == torch::headeronly::ScalarType::BFloat16, op, "dtype", dtype_name(static_cast<int32_t>(dtype)),
            "float32, float16, bfloat16");
  return aoti_torch_dtype_bfloat16();
}

std::tuple<Tensor, Tensor> dequantize_kv(const Tensors& key_codes, const Tensors& key_params,
                                         const Tensors& value_codes, const Tensors& value_params,
                                         const Tensors& value_scales, const Tensors& indices, const Bits& bits,
                                         int64_t tokens, torch::headeronly::ScalarType dtype) {
  const char* op = "dequantize_kv";
  const Tensors* const parts[kParts] = {&key_codes, &key_params, &value_codes, &value_params, &value_scales};
  const int32_t type = aoti_dtype(op, dtype);
  const cpu::QuantizeProblem p = check_dequantize(op, parts, indices, bits, tokens, type);
  const std::vector<int64_t> shape{p.batch, p.heads, p.tokens, p.width};
  Tensor key = empty_cpu(shape, type), value = empty_cpu(shape, type);
  run_dequantize(p, key, value);
  return {std::move(key), std::move(value)};
}

void dequantize_kv_out(const Tensors& key_codes, const Tensors& key_params, const Tensors& value_codes,
                       const Tensors& value_params, const Tensors& value_scales, const Tensors& indices,
                       const Bits& bits, int64_t tokens, torch::headeronly::ScalarType dtype, const Tensor& out_key,
                       const Tensor& out_value, const std::optional<Tensor>& status) {
  const char* op = "dequantize_kv.out";
  const Tensors* const parts[kParts] = {&key_codes, &key_params, &value_codes, &value_params, &value_scales};
  const int32_t type = aoti_dtype(op, dtype);
  const cpu::QuantizeProblem p = check_dequantize(op, parts, indices, bits, tokens, type);
  const std::vector<int64_t> shape{p.batch, p.heads, p.tokens, p.width};
  check_output(op, "out_key", out_key, shape, type, false, cpu_type());
  check_output(op, "out_value", out_value, shape, type, false, cpu_type());
  check_status(op, status);
  if (run_dequantize(p, out_key, out_value)) set_status(status, kBadIndex);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("quantize_kv", VTK_BOX(quantize_kv));
  m.impl("quantize_kv.out", VTK_BOX(quantize_kv_out));
  m.impl("dequantize_kv", VTK_BOX(dequantize_kv));
  m.impl("dequantize_kv.out", VTK_BOX(dequantize_kv_out));
}
