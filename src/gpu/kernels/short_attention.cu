// Attention inside short sequences, such as f-grams: a warp a query and head, row by row, all in f32.
#include "common.cuh"

constexpr u32 SHORT = 16;

// Row `row` of the weights of one query, over rows first..=row of keys of one head; `weights` has one number a key, the
// same in all lanes.
template <class T>
__device__ inline void short_weights(const T *q, const T *k, u32 count, u32 kv, u32 head, float scale, float *weights) {
    u32 lane = threadIdx.x % WARP;
    float max = -INFINITY;
    for (u32 j = 0; j < count; j++) {
        float score = 0;
        for (u32 i = lane; i < head; i += WARP) score += to_float(q[i]) * to_float(k[(u64)j * kv + i]);
        weights[j] = warp_sum(score) * scale;
        max = fmaxf(max, weights[j]);
    }
    float sum = 0;
    for (u32 j = 0; j < count; j++) {
        weights[j] = __expf(weights[j] - max);
        sum += weights[j];
    }
    for (u32 j = 0; j < count; j++) weights[j] /= sum;
}

// `places` holds, by query: the first row of its sequence and its place in it. A warp a query and head.
template <class T>
__device__ void short_attention(
    const T *q, const T *k, const T *v, T *out, const u32 *places, u32 queries, u32 heads, u32 kv_heads, u32 head, float scale) {
    u64 at = thread_in_grid() / WARP;
    if (at >= (u64)queries * heads) return;
    u32 query = at / heads, h = at % heads, lane = threadIdx.x % WARP, kv = kv_heads * head;
    u64 first = places[2 * query];
    u32 count = places[2 * query + 1] + 1, kv_at = h / (heads / kv_heads) * head;
    const T *keys = k + first * kv + kv_at, *values = v + first * kv + kv_at;
    u64 q_at = (u64)query * heads * head + h * head;
    float weights[SHORT];
    short_weights(q + q_at, keys, count, kv, head, scale, weights);
    for (u32 i = lane; i < head; i += WARP) {
        float sum = 0;
        for (u32 j = 0; j < count; j++) sum += weights[j] * to_float(values[(u64)j * kv + i]);
        out[q_at + i] = from_float<T>(sum);
    }
}

// A warp a sequence and key head; `sequences` holds, by sequence: its first row, its length, its first query, how many
// queries it has (its last rows').
template <class T>
__device__ void short_attention_backward(
    const T *q, const T *k, const T *v, const T *dout, T *dq, T *dk, T *dv, const u32 *sequences, u32 heads, u32 kv_heads,
    u32 head, float scale) {
    DYNAMIC_SHARED(shared);
    u32 sequence = blockIdx.x, kv_head = blockIdx.y, lane = threadIdx.x, kv = kv_heads * head, group = heads / kv_heads;
    u64 first = sequences[4 * sequence], first_query = sequences[4 * sequence + 2];
    u32 length = sequences[4 * sequence + 1], queries = sequences[4 * sequence + 3];
    // Each lane keeps its own features, so nothing is waited for.
    float *sum_k = (float *)shared, *sum_v = sum_k + SHORT * head;
    for (u32 i = lane; i < head; i += WARP)
        for (u32 j = 0; j < length; j++) sum_k[j * head + i] = sum_v[j * head + i] = 0;
    u64 kv_at = first * kv + kv_head * head;
    for (u32 h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (u32 query = 0; query < queries; query++) {
            u32 count = length - queries + query + 1;
            u64 q_at = (first_query + query) * heads * head + h * head;
            float weights[SHORT], changes[SHORT], mean = 0;
            short_weights(q + q_at, k + kv_at, count, kv, head, scale, weights);
            for (u32 j = 0; j < count; j++) {
                float change = 0;
                for (u32 i = lane; i < head; i += WARP)
                    change += to_float(dout[q_at + i]) * to_float(v[kv_at + (u64)j * kv + i]);
                changes[j] = warp_sum(change);
                mean += weights[j] * changes[j];
            }
            for (u32 i = lane; i < head; i += WARP) {
                float d = to_float(dout[q_at + i]), x = to_float(q[q_at + i]), sum = 0;
                for (u32 j = 0; j < count; j++) {
                    float score = weights[j] * (changes[j] - mean) * scale;
                    sum_v[j * head + i] += weights[j] * d;
                    sum_k[j * head + i] += score * x;
                    sum += score * to_float(k[kv_at + (u64)j * kv + i]);
                }
                dq[q_at + i] = from_float<T>(sum);
            }
        }
    for (u32 i = lane; i < head; i += WARP)
        for (u32 j = 0; j < length; j++) {
            dk[kv_at + (u64)j * kv + i] = from_float<T>(sum_k[j * head + i]);
            dv[kv_at + (u64)j * kv + i] = from_float<T>(sum_v[j * head + i]);
        }
}

// In a tree of tokens, where a token sees itself and its ancestors; a warp a token and head.
template <class T>
__device__ void tree_attention(
    const T *q, const T *k, const T *v, T *out, const u32 *parents, u32 tokens, u32 heads, u32 kv_heads, u32 head, float scale) {
    u64 at = thread_in_grid() / WARP;
    if (at >= (u64)tokens * heads) return;
    u32 row = at / heads, h = at % heads, lane = threadIdx.x % WARP, kv = kv_heads * head;
    u32 kv_at = h / (heads / kv_heads) * head;
    u64 q_at = (u64)row * heads * head + h * head;
    // The softmax in one walk to the root: what was summed up is made smaller where a larger score comes.
    float max = -INFINITY, sum = 0;
    constexpr u32 FEATURES = 8;
    float values[FEATURES] = {};
    for (u32 j = row;; j = parents[j]) {
        float score = 0;
        for (u32 i = lane; i < head; i += WARP) score += to_float(q[q_at + i]) * to_float(k[(u64)j * kv + kv_at + i]);
        score = warp_sum(score) * scale;
        float larger = fmaxf(max, score), old = __expf(max - larger), weight = __expf(score - larger);
        sum = sum * old + weight;
        for (u32 n = 0, i = lane; i < head; n++, i += WARP)
            values[n] = values[n] * old + weight * to_float(v[(u64)j * kv + kv_at + i]);
        max = larger;
        if (parents[j] == j) break;
    }
    for (u32 n = 0, i = lane; i < head; n++, i += WARP) out[q_at + i] = from_float<T>(values[n] / sum);
}

#define FOR(T)                                                                                                          \
    extern "C" KERNEL short_attention_##T(const T *q, const T *k, const T *v, T *out, const u32 *places, u32 queries,   \
                                          u32 heads, u32 kv_heads, u32 head, float scale) {                             \
        short_attention(q, k, v, out, places, queries, heads, kv_heads, head, scale);                                   \
    }                                                                                                                   \
    extern "C" KERNEL short_attention_backward_##T(const T *q, const T *k, const T *v, const T *dout, T *dq, T *dk,     \
                                                   T *dv, const u32 *sequences, u32 heads, u32 kv_heads, u32 head,      \
                                                   float scale) {                                                       \
        short_attention_backward(q, k, v, dout, dq, dk, dv, sequences, heads, kv_heads, head, scale);                   \
    }                                                                                                                   \
    extern "C" KERNEL tree_attention_##T(const T *q, const T *k, const T *v, T *out, const u32 *parents, u32 tokens,    \
                                         u32 heads, u32 kv_heads, u32 head, float scale) {                              \
        tree_attention(q, k, v, out, parents, tokens, heads, kv_heads, head, scale);                                    \
    }
FOR(float)
FOR(bf16)
#undef FOR
