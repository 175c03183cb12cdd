#define MINUTELY_ISA avx2
#define MINUTELY_ISA_NAME "avx2"
#include "kernels_batch.hpp"
