// Ops as torch's dispatcher calls them. It does what TORCH_BOX does, and moves arguments and results where that copies
// them (a list is copied three times on its way out). Nor does it leak: TORCH_BOX of torch 2.10 to 2.13 loses one
// std::string per `str` argument.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.h"

// Where the ops register. A build that is loaded beside others gives a namespace of its own.
#ifndef VTK_NAMESPACE
#define VTK_NAMESPACE vtkernels
#endif
#define VTK_JOIN_EXPANDED(a, b) a##b
#define VTK_JOIN(a, b) VTK_JOIN_EXPANDED(a, b)
#define VTK_CUDA_NAMESPACE VTK_JOIN(VTK_NAMESPACE, _cuda)

namespace vtkernels {

// Takes one argument off the stack.
template <typename T>
struct Argument {
  static T take(StableIValue value) { return torch::stable::detail::to<T>(value); }
};

template <>
struct Argument<std::string> {
  static std::string take(StableIValue value) {
    auto* handle = torch::stable::detail::to<StringHandle>(value);
    const char* data = nullptr;
    size_t length = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    std::string text(data, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

template <typename T>
struct Argument<std::optional<T>> {
  static std::optional<T> take(StableIValue value) {
    const auto inner = torch::stable::detail::to<std::optional<StableIValue>>(value);
    if (!inner.has_value()) return std::nullopt;
    return Argument<T>::take(*inner);
  }
};

inline StableIValue result(const Tensor& t) { return torch::stable::detail::from(t); }

inline StableIValue result(const std::vector<Tensor>& list) {
  return torch::stable::detail::from(torch::headeronly::HeaderOnlyArrayRef<Tensor>(list));
}

template <typename T>
void put_results(StableIValue* stack, const T& only) {
  *stack = result(only);
}

template <typename... T>
void put_results(StableIValue* stack, const std::tuple<T...>& all) {
  std::apply([&](const T&... each) { ((*stack++ = result(each)), ...); }, all);
}

template <auto* op>
struct Box;

template <typename Result, typename... Args, Result (*op)(Args...)>
struct Box<op> {
  static void call(StableIValue* stack, uint64_t arguments, uint64_t) {
    STD_TORCH_CHECK(arguments == sizeof...(Args), "the schema has ", arguments, " arguments, the kernel ",
                    sizeof...(Args));
    run(stack, std::index_sequence_for<Args...>());
  }

  template <size_t... kAt>
  static void run(StableIValue* stack, std::index_sequence<kAt...>) {
    const std::tuple<std::decay_t<Args>...> args{Argument<std::decay_t<Args>>::take(stack[kAt])...};
    if constexpr (std::is_void_v<Result>) {
      std::apply(op, args);
    } else {
      put_results(stack, std::apply(op, args));
    }
  }
};

#define VTK_BOX(op) (&Box<&op>::call)

}  // namespace vtkernels
