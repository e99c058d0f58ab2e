// Products of few rows with a weight, which take as long as reading the weight, and weights in the blocks of GGUF (ggml's
// ggml-common.h and ggml-quants.c).
#include "common.cuh"

// The most rows of a product here.
constexpr u32 ROWS = 8;

__device__ inline float half_at(const u8 *bytes) {
    u32 bits = bytes[0] | (u32)bytes[1] << 8;
    u32 exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent == 0 ? fraction * (1.0f / 16777216) : ldexpf((float)(fraction | 1024), (int)exponent - 25);
    return bits >> 15 ? -value : value;
}

// 32 neighbouring numbers of a row: the `part`-th.
struct Q8_0 {
    static __device__ void decode(const u8 *row, u32 part, float *to) {
        const u8 *block = row + (u64)part * 34;
        float d = half_at(block);
        for (u32 i = 0; i < 32; i++) to[i] = d * (float)(signed char)block[2 + i];
    }
};

struct Q4_0 {
    static __device__ void decode(const u8 *row, u32 part, float *to) {
        const u8 *block = row + (u64)part * 18;
        float d = half_at(block);
        for (u32 i = 0; i < 16; i++) {
            to[i] = d * ((float)(block[2 + i] & 15) - 8);
            to[i + 16] = d * ((float)(block[2 + i] >> 4) - 8);
        }
    }
};

struct Q4_1 {
    static __device__ void decode(const u8 *row, u32 part, float *to) {
        const u8 *block = row + (u64)part * 20;
        float d = half_at(block), least = half_at(block + 2);
        for (u32 i = 0; i < 16; i++) {
            to[i] = d * (float)(block[4 + i] & 15) + least;
            to[i + 16] = d * (float)(block[4 + i] >> 4) + least;
        }
    }
};

struct Q4K {
    static __device__ void decode(const u8 *row, u32 part, float *to) {
        const u8 *block = row + (u64)(part / 8) * 144, *packed = block + 4;
        u32 i = part % 8;
        // Scales and least values of six bits: the first four of each whole in a byte, the others in two parts.
        u32 scale = i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
        u32 minimum = i < 4 ? packed[i + 4] & 63 : packed[i + 4] >> 4 | packed[i] >> 6 << 4;
        float d = half_at(block) * (float)scale, least = half_at(block + 2) * (float)minimum;
        const u8 *codes = block + 16 + i / 2 * 32;
        for (u32 l = 0; l < 32; l++) to[l] = d * (float)(codes[l] >> (4 * (i % 2)) & 15) - least;
    }
};

struct Q6K {
    static __device__ void decode(const u8 *row, u32 part, float *to) {
        const u8 *block = row + (u64)(part / 8) * 210;
        u32 i = part % 8, side = i / 4, quarter = i % 4;
        float d = half_at(block + 208);
        for (u32 l = 0; l < 32; l++) {
            u32 four = block[64 * side + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
            u32 two = block[128 + 32 * side + l] >> (2 * quarter) & 3;
            int code = (int)(four | two << 4) - 32;
            to[l] = d * (float)(signed char)block[192 + 2 * i + l / 16] * (float)code;
        }
    }
};

// Bytes of a row of so many numbers.
template <class Q> __device__ inline u64 row_bytes(u32 inputs);
template <> __device__ inline u64 row_bytes<Q8_0>(u32 inputs) { return (u64)inputs / 32 * 34; }
template <> __device__ inline u64 row_bytes<Q4_0>(u32 inputs) { return (u64)inputs / 32 * 18; }
template <> __device__ inline u64 row_bytes<Q4_1>(u32 inputs) { return (u64)inputs / 32 * 20; }
template <> __device__ inline u64 row_bytes<Q4K>(u32 inputs) { return (u64)inputs / 256 * 144; }
template <> __device__ inline u64 row_bytes<Q6K>(u32 inputs) { return (u64)inputs / 256 * 210; }

// All numbers of a weight; a thread for each 32.
template <class Q, class T> __device__ void unpack(const u8 *w, T *to, u32 inputs, u64 parts) {
    for (u64 at = thread_in_grid(); at < parts; at += threads_in_grid()) {
        float numbers[32];
        u32 across = inputs / 32;
        Q::decode(w + at / across * row_bytes<Q>(inputs), at % across, numbers);
        for (u32 i = 0; i < 32; i++) to[at * 32 + i] = from_float<T>(numbers[i]);
    }
}

template <class Y> __device__ inline void put_sums(float *sums, Y *y, u32 output, u32 stride, u32 rows) {
    for (u32 row = 0; row < ROWS; row++) {
        if (row >= rows) break;
        float sum = warp_sum(sums[row]);
        if (threadIdx.x % WARP == 0) y[(u64)row * stride + output] = from_float<Y>(sum);
    }
}

// y[row, output] = x[row] * w[output] for up to 8 rows; a warp an output. Rows of y are `stride` apart.
template <class T, class Y>
__device__ void few_rows(const T *x, const T *w, Y *y, u32 inputs, u32 outputs, u32 stride, u32 rows) {
    u64 output = thread_in_grid() / WARP;
    if (output >= outputs) return;
    float sums[ROWS] = {};
    const T *own = w + output * inputs;
    bool at_once = inputs % WIDE == 0;
    for (u32 i = threadIdx.x % WARP * WIDE; i < inputs; i += WARP * WIDE) {
        u32 there = inputs - i < WIDE ? inputs - i : WIDE;
        float numbers[WIDE], others[WIDE];
        load_wide(own + i, numbers, there, at_once);
        for (u32 row = 0; row < ROWS; row++) {
            if (row >= rows) break;
            load_wide(x + (u64)row * inputs + i, others, there, at_once);
            for (u32 j = 0; j < WIDE; j++) sums[row] += numbers[j] * others[j];
        }
    }
    put_sums(sums, y, output, stride, rows);
}

template <class Q, class T, class Y>
__device__ void few_rows_packed(const T *x, const u8 *w, Y *y, u32 inputs, u32 outputs, u32 stride, u32 rows) {
    u64 output = thread_in_grid() / WARP;
    if (output >= outputs) return;
    float sums[ROWS] = {};
    const u8 *own = w + output * row_bytes<Q>(inputs);
    for (u32 part = threadIdx.x % WARP; part < inputs / 32; part += WARP) {
        float numbers[32];
        Q::decode(own, part, numbers);
        for (u32 row = 0; row < ROWS; row++) {
            if (row >= rows) break;
            const T *from = x + (u64)row * inputs + part * 32;
            for (u32 j = 0; j < 32; j += WIDE) {
                float others[WIDE];
                load_wide(from + j, others, WIDE, true);
                for (u32 k = 0; k < WIDE; k++) sums[row] += numbers[j + k] * others[k];
            }
        }
    }
    put_sums(sums, y, output, stride, rows);
}

#define FEW(NAME, T, Y)                                                                                                 \
    extern "C" KERNEL few_rows_##NAME(const T *x, const T *w, Y *y, u32 inputs, u32 outputs, u32 stride, u32 rows) {    \
        few_rows(x, w, y, inputs, outputs, stride, rows);                                                               \
    }
FEW(float_float, float, float)
FEW(bf16_bf16, bf16, bf16)
FEW(bf16_float, bf16, float)
FEW(f16_f16, f16, f16)
FEW(f16_float, f16, float)

// Activations beside packed weights are bf16.
#define PACKED(NAME, Q)                                                                                                 \
    extern "C" KERNEL unpack_##NAME(const u8 *w, bf16 *to, u32 inputs, u64 parts) {                                     \
        unpack<Q>(w, to, inputs, parts);                                                                                \
    }                                                                                                                   \
    extern "C" KERNEL few_rows_##NAME##_bf16(const bf16 *x, const u8 *w, bf16 *y, u32 inputs, u32 outputs, u32 stride,  \
                                             u32 rows) {                                                                \
        few_rows_packed<Q>(x, w, y, inputs, outputs, stride, rows);                                                     \
    }                                                                                                                   \
    extern "C" KERNEL few_rows_##NAME##_float(const bf16 *x, const u8 *w, float *y, u32 inputs, u32 outputs,            \
                                              u32 stride, u32 rows) {                                                   \
        few_rows_packed<Q>(x, w, y, inputs, outputs, stride, rows);                                                     \
    }
PACKED(q8_0, Q8_0)
PACKED(q4_0, Q4_0)
PACKED(q4_1, Q4_1)
PACKED(q4_k, Q4K)
PACKED(q6_k, Q6K)
