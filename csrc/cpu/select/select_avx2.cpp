// Selection for AVX2.
#include <algorithm>

#include "../common/target.h"
#include "select_isa.h"
#include "vtkernels/key.h"
#if defined(__x86_64__)
VTK_TARGET_AVX2

namespace vtkernels::cpu {
namespace {

#include "select_scalar.inl"

}  // namespace

const SelectKernel avx2::kSelect{find, emit};

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
