#define MINUTELY_ISA plain
#define MINUTELY_ISA_NAME "plain"
#include "kernels_batch.hpp"
