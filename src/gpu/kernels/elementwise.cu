#include "common.cuh"

template <class T> __device__ void add(const T *x, const T *y, T *sum, u64 n) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) sum[i] = from_float<T>(to_float(x[i]) + to_float(y[i]));
}

__device__ inline float sigmoid(float x) { return 1 / (1 + __expf(-x)); }

// silu(gate) * up
template <class T> __device__ void swiglu(const T *gate, const T *up, T *y, u64 n) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) {
        float g = to_float(gate[i]);
        y[i] = from_float<T>(g * sigmoid(g) * to_float(up[i]));
    }
}

template <class T>
__device__ void swiglu_backward(const T *gate, const T *up, const T *dy, T *dgate, T *dup, u64 n) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) {
        float g = to_float(gate[i]), u = to_float(up[i]), d = to_float(dy[i]), s = sigmoid(g);
        dup[i] = from_float<T>(d * g * s);
        dgate[i] = from_float<T>(d * u * s * (1 + g * (1 - s)));
    }
}

// Turns every head of a row by the angles of the row's position; sign -1 turns back.
template <class T>
__device__ void rope(
    const T *x, T *y, const u32 *positions, const float *cos, const float *sin, u64 pairs, u32 heads, u32 half, float sign) {
    for (u64 pair = thread_in_grid(); pair < pairs; pair += threads_in_grid()) {
        u32 i = pair % half;
        u64 head = pair / half;
        u64 angle = (u64)positions[head / heads] * half + i, at = head * 2 * half + i;
        float c = cos[angle], s = sign * sin[angle], x1 = to_float(x[at]), x2 = to_float(x[at + half]);
        y[at] = from_float<T>(x1 * c - x2 * s);
        y[at + half] = from_float<T>(x2 * c + x1 * s);
    }
}

template <class From, class To> __device__ void convert(const From *x, To *y, u64 n) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) y[i] = from_float<To>(to_float(x[i]));
}
extern "C" KERNEL convert_float_bf16(const float *x, bf16 *y, u64 n) { convert(x, y, n); }
extern "C" KERNEL convert_bf16_float(const bf16 *x, float *y, u64 n) { convert(x, y, n); }
extern "C" KERNEL scale_float(float *x, float by, u64 n) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) x[i] *= by;
}
extern "C" KERNEL scale_bf16(bf16 *x, float by, u64 n) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) x[i] = from_float<bf16>(to_float(x[i]) * by);
}

#define FOR(T)                                                                                                          \
    extern "C" KERNEL add_##T(const T *x, const T *y, T *sum, u64 n) { add(x, y, sum, n); }                             \
    extern "C" KERNEL swiglu_##T(const T *gate, const T *up, T *y, u64 n) { swiglu(gate, up, y, n); }                   \
    extern "C" KERNEL swiglu_backward_##T(const T *gate, const T *up, const T *dy, T *dgate, T *dup, u64 n) {           \
        swiglu_backward(gate, up, dy, dgate, dup, n);                                                                   \
    }                                                                                                                   \
    extern "C" KERNEL rope_##T(const T *x, T *y, const u32 *positions, const float *cos, const float *sin, u64 pairs,   \
                               u32 heads, u32 half, float sign) {                                                       \
        rope(x, y, positions, cos, sin, pairs, heads, half, sign);                                                      \
    }
FOR(float)
FOR(bf16)
#undef FOR
