// What the tests set in the shim, called through ctypes.
#include <cuda_shim.h>

extern "C" void shim_configure(unsigned seed, int multiprocessors) {
  shim::seed = seed;
  shim::multiprocessors = multiprocessors;
}

extern "C" long shim_launches() { return shim::launches; }
