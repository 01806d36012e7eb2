// What the sections of the smoke program share: memory of the device, random values, what failed.
#pragma once

#include <vtkernels/cuda/launch.h>
#include <vtkernels/key.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <vtkernels/cuda/platform.cuh>

namespace {

using namespace vtkernels;
using namespace vtkernels::cuda;

int failures = 0;

void expect(bool equal, const char* what) {
  std::printf("%s %s\n", equal ? "ok  " : "FAIL", what);
  failures += !equal;
}

// Device memory of exactly the wanted size, so that an overrun leaves it.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    void* p = nullptr;
    check(cudaMalloc(&p, std::max<size_t>(1, size_ * sizeof(T))));
    data_.reset(static_cast<T*>(p));
    check(cudaMemcpy(p, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(size_t size, int poison) : DeviceArray(std::vector<T>(size, static_cast<T>(poison))) {}
  T* data() const { return data_.get(); }
  std::vector<T> read() const {
    check(cudaDeviceSynchronize());
    std::vector<T> values(size_);
    check(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  struct Free {
    void operator()(T* p) const { cudaFree(p); }
  };
  size_t size_;
  std::unique_ptr<T, Free> data_;
};

std::mt19937 generator(7);

// Eighths between -2 and 2: exact in every dtype.
std::vector<float> random_values(int64_t count) {
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(static_cast<int>(generator() % 33) - 16) / 8;
  return values;
}

uint16_t to_bits(float value, Dtype dtype) {
  const uint32_t bits = float_bits(value);
  if (dtype == Dtype::kBFloat16) return static_cast<uint16_t>(bits >> 16);
  if (value == 0) return 0;
  return static_cast<uint16_t>((bits >> 31) << 15 | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff));
}

// A matrix on the device in one of the dtypes.
struct Matrix {
  Matrix(int64_t rows, int64_t width, Dtype dtype) : Matrix(random_values(rows * width), dtype) {}
  Matrix(const std::vector<float>& given, Dtype dtype)
      : values(given),
        single(dtype == Dtype::kFloat32 ? values : std::vector<float>{}),
        half(dtype == Dtype::kFloat32 ? std::vector<uint16_t>{} : halves(values, dtype)),
        data(dtype == Dtype::kFloat32 ? static_cast<const void*>(single.data()) : half.data()) {}

  static std::vector<uint16_t> halves(const std::vector<float>& values, Dtype dtype) {
    std::vector<uint16_t> bits;
    for (const float v : values) bits.push_back(to_bits(v, dtype));
    return bits;
  }

  std::vector<float> values;
  DeviceArray<float> single;
  DeviceArray<uint16_t> half;
  const void* data;
};

}  // namespace
