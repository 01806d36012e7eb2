// Selection for AVX2.
#include <algorithm>

#include "select_isa.h"
#include "target.h"
#include "vtkernels/key.h"
#if defined(__x86_64__)
VTK_TARGET("avx2")

namespace vtkernels::cpu {
namespace {

#include "select_scalar.inl"

}  // namespace

const SelectKernel select_avx2{find, emit};

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
