// The same source for the emulator, in the namespace of its kernels.
#define cuda cuda_emulated
#include "tests/kernels/wgmma_products.cu"  // NOLINT
