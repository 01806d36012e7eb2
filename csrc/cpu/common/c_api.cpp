// The kernels through a C interface.
#include "vtkernels/c_api.h"

#include "vtkernels/cpu.h"

namespace cpu = vtkernels::cpu;

namespace {

const cpu::Parallel kSerial{nullptr};

}  // namespace

extern "C" {

int32_t vtk_cpu_isa() { return static_cast<int32_t>(cpu::current_isa()); }

int32_t vtk_cpu_supported_isa() { return static_cast<int32_t>(cpu::supported_isa()); }

void vtk_cpu_limit_isa(int32_t highest) { cpu::limit_isa(static_cast<cpu::Isa>(highest)); }

void vtk_cpu_prototype_scores(int32_t dtype, const void* tokens, int64_t n, int64_t d, const void* prototypes,
                              int64_t p, float* scores) {
  const cpu::ScoreProblem problem{static_cast<cpu::DType>(dtype),
                                  {tokens, d, 1},
                                  {prototypes, d, 1},
                                  d,
                                  p,
                                  nullptr,
                                  true,
                                  scores,
                                  {nullptr, false}};
  const cpu::Segment all{0, 0, n, 0};
  cpu::prototype_scores(kSerial, problem, &all, 1);
}

void vtk_cpu_select_topk(const float* scores, int64_t n, int64_t k, int32_t largest, int64_t* out) {
  cpu::select_row(scores, 1, n, k, largest != 0, 0, {out, true}, 0);
}

int32_t vtk_cpu_gather(const void* src, int64_t n, int64_t row_bytes, const int64_t* indices, int64_t k, void* dst) {
  const cpu::RowCopy rows{
      static_cast<const char*>(src), static_cast<char*>(dst), 1, row_bytes, 1, 1, 0, 0, row_bytes, 0, 0, row_bytes};
  return cpu::gather_rows(kSerial, {rows}, {indices, true, 0, 1}, 1, k, n) ? 1 : 0;
}

}  // extern "C"
