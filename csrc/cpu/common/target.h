// VTK_TARGET("avx2,fma") .. VTK_TARGET_END: the functions between them are compiled for that instruction set. Headers
// are included before, so that no standard inline function is compiled for it and picked up by other files.
#pragma once

#define VTK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define VTK_TARGET(features) VTK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define VTK_TARGET_END _Pragma("clang attribute pop")
#else
#define VTK_TARGET(features) _Pragma("GCC push_options") VTK_PRAGMA(GCC target(features))
#define VTK_TARGET_END _Pragma("GCC pop_options")
#endif
