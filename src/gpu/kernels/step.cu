// What a serving step does besides matrix products and attention. The residual stream is f32.
#include "common.cuh"

// The residual stream's rows: token rows of `tokens` [vocabulary, d], from `vocabulary` on the rows of f-grams, counted
// backwards from their end, and from AHEAD on those that were brought ahead.
template <class T>
__device__ void embed(
    const T *tokens, const float *fgrams_end, const float *ahead, const u32 *sources, float *residual, u32 vocabulary,
    u32 d) {
    constexpr u32 AHEAD = 1u << 31; // As in ops/step.rs.
    u32 source = sources[blockIdx.x];
    float *to = residual + (u64)blockIdx.x * d;
    if (source < vocabulary) {
        for (u32 i = threadIdx.x; i < d; i += blockDim.x) to[i] = to_float(tokens[(u64)source * d + i]);
        return;
    }
    const float *row = source < AHEAD ? fgrams_end - (u64)(source - vocabulary + 1) * d : ahead + (u64)(source - AHEAD) * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) to[i] = row[i];
}

// Adds `change` and `bias`, where there are any, to the residual stream, and normalises it; a block a row.
template <class T>
__device__ void add_norm(float *residual, const float *change, const float *bias, const float *w, T *x, u32 d, float eps) {
    float *row = residual + (u64)blockIdx.x * d;
    float squares = 0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        float value = row[i];
        if (change) {
            value += change[(u64)blockIdx.x * d + i] + (bias ? bias[i] : 0);
            row[i] = value;
        }
        squares += value * value;
    }
    float inverse = rsqrtf(block_sum(squares) / d + eps);
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) x[(u64)blockIdx.x * d + i] = from_float<T>(row[i] * inverse * w[i]);
}

// The shape of attention in a step.
struct Heads {
    u32 queries, keys, head;
};

// Queries, keys and values of a row, side by side: biases and norms of heads where the model has them, rotation, and into
// the cache with keys and values. A warp a head; a row whose slot is none is only filling.
template <class T>
__device__ void turn(
    T *qkv, const float *bias, const float *q_norm, const float *k_norm, const float *frequencies, const u32 *positions,
    const u32 *slots, T *keys, T *values, u32 rows, Heads heads, float eps) {
    constexpr u32 PAGE = 16, NONE = 0xffffffffu;
    u32 all = heads.queries + 2 * heads.keys, half = heads.head / 2, lane = threadIdx.x % WARP;
    u64 at = thread_in_grid() / WARP;
    if (at >= (u64)rows * all) return;
    u32 row = at / all, h = at % all;
    T *x = qkv + at * heads.head;
    bool is_query = h < heads.queries, is_key = !is_query && h < heads.queries + heads.keys;
    const float *norm = is_query ? q_norm : is_key ? k_norm : nullptr;
    float inverse = 1;
    if (norm) {
        float squares = 0;
        for (u32 i = lane; i < heads.head; i += WARP) {
            float value = to_float(x[i]) + (bias ? bias[h * heads.head + i] : 0);
            squares += value * value;
        }
        inverse = rsqrtf(warp_sum(squares) / heads.head + eps);
    }
    u32 slot = slots[row];
    u32 kv_head = is_query ? 0 : is_key ? h - heads.queries : h - heads.queries - heads.keys;
    u64 place = ((u64)(slot / PAGE) * heads.keys + kv_head) * PAGE * heads.head + slot % PAGE * heads.head;
    T *to = is_query ? x : is_key ? keys + place : values + place;
    if (slot == NONE && !is_query) return;
    for (u32 i = lane; i < half; i += WARP) {
        float x1 = to_float(x[i]), x2 = to_float(x[i + half]);
        if (bias) {
            x1 += bias[h * heads.head + i];
            x2 += bias[h * heads.head + i + half];
        }
        if (norm) {
            x1 *= inverse * norm[i];
            x2 *= inverse * norm[i + half];
        }
        if (is_query || is_key) {
            // In f32, as the reference has it, or the last digits of far positions would differ.
            float angle = (float)positions[row] * frequencies[i], s = sinf(angle), c = cosf(angle), x3 = x1;
            x1 = x1 * c - x2 * s;
            x2 = x2 * c + x3 * s;
        }
        to[i] = from_float<T>(x1);
        to[i + half] = from_float<T>(x2);
    }
}

// silu(gate) * up, where both lie side by side in a row.
template <class T> __device__ void gated(const T *wide, T *x, u32 width, u64 n) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) {
        u64 row = i / width;
        u32 column = i % width;
        float gate = to_float(wide[row * 2 * width + column]), up = to_float(wide[row * 2 * width + width + column]);
        x[i] = from_float<T>(gate / (1 + __expf(-gate)) * up);
    }
}

#define FOR(T)                                                                                                          \
    extern "C" KERNEL embed_##T(const T *tokens, const float *fgrams_end, const float *ahead, const u32 *sources,       \
                                float *residual, u32 vocabulary, u32 d) {                                               \
        embed(tokens, fgrams_end, ahead, sources, residual, vocabulary, d);                                             \
    }                                                                                                                   \
    extern "C" KERNEL add_norm_##T(float *residual, const float *change, const float *bias, const float *w, T *x,       \
                                   u32 d, float eps) {                                                                  \
        add_norm(residual, change, bias, w, x, d, eps);                                                                 \
    }                                                                                                                   \
    extern "C" KERNEL turn_##T(T *qkv, const float *bias, const float *q_norm, const float *k_norm,                     \
                               const float *frequencies, const u32 *positions, const u32 *slots, T *keys, T *values,    \
                               u32 rows, u32 q_heads, u32 kv_heads, u32 head, float eps) {                              \
        turn(qkv, bias, q_norm, k_norm, frequencies, positions, slots, keys, values, rows, {q_heads, kv_heads, head},   \
             eps);                                                                                                      \
    }                                                                                                                   \
    extern "C" KERNEL gated_##T(const T *wide, T *x, u32 width, u64 n) { gated(wide, x, width, n); }
FOR(float)
FOR(bf16)
FOR(f16)
#undef FOR
