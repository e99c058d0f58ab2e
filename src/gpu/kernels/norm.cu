#include "common.cuh"

// y = x / sqrt(mean(x^2) + eps) * w, a block a row.
template <class T> __device__ void rms_norm(const T *x, const float *w, T *y, u32 d, float eps) {
    const T *row = x + (u64)blockIdx.x * d;
    float squares = 0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) squares += to_float(row[i]) * to_float(row[i]);
    float inverse = rsqrtf(block_sum(squares) / d + eps);
    for (u32 i = threadIdx.x; i < d; i += blockDim.x)
        y[(u64)blockIdx.x * d + i] = from_float<T>(to_float(row[i]) * inverse * w[i]);
}

// With r = 1 / rms: dx = r (w dy) - x r^3 / d * sum(w dy x); and the block's part of dw = sum over rows of dy x r, which
// sum_columns adds up. Each thread keeps its own features, so that the order of the sum is that of the rows.
template <class T>
__device__ void rms_norm_backward(
    const T *x, const float *w, const T *dy, T *dx, float *parts, u32 rows, u32 d, float eps) {
    DYNAMIC_SHARED(shared);
    float *dw = (float *)shared;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) dw[i] = 0;
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *xs = x + (u64)row * d, *dys = dy + (u64)row * d;
        float squares = 0, along = 0;
        for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
            float value = to_float(xs[i]);
            squares += value * value;
            along += w[i] * to_float(dys[i]) * value;
        }
        float inverse = rsqrtf(block_sum(squares) / d + eps);
        along = block_sum(along) * inverse * inverse * inverse / d;
        for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
            float value = to_float(xs[i]), change = to_float(dys[i]);
            dx[(u64)row * d + i] = from_float<T>(w[i] * change * inverse - value * along);
            dw[i] += change * value * inverse;
        }
    }
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) parts[(u64)blockIdx.x * d + i] = dw[i];
}

// sums[c] = the sum over rows of x[r, c].
extern "C" KERNEL sum_columns(const float *x, float *sums, u32 rows, u32 columns) {
    u64 column = thread_in_grid();
    if (column >= columns) return;
    float sum = 0;
    for (u32 row = 0; row < rows; row++) sum += x[(u64)row * columns + column];
    sums[column] = sum;
}

#define FOR(T)                                                                                                          \
    extern "C" KERNEL rms_norm_##T(const T *x, const float *w, T *y, u32 d, float eps) { rms_norm(x, w, y, d, eps); }   \
    extern "C" KERNEL rms_norm_backward_##T(                                                                            \
        const T *x, const float *w, const T *dy, T *dx, float *parts, u32 rows, u32 d, float eps) {                     \
        rms_norm_backward(x, w, dy, dx, parts, rows, d, eps);                                                           \
    }
FOR(float)
FOR(bf16)
#undef FOR
