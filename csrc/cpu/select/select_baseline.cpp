// Selection for any processor.
#include <algorithm>

#include "select_isa.h"
#include "vtkernels/key.h"

namespace vtkernels::cpu {
namespace {

#include "select_scalar.inl"

}  // namespace

const SelectKernel baseline::kSelect{find, emit};

}  // namespace vtkernels::cpu
