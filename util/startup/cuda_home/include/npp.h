// All that Jittor uses of NPP, a package of 150 MB: the limits of integers (cuda_limits.h).
#pragma once
#include <cstdint>
#define NPP_MIN_32U 0
#define NPP_MAX_32U UINT32_MAX
#define NPP_MIN_32S INT32_MIN
#define NPP_MAX_32S INT32_MAX
#define NPP_MIN_64U 0
#define NPP_MAX_64U UINT64_MAX
#define NPP_MIN_64S INT64_MIN
#define NPP_MAX_64S INT64_MAX
