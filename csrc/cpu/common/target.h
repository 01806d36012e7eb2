// Code for several instruction sets. What is compiled for one is in its namespace: baseline, avx2, avx512, and for
// pairs of bf16 avx512bf16 and avx512bf16_emulated.
#pragma once

#include "vtkernels/cpu.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own AVX-512 header
#endif

// VTK_TARGET_AVX2 .. VTK_TARGET_END: the functions between them are compiled for that instruction set. Headers are
// included before, so that no standard inline function is compiled for it and picked up by other files.
#define VTK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define VTK_TARGET(features) VTK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define VTK_TARGET_END _Pragma("clang attribute pop")
#else
#define VTK_TARGET(features) _Pragma("GCC push_options") VTK_PRAGMA(GCC target(features))
#define VTK_TARGET_END _Pragma("GCC pop_options")
#endif
#define VTK_TARGET_AVX2 VTK_TARGET("avx2,fma,f16c")
#define VTK_TARGET_AVX512 VTK_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")
#define VTK_TARGET_AVX512BF16 VTK_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,popcnt")

// VTK_PICK(name): what has this name for the instruction set in use; VTK_PICK_PAIRS: where bf16 is read in pairs;
// VTK_PICK_SHORTLIST: the first name where floats rounded to bf16 are multiplied faster than floats, or the second.
#if defined(__x86_64__)
#define VTK_PICK(name) \
  (current_isa() >= Isa::kAvx512 ? avx512::name : current_isa() == Isa::kAvx2 ? avx2::name : baseline::name)
#define VTK_PICK_PAIRS(name, dtype)                                                                       \
  ((dtype) == DType::kBFloat16 && current_isa() == Isa::kAvx512Bf16           ? avx512bf16::name          \
   : (dtype) == DType::kBFloat16 && current_isa() == Isa::kAvx512Bf16Emulated ? avx512bf16_emulated::name \
                                                                              : VTK_PICK(name))
#define VTK_PICK_SHORTLIST(shortlist, name)                                     \
  (current_isa() == Isa::kAvx512Bf16           ? avx512bf16::shortlist          \
   : current_isa() == Isa::kAvx512Bf16Emulated ? avx512bf16_emulated::shortlist \
                                               : VTK_PICK(name))
#else
#define VTK_PICK(name) (baseline::name)
#define VTK_PICK_SHORTLIST(shortlist, name) VTK_PICK(name)
#define VTK_PICK_PAIRS(name, dtype) VTK_PICK(name)
#endif
