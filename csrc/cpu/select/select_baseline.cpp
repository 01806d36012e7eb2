// Selection for any processor.
#include <algorithm>

#include "select_isa.h"
#include "vtkernels/key.h"

namespace vtkernels::cpu {
namespace {

#include "select_scalar.inl"

}  // namespace

const SelectKernel select_baseline{find, emit};

}  // namespace vtkernels::cpu
