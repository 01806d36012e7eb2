// The file that VTK_KERNEL names, compiled for every instruction set; VTK_PICK chooses. Included once by a source file,
// inside vtkernels::cpu, after all headers. A kernel builds on convert.inl.

namespace baseline {
namespace {
#include "isa_baseline.h"
// after the vectors
#include "convert.inl"
// after the conversions
#include VTK_KERNEL
}  // namespace
}  // namespace baseline

#if defined(__x86_64__)
VTK_TARGET_AVX2
namespace avx2 {
namespace {
#include "isa_avx2.h"
// after the vectors
#include "convert.inl"
// after the conversions
#include VTK_KERNEL
}  // namespace
}  // namespace avx2
VTK_TARGET_END
VTK_TARGET_AVX512
namespace avx512 {
namespace {
#include "isa_avx512.h"
// after the vectors
#include "convert.inl"
// after the conversions
#include VTK_KERNEL
}  // namespace
}  // namespace avx512
VTK_TARGET_END
#endif
