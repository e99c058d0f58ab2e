// What every kernel stands on. The same sources are compiled by nvcc for a GPU and, for the tests, by a C++ compiler
// against ../emulator/cuda.h, which runs a block's threads one after another on the CPU.
#pragma once

#ifdef SCONE_EMULATED
#include "../emulator/cuda.h"
#define KERNEL void
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#define KERNEL __global__ void
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;
using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

#include <type_traits>

constexpr u32 WARP = 32;
constexpr u32 ALL = 0xffffffffu;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(f16 x) { return __half2float(x); }

template <class T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }
template <> __device__ inline f16 from_float<f16>(float x) { return __float2half(x); }

// Eight neighbouring numbers, of which `there` are wanted and the others are zero. Rows whose length divides by eight begin where
// eight can be read at once.
constexpr u32 WIDE = 8;
template <class T> struct alignas(16) Eight {
    T numbers[WIDE];
};

template <class T> __device__ inline void load_wide(const T *from, float *to, u32 there, bool at_once) {
    if (at_once && there == WIDE) {
        Eight<T> eight = *(const Eight<T> *)from;
        for (u32 i = 0; i < WIDE; i++) to[i] = to_float(eight.numbers[i]);
        return;
    }
    for (u32 i = 0; i < WIDE; i++) to[i] = i < there ? to_float(from[i]) : 0;
}

// This thread's number in the whole grid, and how many threads there are.
__device__ inline u64 thread_in_grid() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline u64 threads_in_grid() { return (u64)gridDim.x * blockDim.x; }

__device__ inline float warp_sum(float x) {
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL, x, lane);
    return x;
}

__device__ inline float warp_max(float x) {
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, lane));
    return x;
}

// The sum over a block of whole warps, in one order; every thread gets it.
__device__ inline float block_sum(float x) {
    __shared__ float parts[WARP];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0;
    for (u32 i = 0; i < blockDim.x / WARP; i++) sum += parts[i];
    return sum;
}

__device__ inline float block_max(float x) {
    __shared__ float parts[WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float max = parts[0];
    for (u32 i = 1; i < blockDim.x / WARP; i++) max = fmaxf(max, parts[i]);
    return max;
}
