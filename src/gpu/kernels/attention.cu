// Causal attention inside the sequences of a ragged batch, forward and backward, in tiles of queries and keys that fit into
// shared memory (Dao et al., arXiv 2205.14135): the scores never exist as a whole. Products are done by the tensor cores
// for bf16 and plainly for f32. Gradients are summed in one order, without atomics: keys' and values' by the block that owns
// their tile, queries' by another.
#pragma once
#include "common.cuh"

// A tile of the batch: the first row of its sequence, the sequence's length, and the tile's number in it.
struct Tile {
    u32 first, length, number;
};

// Sizes that all kernels of this file share.
struct Sizes {
    u32 heads, kv_heads, head, tokens;
    float scale;

    // Features of a head, filled up to a multiple of 16.
    __device__ u32 padded() const { return (head + 15) / 16 * 16; }
    // Distances of rows in shared memory: odd multiples of 16 bytes, so that neighbouring rows use other banks.
    __device__ u32 operand() const { return padded() + 8; }
    __device__ u32 sum() const { return padded() + 4; }
};

// c[rows, columns] (+)= a * b, on 16 by 16 tiles shared out between the block's warps. `a` is [rows, inner], or its
// transpose is where A_T; `b` [inner, columns], or its transpose is where B_T. All sizes are multiples of 16.
template <class T> struct Product {
    template <bool A_T, bool B_T>
    static __device__ void of(const T *a, u32 a_row, const T *b, u32 b_row, float *c, u32 c_row, u32 rows,
                              u32 columns, u32 inner, bool accumulate) {
        using namespace nvcuda::wmma;
        using A = fragment<matrix_a, 16, 16, 16, T, std::conditional_t<A_T, col_major, row_major>>;
        using B = fragment<matrix_b, 16, 16, 16, T, std::conditional_t<B_T, col_major, row_major>>;
        u32 across = columns / 16, warps = blockDim.x / WARP;
        for (u32 tile = threadIdx.x / WARP; tile < rows / 16 * across; tile += warps) {
            u32 row = tile / across * 16, column = tile % across * 16;
            fragment<accumulator, 16, 16, 16, float> sum;
            float *to = c + row * c_row + column;
            if (accumulate)
                load_matrix_sync(sum, to, c_row, mem_row_major);
            else
                fill_fragment(sum, 0.0f);
            for (u32 k = 0; k < inner; k += 16) {
                A left;
                B right;
                load_matrix_sync(left, A_T ? a + k * a_row + row : a + row * a_row + k, a_row);
                load_matrix_sync(right, B_T ? b + column * b_row + k : b + k * b_row + column, b_row);
                mma_sync(sum, left, right, sum);
            }
            store_matrix_sync(to, sum, c_row, mem_row_major);
        }
    }
};

template <> struct Product<float> {
    template <bool A_T, bool B_T>
    static __device__ void of(const float *a, u32 a_row, const float *b, u32 b_row, float *c, u32 c_row, u32 rows,
                              u32 columns, u32 inner, bool accumulate) {
        for (u32 at = threadIdx.x; at < rows * columns; at += blockDim.x) {
            u32 row = at / columns, column = at % columns;
            float sum = accumulate ? c[row * c_row + column] : 0;
            for (u32 k = 0; k < inner; k++)
                sum += (A_T ? a[k * a_row + row] : a[row * a_row + k]) * (B_T ? b[column * b_row + k] : b[k * b_row + column]);
            c[row * c_row + column] = sum;
        }
    }
};

// Shared memory, handed out piece by piece.
struct Shared {
    unsigned char *next;
    template <class V> __device__ V *take(u32 numbers) {
        V *piece = (V *)next;
        next += (numbers * sizeof(V) + 127) / 128 * 128;
        return piece;
    }
};

// Rows from.. of a sequence, one head of them, into shared memory; zeros beyond the sequence and the head.
template <class T>
__device__ inline void load_tile(T *to, u32 to_row, const T *from, u64 from_row, u32 rows, u32 there, u32 head, u32 padded) {
    for (u32 at = threadIdx.x; at < rows * padded; at += blockDim.x) {
        u32 row = at / padded, i = at % padded;
        to[row * to_row + i] = row < there && i < head ? from[row * from_row + i] : from_float<T>(0);
    }
}

__device__ inline u32 rows_there(const Tile &tile, u32 rows) {
    u32 from = tile.number * rows, rest = tile.length - from;
    return rest < rows ? rest : rows;
}

// The running softmax of a row of queries, which four neighbouring threads share.
struct TileSoftmax {
    float max = -INFINITY, total = 0;

    // Turns the row's scores of a tile of keys, of which it sees the first `seen`, into weights, and makes what was summed up so
    // far smaller where a larger score has come.
    template <class T>
    __device__ void see(const float *scores, T *weights, float *sums, u32 keys, u32 padded, u32 seen, float scale) {
        u32 part = threadIdx.x % 4;
        float largest = max;
        for (u32 j = part; j < seen; j += 4) largest = fmaxf(largest, scores[j] * scale);
        for (u32 lane = 1; lane < 4; lane *= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, lane));
        float old = __expf(max - largest), sum = 0;
        for (u32 j = part; j < keys; j += 4) {
            float weight = j < seen ? __expf(scores[j] * scale - largest) : 0;
            weights[j] = from_float<T>(weight);
            sum += weight;
        }
        for (u32 lane = 1; lane < 4; lane *= 2) sum += __shfl_xor_sync(ALL, sum, lane);
        total = total * old + sum;
        max = largest;
        for (u32 i = part; i < padded; i += 4) sums[i] *= old;
    }
};

// A block of 4 threads a row: a tile of queries of one head. `lse` [heads, tokens] gets the logarithm of each row's sum of
// exponentials, unless it is null.
template <class T>
__device__ void attention(const T *q, const T *k, const T *v, T *out, float *lse, const u32 *tiles, Sizes s) {
    DYNAMIC_SHARED(memory);
    u32 rows = blockDim.x / 4, padded = s.padded(), operand = s.operand(), sum_row = s.sum();
    u32 scores_row = rows + 4, weights_row = rows + 8;
    Shared shared{memory};
    T *qs = shared.take<T>(rows * operand), *ks = shared.take<T>(rows * operand), *vs = shared.take<T>(rows * operand);
    T *weights = shared.take<T>(rows * weights_row);
    float *scores = shared.take<float>(rows * scores_row), *sums = shared.take<float>(rows * sum_row);

    Tile tile{tiles[3 * blockIdx.x], tiles[3 * blockIdx.x + 1], tiles[3 * blockIdx.x + 2]};
    u32 h = blockIdx.y, kv = s.kv_heads * s.head, there = rows_there(tile, rows);
    u64 width = (u64)s.heads * s.head, from = tile.first + (u64)tile.number * rows;
    const T *keys = k + (u64)tile.first * kv + h / (s.heads / s.kv_heads) * s.head;
    const T *values = v + (u64)tile.first * kv + h / (s.heads / s.kv_heads) * s.head;
    load_tile(qs, operand, q + from * width + h * s.head, width, rows, there, s.head, padded);
    for (u32 i = threadIdx.x; i < rows * sum_row; i += blockDim.x) sums[i] = 0;

    u32 row = threadIdx.x / 4, part = threadIdx.x % 4;
    TileSoftmax softmax;
    for (u32 number = 0; number <= tile.number; number++) {
        u32 rest = rows_there({tile.first, tile.length, number}, rows);
        __syncthreads();
        load_tile(ks, operand, keys + (u64)number * rows * kv, kv, rows, rest, s.head, padded);
        load_tile(vs, operand, values + (u64)number * rows * kv, kv, rows, rest, s.head, padded);
        __syncthreads();
        Product<T>::template of<false, true>(qs, operand, ks, operand, scores, scores_row, rows, rows, padded, false);
        __syncthreads();
        u32 seen = number == tile.number ? row + 1 : rows;
        softmax.see(scores + row * scores_row, weights + row * weights_row, sums + row * sum_row, rows, padded, seen, s.scale);
        __syncthreads();
        Product<T>::template of<false, false>(weights, weights_row, vs, operand, sums, sum_row, rows, padded, rows, true);
    }
    __syncthreads();
    if (row >= there) return;
    for (u32 i = part; i < s.head; i += 4)
        out[(from + row) * width + h * s.head + i] = from_float<T>(sums[row * sum_row + i] / softmax.total);
    if (lse && part == 0) lse[(u64)h * s.tokens + from + row] = softmax.max + logf(softmax.total);
}

// delta[h, token] = the product of what came out and its gradient; a warp a token and head.
template <class T> __device__ void attention_delta(const T *out, const T *dout, float *delta, Sizes s) {
    u64 at = thread_in_grid() / WARP;
    if (at >= (u64)s.tokens * s.heads) return;
    u32 token = at / s.heads, h = at % s.heads;
    float sum = 0;
    for (u32 i = threadIdx.x % WARP; i < s.head; i += WARP) {
        u64 place = at * s.head + i;
        sum += to_float(out[place]) * to_float(dout[place]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[(u64)h * s.tokens + token] = sum;
}

// The weights of a tile of queries over a tile of keys and the gradients of their scores, from the products in `scores` and
// `changes`. Rows and keys that are not there get zeros.
template <class T>
__device__ inline void score_gradients(
    const float *scores, const float *changes, u32 scores_row, T *weights, T *gradients, u32 weights_row, u32 rows, u32 there,
    bool diagonal, const float *lse, const float *delta, float scale) {
    u32 row = threadIdx.x / 4;
    u32 seen = row >= there ? 0 : diagonal ? row + 1 : rows;
    float shift = row < there ? lse[row] : 0, mean = row < there ? delta[row] : 0;
    for (u32 j = threadIdx.x % 4; j < rows; j += 4) {
        float weight = j < seen ? __expf(scores[row * scores_row + j] * scale - shift) : 0;
        weights[row * weights_row + j] = from_float<T>(weight);
        float change = j < seen ? weight * (changes[row * scores_row + j] - mean) * scale : 0;
        gradients[row * weights_row + j] = from_float<T>(change);
    }
}

// A block: a tile of keys of one key head, over all queries that see it.
template <class T>
__device__ void attention_backward_keys(
    const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, T *dk, T *dv, const u32 *tiles,
    Sizes s) {
    DYNAMIC_SHARED(memory);
    u32 rows = blockDim.x / 4, padded = s.padded(), operand = s.operand(), sum_row = s.sum();
    u32 scores_row = rows + 4, weights_row = rows + 8;
    Shared shared{memory};
    T *qs = shared.take<T>(rows * operand), *ks = shared.take<T>(rows * operand), *vs = shared.take<T>(rows * operand);
    T *douts = shared.take<T>(rows * operand);
    T *weights = shared.take<T>(rows * weights_row), *gradients = shared.take<T>(rows * weights_row);
    float *scores = shared.take<float>(rows * scores_row), *changes = shared.take<float>(rows * scores_row);
    float *dks = shared.take<float>(rows * sum_row), *dvs = shared.take<float>(rows * sum_row);

    Tile tile{tiles[3 * blockIdx.x], tiles[3 * blockIdx.x + 1], tiles[3 * blockIdx.x + 2]};
    u32 kv_head = blockIdx.y, group = s.heads / s.kv_heads, kv = s.kv_heads * s.head, own = rows_there(tile, rows);
    u64 width = (u64)s.heads * s.head, at = (tile.first + (u64)tile.number * rows) * kv + kv_head * s.head;
    load_tile(ks, operand, k + at, kv, rows, own, s.head, padded);
    load_tile(vs, operand, v + at, kv, rows, own, s.head, padded);
    for (u32 i = threadIdx.x; i < rows * sum_row; i += blockDim.x) dks[i] = dvs[i] = 0;
    u32 last = (tile.length - 1) / rows;
    for (u32 h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (u32 number = tile.number; number <= last; number++) {
            u32 there = rows_there({tile.first, tile.length, number}, rows);
            u64 from = tile.first + (u64)number * rows;
            __syncthreads();
            load_tile(qs, operand, q + from * width + h * s.head, width, rows, there, s.head, padded);
            load_tile(douts, operand, dout + from * width + h * s.head, width, rows, there, s.head, padded);
            __syncthreads();
            Product<T>::template of<false, true>(qs, operand, ks, operand, scores, scores_row, rows, rows, padded, false);
            Product<T>::template of<false, true>(douts, operand, vs, operand, changes, scores_row, rows, rows, padded, false);
            __syncthreads();
            u64 state = (u64)h * s.tokens + from;
            score_gradients(scores, changes, scores_row, weights, gradients, weights_row, rows, there, number == tile.number,
                            lse + state, delta + state, s.scale);
            __syncthreads();
            Product<T>::template of<true, false>(weights, weights_row, douts, operand, dvs, sum_row, rows, padded, rows, true);
            Product<T>::template of<true, false>(gradients, weights_row, qs, operand, dks, sum_row, rows, padded, rows, true);
        }
    __syncthreads();
    u32 row = threadIdx.x / 4;
    if (row >= own) return;
    for (u32 i = threadIdx.x % 4; i < s.head; i += 4) {
        dk[at + (u64)row * kv + i] = from_float<T>(dks[row * sum_row + i]);
        dv[at + (u64)row * kv + i] = from_float<T>(dvs[row * sum_row + i]);
    }
}

// A block: a tile of queries of one head, over all keys that it sees.
template <class T>
__device__ void attention_backward_queries(
    const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, T *dq, const u32 *tiles, Sizes s) {
    DYNAMIC_SHARED(memory);
    u32 rows = blockDim.x / 4, padded = s.padded(), operand = s.operand(), sum_row = s.sum();
    u32 scores_row = rows + 4, weights_row = rows + 8;
    Shared shared{memory};
    T *qs = shared.take<T>(rows * operand), *ks = shared.take<T>(rows * operand), *vs = shared.take<T>(rows * operand);
    T *douts = shared.take<T>(rows * operand);
    T *weights = shared.take<T>(rows * weights_row), *gradients = shared.take<T>(rows * weights_row);
    float *scores = shared.take<float>(rows * scores_row), *changes = shared.take<float>(rows * scores_row);
    float *dqs = shared.take<float>(rows * sum_row);

    Tile tile{tiles[3 * blockIdx.x], tiles[3 * blockIdx.x + 1], tiles[3 * blockIdx.x + 2]};
    u32 h = blockIdx.y, kv = s.kv_heads * s.head, there = rows_there(tile, rows);
    u64 width = (u64)s.heads * s.head, from = tile.first + (u64)tile.number * rows;
    u64 kv_at = (u64)tile.first * kv + h / (s.heads / s.kv_heads) * s.head, state = (u64)h * s.tokens + from;
    load_tile(qs, operand, q + from * width + h * s.head, width, rows, there, s.head, padded);
    load_tile(douts, operand, dout + from * width + h * s.head, width, rows, there, s.head, padded);
    for (u32 i = threadIdx.x; i < rows * sum_row; i += blockDim.x) dqs[i] = 0;
    for (u32 number = 0; number <= tile.number; number++) {
        u32 rest = rows_there({tile.first, tile.length, number}, rows);
        u64 at = kv_at + (u64)number * rows * kv;
        __syncthreads();
        load_tile(ks, operand, k + at, kv, rows, rest, s.head, padded);
        load_tile(vs, operand, v + at, kv, rows, rest, s.head, padded);
        __syncthreads();
        Product<T>::template of<false, true>(qs, operand, ks, operand, scores, scores_row, rows, rows, padded, false);
        Product<T>::template of<false, true>(douts, operand, vs, operand, changes, scores_row, rows, rows, padded, false);
        __syncthreads();
        score_gradients(scores, changes, scores_row, weights, gradients, weights_row, rows, there, number == tile.number,
                        lse + state, delta + state, s.scale);
        __syncthreads();
        Product<T>::template of<false, false>(gradients, weights_row, ks, operand, dqs, sum_row, rows, padded, rows, true);
    }
    __syncthreads();
    u32 row = threadIdx.x / 4;
    if (row >= there) return;
    for (u32 i = threadIdx.x % 4; i < s.head; i += 4)
        dq[(from + row) * width + h * s.head + i] = from_float<T>(dqs[row * sum_row + i]);
}

#define SIZES u32 heads, u32 kv_heads, u32 head, u32 tokens, float scale
#define FOR(T)                                                                                                          \
    extern "C" KERNEL attention_##T(const T *q, const T *k, const T *v, T *out, float *lse, const u32 *tiles, SIZES) {  \
        attention(q, k, v, out, lse, tiles, {heads, kv_heads, head, tokens, scale});                                    \
    }                                                                                                                   \
    extern "C" KERNEL attention_delta_##T(const T *out, const T *dout, float *delta, SIZES) {                           \
        attention_delta(out, dout, delta, {heads, kv_heads, head, tokens, scale});                                      \
    }                                                                                                                   \
    extern "C" KERNEL attention_backward_keys_##T(const T *q, const T *k, const T *v, const T *dout, const float *lse,  \
                                                  const float *delta, T *dk, T *dv, const u32 *tiles, SIZES) {          \
        attention_backward_keys(q, k, v, dout, lse, delta, dk, dv, tiles, {heads, kv_heads, head, tokens, scale});      \
    }                                                                                                                   \
    extern "C" KERNEL attention_backward_queries_##T(const T *q, const T *k, const T *v, const T *dout,                 \
                                                     const float *lse, const float *delta, T *dq, const u32 *tiles,     \
                                                     SIZES) {                                                           \
        attention_backward_queries(q, k, v, dout, lse, delta, dq, tiles, {heads, kv_heads, head, tokens, scale});       \
    }
FOR(float)
FOR(bf16)
#undef FOR
