// Tensor metadata and argument checks over the stable ABI. Each error names the argument, what came and what is
// allowed.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace vtkernels {

using torch::stable::Tensor;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;  // borrowed

// What a kernel needs of a tensor, read once.
struct View {
  explicit View(const Tensor& t) : handle(t.get()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dims));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype));
  }
  const char* data() const {
    const void* p = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(handle, &p));
    return static_cast<const char*>(p);
  }
  char* mutable_data() const {
    void* p = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(handle, &p));
    return static_cast<char*>(p);
  }
  int64_t element() const { return static_cast<int64_t>(aoti_torch_dtype_element_size(dtype)); }
  std::vector<int64_t> shape() const { return {sizes, sizes + dims}; }

  AtenTensorHandle handle;
  int64_t dims;
  int64_t* sizes;
  int64_t* strides;
  int32_t dtype;
};

inline std::string text(Shape shape) {
  std::ostringstream out;
  out << '(';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << (shape.size() == 1 ? ",)" : ")");
  return out.str();
}

inline const char* dtype_name(int32_t dtype) {
  static const std::vector<std::pair<int32_t, const char*>> names = {
      {aoti_torch_dtype_float32(), "float32"},     {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},   {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_int64(), "int64"},         {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int16(), "int16"},         {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_uint8(), "uint8"},         {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_complex64(), "complex64"}, {aoti_torch_dtype_complex128(), "complex128"}};
  for (const auto& [code, name] : names) {
    if (code == dtype) return name;
  }
  return "of another dtype";
}

// The name of an argument, or of one entry of a list: spelled out only when a check fails. It borrows the name.
struct Arg {
  Arg(const char* name, int64_t entry = -1) : name(name), entry(entry) {}
  Arg(const std::string& name) : Arg(name.c_str()) {}
  std::string text() const { return entry < 0 ? name : std::string(name) + "[" + std::to_string(entry) + "]"; }

  const char* name;
  int64_t entry;
};

template <typename Got, typename Allowed>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const char* op, const Arg& arg, const Got& got,
                                                 const Allowed& allowed) {
  std::ostringstream out;
  out << op << ": `" << arg.text() << "` is " << got << ", allowed: " << allowed;
  throw std::runtime_error(out.str());
}

// Not STD_TORCH_CHECK, which puts the place in the source before the message.
#define VTK_CHECK(condition, op, arg, got, allowed) \
  do {                                              \
    if (!(condition)) fail(op, arg, got, allowed);  \
  } while (false)

inline void check_rank(const char* op, const Arg& arg, const View& v, int64_t rank, const char* dims) {
  VTK_CHECK(v.dims == rank, op, arg, "of shape " + text(v.shape()), dims);
}

inline void check_size(const char* op, const Arg& arg, int64_t got, int64_t want, const char* what) {
  VTK_CHECK(got == want, op, arg, "of size " + std::to_string(got) + " in " + what, want);
}

inline void check_device(const char* op, const Arg& arg, const Tensor& t, int32_t device_type) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  int32_t layout = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(t.get(), &layout));
  VTK_CHECK(layout == aoti_torch_layout_strided(), op, arg, "not strided", "a dense strided tensor");
  VTK_CHECK(type == device_type, op, arg, "on another device", "the device of the other inputs");
}

inline void check_vector(const char* op, const Arg& arg, const Tensor& t, int64_t length, int32_t dtype,
                         const char* dims, int32_t device_type) {
  check_device(op, arg, t, device_type);
  const View v(t);
  VTK_CHECK(v.dtype == dtype, op, arg, dtype_name(v.dtype), dtype_name(dtype));
  check_rank(op, arg, v, 1, dims);
  check_size(op, arg, v.sizes[0], length, dims);
}

inline bool is_index(int32_t dtype) { return dtype == aoti_torch_dtype_int32() || dtype == aoti_torch_dtype_int64(); }

inline void check_output(const char* op, const Arg& arg, const Tensor& t, Shape shape, int32_t dtype, bool any_index,
                         int32_t device_type) {
  check_device(op, arg, t, device_type);
  const View v(t);
  VTK_CHECK(v.dtype == dtype || (any_index && is_index(v.dtype)), op, arg, dtype_name(v.dtype),
            (any_index ? "int32, int64" : dtype_name(dtype)));
  VTK_CHECK(Shape(v.sizes, v.dims) == shape, op, arg, "of shape " + text(v.shape()), text(shape));
  VTK_CHECK(v.dims == 0 || v.sizes[v.dims - 1] <= 1 || v.strides[v.dims - 1] == 1, op, arg,
            "of last stride other than 1", "1");
}

inline Tensor empty(Shape shape, int32_t dtype, int32_t device_type, int32_t device_index) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i] > 0 ? shape[i] : 1;
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                         strides.data(), dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

}  // namespace vtkernels
