// Attention over keys and values in pages of 16 positions. A page of a layer is [kv_heads, 16, head].
#include "attention.cu"

constexpr u32 PAGE = 16;
// Positions of a chunk: where chunks begin depends on the position alone, so that what a token gets does not depend on what
// runs beside it.
constexpr u32 CHUNK = 256;
// Query heads that share a pass over the keys and values.
constexpr u32 GROUP = 4;

// The running softmax of one query: its largest score, the sum of exponentials, and the weighted values.
struct Softmax {
    float max, sum, values[WIDE];

    __device__ void add(float score, float weight_sum, const float *v) {
        float larger = fmaxf(max, score);
        if (larger == -INFINITY) return;
        float old = __expf(max - larger), weight = __expf(score - larger);
        sum = sum * old + weight * weight_sum;
        for (u32 i = 0; i < WIDE; i++) values[i] = values[i] * old + weight * v[i];
        max = larger;
    }
};

// One query a sequence, or few: a block of 128 threads a query, key head and chunk. `rows` holds, by query: its row in
// `qkv`, where its sequence's pages begin in `pages`, and how many positions it sees. Each lane has 8 features of a position,
// as many lanes as a head needs work on one position. Leaves, by query, head and chunk: the largest score, the sum, and the
// weighted values [2 + head].
template <class T>
__device__ void paged_queries(
    const T *qkv, const T *keys, const T *values, const u32 *rows, const u32 *pages, float *parts, u32 stride, u32 q_heads,
    u32 kv_heads, u32 head, float scale) {
    DYNAMIC_SHARED(memory);
    u32 query = blockIdx.x, kv_head = blockIdx.y, chunk = blockIdx.z, lane = threadIdx.x % WARP;
    u32 row = rows[3 * query], length = rows[3 * query + 2], from = chunk * CHUNK;
    if (from >= length) return;
    u32 to = from + CHUNK < length ? from + CHUNK : length;
    const u32 *own = pages + rows[3 * query + 1];
    u32 lanes = 1;
    while (lanes * WIDE < head) lanes *= 2;
    u32 teams = blockDim.x / lanes, team = threadIdx.x / lanes, feature = lane % lanes * WIDE;
    u32 there = feature < head ? (head - feature < WIDE ? head - feature : WIDE) : 0;
    u32 group = q_heads / kv_heads;
    bool at_once = head % WIDE == 0;
    for (u32 first = 0; first < group; first += GROUP) {
        u32 count = group - first < GROUP ? group - first : GROUP, head_at = kv_head * group + first;
        float q[GROUP][WIDE];
        Softmax states[GROUP];
        for (u32 g = 0; g < GROUP; g++) {
            states[g] = {-INFINITY, 0, {}};
            if (g < count) load_wide(qkv + (u64)row * stride + (head_at + g) * head + feature, q[g], there, at_once);
        }
        // All teams of a warp go on as long as one of them has a position: they add up scores together.
        for (u32 begin = from; begin < to; begin += teams) {
            u32 position = begin + team;
            bool seen = position < to;
            u64 at = seen ? (((u64)own[position / PAGE] * kv_heads + kv_head) * PAGE + position % PAGE) * head + feature : 0;
            float k[WIDE], v[WIDE];
            load_wide(keys + at, k, seen ? there : 0, at_once);
            load_wide(values + at, v, seen ? there : 0, at_once);
            for (u32 g = 0; g < count; g++) {
                float score = 0;
                for (u32 i = 0; i < WIDE; i++) score += q[g][i] * k[i];
                for (u32 other = 1; other < lanes; other *= 2) score += __shfl_xor_sync(ALL, score, other);
                if (seen) states[g].add(score * scale, 1, v);
            }
        }
        // The teams' states, one after the other.
        float *shared = (float *)memory;
        u32 size = 2 + head;
        for (u32 g = 0; g < count; g++) {
            __syncthreads();
            if (feature == 0) {
                shared[team * size] = states[g].max;
                shared[team * size + 1] = states[g].sum;
            }
            for (u32 i = 0; i < there; i++) shared[team * size + 2 + feature + i] = states[g].values[i];
            __syncthreads();
            float max = -INFINITY, sum = 0;
            for (u32 i = 0; i < teams; i++) max = fmaxf(max, shared[i * size]);
            for (u32 i = 0; i < teams; i++) sum += shared[i * size + 1] * __expf(shared[i * size] - max);
            float *part = parts + (((u64)query * q_heads + head_at + g) * gridDim.z + chunk) * size;
            if (threadIdx.x == 0) {
                part[0] = max;
                part[1] = sum;
            }
            for (u32 i = threadIdx.x; i < head; i += blockDim.x) {
                float value = 0;
                for (u32 j = 0; j < teams; j++) value += shared[j * size + 2 + i] * __expf(shared[j * size] - max);
                part[2 + i] = value;
            }
        }
    }
}

// Puts the chunks of each query together; a block a query and head. `out` has the batch's rows.
template <class T>
__device__ void paged_merge(const float *parts, const u32 *rows, T *out, u32 chunks, u32 q_heads, u32 head) {
    u32 query = blockIdx.x, h = blockIdx.y, row = rows[3 * query], length = rows[3 * query + 2];
    u32 count = (length + CHUNK - 1) / CHUNK, size = 2 + head;
    const float *part = parts + ((u64)query * q_heads + h) * chunks * size;
    float max = -INFINITY, sum = 0;
    for (u32 i = 0; i < count; i++) max = fmaxf(max, part[i * size]);
    for (u32 i = 0; i < count; i++) sum += part[i * size + 1] * __expf(part[i * size] - max);
    for (u32 i = threadIdx.x; i < head; i += blockDim.x) {
        float value = 0;
        for (u32 j = 0; j < count; j++) value += part[j * size + 2 + i] * __expf(part[j * size] - max);
        // Of a row that only fills the batch there is nothing.
        out[(u64)row * q_heads * head + h * head + i] = from_float<T>(count ? value / sum : 0);
    }
}

// Rows of keys or values of consecutive positions into shared memory.
template <class T>
__device__ inline void load_pages(
    T *to, u32 to_row, const T *cache, const u32 *pages, u32 position, u32 rows, u32 there, u32 kv_head, u32 kv_heads,
    u32 head, u32 padded) {
    for (u32 at = threadIdx.x; at < rows * padded; at += blockDim.x) {
        u32 row = at / padded, i = at % padded, place = position + row;
        to[row * to_row + i] = row < there && i < head
            ? cache[(((u64)pages[place / PAGE] * kv_heads + kv_head) * PAGE + place % PAGE) * head + i]
            : from_float<T>(0);
    }
}

// Many queries of a sequence: tiles, as in training. `tiles` holds, by tile: the row in `qkv` of its first query, how many
// queries it has, the position of the first, and where the sequence's pages begin.
template <class T>
__device__ void paged_tiles(
    const T *qkv, const T *keys, const T *values, const u32 *tiles, const u32 *pages, T *out, u32 stride, Sizes s) {
    DYNAMIC_SHARED(memory);
    u32 rows = blockDim.x / 4, padded = s.padded(), operand = s.operand(), sum_row = s.sum();
    u32 scores_row = rows + 4, weights_row = rows + 8;
    Shared shared{memory};
    T *qs = shared.take<T>(rows * operand), *ks = shared.take<T>(rows * operand), *vs = shared.take<T>(rows * operand);
    T *weights = shared.take<T>(rows * weights_row);
    float *scores = shared.take<float>(rows * scores_row), *sums = shared.take<float>(rows * sum_row);

    u32 first = tiles[4 * blockIdx.x], count = tiles[4 * blockIdx.x + 1], past = tiles[4 * blockIdx.x + 2];
    const u32 *own = pages + tiles[4 * blockIdx.x + 3];
    u32 h = blockIdx.y, kv_head = h / (s.heads / s.kv_heads), end = past + count;
    load_tile(qs, operand, qkv + (u64)first * stride + h * s.head, stride, rows, count, s.head, padded);
    for (u32 i = threadIdx.x; i < rows * sum_row; i += blockDim.x) sums[i] = 0;

    u32 row = threadIdx.x / 4;
    TileSoftmax softmax;
    for (u32 begin = 0; begin < end; begin += rows) {
        u32 rest = end - begin < rows ? end - begin : rows;
        __syncthreads();
        load_pages(ks, operand, keys, own, begin, rows, rest, kv_head, s.kv_heads, s.head, padded);
        load_pages(vs, operand, values, own, begin, rows, rest, kv_head, s.kv_heads, s.head, padded);
        __syncthreads();
        Product<T>::template of<false, true>(qs, operand, ks, operand, scores, scores_row, rows, rows, padded, false);
        __syncthreads();
        // A row beyond the queries sees what the last one does; its result is thrown away.
        u32 position = past + (row < count ? row : count - 1);
        u32 seen = position < begin ? 0 : position - begin + 1 < rows ? position - begin + 1 : rows;
        softmax.see(scores + row * scores_row, weights + row * weights_row, sums + row * sum_row, rows, padded, seen, s.scale);
        __syncthreads();
        Product<T>::template of<false, false>(weights, weights_row, vs, operand, sums, sum_row, rows, padded, rows, true);
    }
    __syncthreads();
    if (row >= count) return;
    for (u32 i = threadIdx.x % 4; i < s.head; i += 4)
        out[(u64)(first + row) * s.heads * s.head + h * s.head + i] = from_float<T>(sums[row * sum_row + i] / softmax.total);
}

#define FOR(T)                                                                                                          \
    extern "C" KERNEL paged_queries_##T(const T *qkv, const T *keys, const T *values, const u32 *rows,                  \
                                        const u32 *pages, float *parts, u32 stride, u32 q_heads, u32 kv_heads,          \
                                        u32 head, float scale) {                                                        \
        paged_queries(qkv, keys, values, rows, pages, parts, stride, q_heads, kv_heads, head, scale);                   \
    }                                                                                                                   \
    extern "C" KERNEL paged_merge_##T(const float *parts, const u32 *rows, T *out, u32 chunks, u32 q_heads, u32 head) { \
        paged_merge(parts, rows, out, chunks, q_heads, head);                                                           \
    }                                                                                                                   \
    extern "C" KERNEL paged_tiles_##T(const T *qkv, const T *keys, const T *values, const u32 *tiles,                   \
                                      const u32 *pages, T *out, u32 stride, u32 q_heads, u32 kv_heads, u32 head,        \
                                      float scale) {                                                                    \
        paged_tiles(qkv, keys, values, tiles, pages, out, stride, {q_heads, kv_heads, head, 0, scale});                 \
    }
FOR(float)
FOR(bf16)
FOR(f16)
#undef FOR
