#include "common.cuh"

// The numbers that four bits of a row stand for; src/table/int4.rs has the format.
__device__ inline float level(u32 half) {
    constexpr signed char levels[16] = {-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127};
    return levels[half & 15];
}

__device__ inline u32 half_of(const u8 *bytes, u32 i) { return bytes[i / 2] >> (4 * (i % 2)) & 15; }

// Number i of a row of d numbers, by the type of rows.
struct RowF32 {
    static __device__ float number(const u8 *row, float, u32 i, u32) { return ((const float *)row)[i]; }
};
struct RowF16 {
    static __device__ float number(const u8 *row, float, u32 i, u32) { return to_float(((const f16 *)row)[i]); }
};
struct RowBf16 {
    static __device__ float number(const u8 *row, float, u32 i, u32) { return to_float(((const bf16 *)row)[i]); }
};
struct RowInt8 {
    static __device__ float number(const u8 *row, float scale, u32 i, u32) { return scale * ((const signed char *)row)[i]; }
};
struct RowInt4 {
    static __device__ float number(const u8 *row, float scale, u32 i, u32 d) {
        float block = scale * half_of(row + (d + 1) / 2, i / 16);
        return block * level(half_of(row, i));
    }
};

// y[i] = the numbers of row ranks[i] of a table whose rows begin `stride` bytes apart; a block a row. The bytes may be far away (in the
// host's memory): they are fetched as wide as they lie, all at once, and read in shared memory.
template <class Row>
__device__ void table_rows(const u8 *rows, const float *scales, const u32 *ranks, float *y, u64 stride, u32 bytes, u32 d) {
    DYNAMIC_SHARED(shared);
    u32 rank = ranks[blockIdx.x];
    const u8 *from = rows + rank * stride;
    if (((u64)from | bytes) % 16 == 0) {
        for (u32 i = threadIdx.x; i < bytes / 16; i += blockDim.x) ((uint4 *)shared)[i] = ((const uint4 *)from)[i];
    } else if (((u64)from | bytes) % 4 == 0) {
        for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) ((u32 *)shared)[i] = ((const u32 *)from)[i];
    } else {
        for (u32 i = threadIdx.x; i < bytes; i += blockDim.x) shared[i] = from[i];
    }
    __syncthreads();
    float scale = scales ? scales[rank] : 1;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) y[(u64)blockIdx.x * d + i] = Row::number(shared, scale, i, d);
}

#define FOR(name, Row)                                                                                                  \
    extern "C" KERNEL table_rows_##name(const u8 *rows, const float *scales, const u32 *ranks, float *y, u64 stride,    \
                                        u32 bytes, u32 d) {                                                             \
        table_rows<Row>(rows, scales, ranks, y, stride, bytes, d);                                                      \
    }
FOR(f32, RowF32)
FOR(f16, RowF16)
FOR(bf16, RowBf16)
FOR(int8, RowInt8)
FOR(int4, RowInt4)
#undef FOR
