// What the registration files of the CUDA kernels share. They register under VTK_CUDA_NAMESPACE over the stable ABI:
// `.out` variants only, schemas are defined in Python. The contract has been checked there; what memory safety needs is
// checked again, for direct calls.
#pragma once

#include <vtkernels/cuda/launch.h>

#include <algorithm>

#include "../box.h"
#include "../tensor.h"

namespace vtkernels {

using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = std::optional<std::vector<Tensor>>;

#ifdef VTKERNELS_CUDA_SHIM  // the tests run the kernels on CPU tensors
#define VTK_DISPATCH_KEY CPU
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
struct Device {
  explicit Device(const Tensor& t) : index(t.get_device_index()) {}
  int32_t index;
  cuda::Stream stream = nullptr;
};
#else
#define VTK_DISPATCH_KEY CUDA
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
struct [[gnu::visibility("hidden")]] Device {  // as the guard is
  explicit Device(const Tensor& t) : index(t.get_device_index()), guard(index) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    stream = static_cast<cuda::Stream>(current);
  }
  int32_t index;
  torch::stable::accelerator::DeviceGuard guard;
  cuda::Stream stream;
};
#endif

// Checks that share the op's name and its first tensor's device.
struct Checker {
  const char* op;
  int32_t device;

  void place(const std::string& arg, const Tensor& t) const {
    check_device(op, arg, t, device_type());
    VTK_CHECK(t.get_device_index() == device, op, arg, "on device " + std::to_string(t.get_device_index()),
              "the device of the other inputs (" + std::to_string(device) + ")");
  }

  void vector(const char* arg, const Tensor& t, int64_t length, int32_t dtype, const char* dims) const {
    place(arg, t);
    check_vector(op, arg, t, length, dtype, dims, device_type());
  }

  void output(const std::string& arg, const Tensor& t, const std::vector<int64_t>& shape, int32_t dtype,
              bool any_index = false) const {
    place(arg, t);
    check_output(op, arg, t, shape, dtype, any_index, device_type());
  }

  void range(const char* arg, int64_t got, int64_t low, int64_t high) const {
    VTK_CHECK(got >= low && got <= high, op, arg, got, std::to_string(low) + " to " + std::to_string(high));
  }

  int* status(const OptionalTensor& t) const {
    if (!t) return nullptr;
    vector("status", *t, 1, aoti_torch_dtype_int32(), "1");
    return reinterpret_cast<int*>(View(*t).mutable_data());
  }
};

inline cuda::Dtype floating(const Checker& check, const char* arg, const View& v) {
  const bool single = v.dtype == aoti_torch_dtype_float32(), half = v.dtype == aoti_torch_dtype_float16();
  VTK_CHECK(single || half || v.dtype == aoti_torch_dtype_bfloat16(), check.op, arg, dtype_name(v.dtype),
            "float32, float16, bfloat16");
  return single ? cuda::Dtype::kFloat32 : half ? cuda::Dtype::kFloat16 : cuda::Dtype::kBFloat16;
}

// Tokens [B, N, D] or [T, D] with prototypes [P, D]; or in G groups [B, N, G, d] or [T, G, d] with [G, P, d].
inline cuda::ScoreProblem score_problem(const Checker& check, const char* token_arg, const Tensor& tokens,
                                        const Tensor& prototypes, const OptionalTensor& rnorm, bool grouped = false) {
  const View t(tokens), p(prototypes);
  const int64_t token = t.dims - (grouped ? 3 : 2), rows = p.dims - 2;  // their dimensions
  cuda::ScoreProblem problem{};
  problem.dtype = floating(check, token_arg, t);
  problem.width = t.sizes[t.dims - 1];
  problem.tokens = {t.data(), token > 0 ? t.strides[0] : 0, t.strides[token], t.strides[t.dims - 1]};
  check.place("prototypes", prototypes);
  VTK_CHECK(p.dtype == t.dtype, check.op, "prototypes", dtype_name(p.dtype), dtype_name(t.dtype));
  check_rank(check.op, "prototypes", p, grouped ? 3 : 2, grouped ? "[G, P, D]" : "[P, D]");
  VTK_CHECK(p.sizes[rows] >= 1 && p.sizes[rows] <= INT32_MAX, check.op, "prototypes", "of shape " + text(p.shape()),
            "1 to 2^31 - 1 prototypes");
  check_size(check.op, "prototypes", p.sizes[rows + 1], problem.width, "D");
  problem.prototypes = {p.data(), p.sizes[rows], p.strides[rows], p.strides[rows + 1], nullptr, 0};
  if (grouped) {
    check_size(check.op, "prototypes", p.sizes[0], t.sizes[token + 1], "G (that of `tokens`)");
    problem.groups = p.sizes[0];
    problem.token_group_stride = t.strides[token + 1];
    problem.prototype_group_stride = p.strides[0];
  }
  if (rnorm) {
    check.vector("prototype_rnorm", *rnorm, p.sizes[0], aoti_torch_dtype_float32(), "P");
    const View r(*rnorm);
    problem.prototypes.rnorm = reinterpret_cast<const float*>(r.data());
    problem.prototypes.rnorm_stride = r.strides[0];
  }
  return problem;
}

inline cuda::ScoreView score_view(const View& v) {
  return {reinterpret_cast<float*>(const_cast<char*>(v.data())), v.dims == 2 ? v.strides[0] : 0, v.strides[v.dims - 1]};
}

inline cuda::IndexView index_view(const View& v) {
  return {const_cast<char*>(v.data()), v.dtype == aoti_torch_dtype_int64(), v.dims == 2 ? v.strides[0] : 0,
          v.strides[v.dims - 1]};
}

inline cuda::IntView int_view(const View& v) { return {reinterpret_cast<const int*>(v.data()), v.strides[0]}; }

}  // namespace vtkernels
