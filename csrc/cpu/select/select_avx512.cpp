// Selection for AVX-512. Compressing to a register and storing it whole is fast everywhere; compressing stores are not.
#include <algorithm>

#include "../common/target.h"
#include "select_isa.h"
#include "vtkernels/key.h"
#if defined(__x86_64__)
VTK_TARGET_AVX512

namespace vtkernels::cpu {
namespace {

struct V {
  static constexpr int64_t kWidth = 16;

  static __mmask16 lanes(int64_t n) { return static_cast<__mmask16>(n >= kWidth ? 0xffff : (1 << n) - 1); }

  static int64_t keep(const uint32_t* keys, int64_t n, uint32_t first, uint32_t last, uint32_t* to) {
    const __m512i from = _mm512_set1_epi32(static_cast<int>(first));
    const __m512i width = _mm512_set1_epi32(static_cast<int>(last - first));
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += kWidth) {
      const __mmask16 valid = lanes(n - i);
      const __m512i key = _mm512_maskz_loadu_epi32(valid, keys + i);
      const __mmask16 in = _mm512_mask_cmple_epu32_mask(valid, _mm512_sub_epi32(key, from), width);
      _mm512_storeu_si512(to + count, _mm512_maskz_compress_epi32(in, key));
      count += __builtin_popcount(in);
    }
    return count;
  }

  static int64_t places(const uint32_t* keys, int64_t n, uint32_t first, int32_t* to) {
    const __m512i from = _mm512_set1_epi32(static_cast<int>(first));
    __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += kWidth) {
      const __mmask16 valid = lanes(n - i);
      const __mmask16 in = _mm512_mask_cmpge_epu32_mask(valid, _mm512_maskz_loadu_epi32(valid, keys + i), from);
      _mm512_storeu_si512(to + count, _mm512_maskz_compress_epi32(in, place));
      count += __builtin_popcount(in);
      place = _mm512_add_epi32(place, _mm512_set1_epi32(kWidth));
    }
    return count;
  }
};

#include "select_kernel.inl"

}  // namespace

const SelectKernel avx512::kSelect{find, emit};

}  // namespace vtkernels::cpu

VTK_TARGET_END
#endif
