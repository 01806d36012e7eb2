// torch's parallel_for on std::thread, which the thread sanitizer understands (it sees no barrier of OpenMP's). Linked
// into the library, where it hides torch's own. Parts are as small as allowed, so that short inputs have threads too.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {
thread_local bool inside = false;

int64_t thread_count() {
  const char* given = std::getenv("VTKERNELS_SANITIZE_THREADS");
  return given == nullptr ? 4 : std::max(1, std::atoi(given));
}
}  // namespace

extern "C" __attribute__((visibility("hidden"))) int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t,
                                                                            void (*body)(int64_t, int64_t, void*),
                                                                            void* context) {
  const int64_t count = end - begin;
  if (count <= 0) return 0;
  const int64_t parts = inside ? 1 : std::min(count, thread_count());
  if (parts == 1) {
    body(begin, end, context);
    return 0;
  }
  std::vector<std::thread> pool;
  for (int64_t i = 0; i < parts; ++i) {
    pool.emplace_back([=] {
      inside = true;
      body(begin + count * i / parts, begin + count * (i + 1) / parts, context);
    });
  }
  for (std::thread& thread : pool) thread.join();
  return 0;
}
