#define MINUTELY_ISA avx512
#define MINUTELY_ISA_NAME "avx512"
#include "kernels_batch.hpp"
