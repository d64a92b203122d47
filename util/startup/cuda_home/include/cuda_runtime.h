// The fields of cudaDeviceProp that CUDA 13 removed, named in functions of Jittor's helper_cuda.h
// that nothing calls: here they are others of the same type.
#pragma once
#include "_toolkit/cuda_runtime.h"
#if CUDART_VERSION >= 13000
#define computeMode maxThreadsPerBlock
#define clockRate warpSize
#endif
