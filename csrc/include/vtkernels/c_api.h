/* The CPU kernels for C, ctypes and engines without torch: one thread, dense rows. */
#pragma once

#include <stdint.h>

#define VTK_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction sets: 0 baseline, 1 avx2, 2 avx512, 3 avx512bf16, 4 avx512bf16 emulated with avx512. */
VTK_API int32_t vtk_cpu_isa(void);
VTK_API int32_t vtk_cpu_supported_isa(void);
VTK_API void vtk_cpu_limit_isa(int32_t highest);

/* scores[i] = largest cosine of token i to the prototypes. dtype: 0 float32, 1 float16, 2 bfloat16. */
VTK_API void vtk_cpu_prototype_scores(int32_t dtype, const void* tokens, int64_t n, int64_t d, const void* prototypes,
                                      int64_t p, float* scores);
VTK_API void vtk_cpu_select_topk(const float* scores, int64_t n, int64_t k, int32_t largest, int64_t* out);
/* dst row j = src row indices[j], zeros where that is outside [0, n). Returns whether one was. */
VTK_API int32_t vtk_cpu_gather(const void* src, int64_t n, int64_t row_bytes, const int64_t* indices, int64_t k,
                               void* dst);

#ifdef __cplusplus
}
#endif
