#include "common.cuh"

// y[i] = the row rows[i] of a [n, d] with b below it; a block a row.
template <class T> __device__ void take_rows(const T *a, const T *b, const u32 *rows, T *y, u32 n, u32 d) {
    u32 row = rows[blockIdx.x];
    const T *from = row < n ? a + (u64)row * d : b + (u64)(row - n) * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) y[(u64)blockIdx.x * d + i] = from[i];
}

// The other way: row targets[i] of da, with db below it, becomes the sum of the rows of dy at order[starts[i]..starts[i+1]],
// in that order; a block a target. A null da or db is not wanted.
template <class T>
__device__ void add_rows(
    const T *dy, const u32 *targets, const u32 *starts, const u32 *order, T *da, T *db, u32 n, u32 d) {
    u32 row = targets[blockIdx.x];
    T *to = row < n ? da : db;
    if (!to) return;
    to += (u64)(row < n ? row : row - n) * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0;
        for (u32 at = starts[blockIdx.x]; at < starts[blockIdx.x + 1]; at++) sum += to_float(dy[(u64)order[at] * d + i]);
        to[i] = from_float<T>(sum);
    }
}

#define FOR(T)                                                                                                          \
    extern "C" KERNEL take_rows_##T(const T *a, const T *b, const u32 *rows, T *y, u32 n, u32 d) {                      \
        take_rows(a, b, rows, y, n, d);                                                                                 \
    }                                                                                                                   \
    extern "C" KERNEL add_rows_##T(const T *dy, const u32 *targets, const u32 *starts, const u32 *order, T *da, T *db,  \
                                   u32 n, u32 d) {                                                                      \
        add_rows(dy, targets, starts, order, da, db, n, d);                                                             \
    }
FOR(float)
FOR(bf16)
#undef FOR
