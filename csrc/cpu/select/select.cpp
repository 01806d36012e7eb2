// Exact selection of k scores, ascending, ties to the lowest index: the choice of the instruction set.
#include "../common/kernel.h"
#include "../common/target.h"
#include "select_isa.h"

namespace vtkernels::cpu {

const SelectKernel& select_kernel() { return VTK_PICK(kSelect); }

void select_row(const float* scores, int64_t stride, int64_t n, int64_t k, bool largest, int64_t base,
                const IndexOut& out, int64_t at) {
  if (k == 0) return;
  if (k == n) {
    for (int64_t i = 0; i < n; ++i) out.store(at + i, base + i);
    return;
  }
  float* dense = thread_scratch(n + select_scratch(n));
  if (stride != 1) {
    for (int64_t i = 0; i < n; ++i) dense[i] = scores[i * stride];
    scores = dense;
  }
  const SelectKernel& kernel = select_kernel();
  const Cut cut = kernel.find(scores, n, k, largest, reinterpret_cast<uint32_t*>(dense + n));
  kernel.emit(scores, n, cut, largest, base, out, at);
}

}  // namespace vtkernels::cpu
