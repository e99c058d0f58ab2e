#include "common.cuh"

// From a position's logits to its token, a block a row; src/engine/sampler is the same on the CPU.

constexpr u32 NO_TOKEN = 0xffffffffu;

// How a row's token is chosen; src/gpu/ops/choose.rs writes it. Of the tokens that are left of min_p, then top_k, then top_p, the
// one at `uniform` (0 to 1) of their weight, by id. A scale of 0 takes the largest.
struct Draw {
    float scale, min_p, top_p, uniform;
    u32 top_k;
};

// Logits as numbers of the same order, without a sign.
__device__ inline u32 order_of(float x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The largest of a row, the lowest place that has it, and whether the row is a distribution; the same in every thread.
__device__ inline bool largest(const float *row, u32 n, float &best, u32 &place) {
    __shared__ float values[WARP];
    __shared__ u32 at[WARP];
    float broken = 0;
    best = -INFINITY;
    place = 0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        float value = row[i];
        if (value != value) broken = 1;
        if (value > best) {
            best = value;
            place = i;
        }
    }
    broken = block_max(broken);
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) {
        float other = __shfl_xor_sync(ALL, best, lane);
        u32 there = __shfl_xor_sync(ALL, place, lane);
        if (other > best || (other == best && there < place)) {
            best = other;
            place = there;
        }
    }
    if (threadIdx.x % WARP == 0) {
        values[threadIdx.x / WARP] = best;
        at[threadIdx.x / WARP] = place;
    }
    __syncthreads();
    best = values[0];
    place = at[0];
    for (u32 i = 1; i < blockDim.x / WARP; i++)
        if (values[i] > best || (values[i] == best && at[i] < place)) {
            best = values[i];
            place = at[i];
        }
    return broken == 0 && fabsf(best) != INFINITY;
}

// What is left of a row to draw from.
struct Left {
    const float *row;
    u32 n;
    float max, scale, min_p;
    // Logits below this, in their order, are left out.
    u32 cut;

    // The weight of a token, that of the likeliest being 1; 0 of one that is left out.
    __device__ float weight(u32 i) const {
        float weight = __expf((row[i] - max) * scale);
        return weight >= min_p && order_of(row[i]) >= cut ? weight : 0;
    }

    // How many tokens are left, or how much weight they have together.
    __device__ float total(bool counts) const {
        float sum = 0;
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
            float own = weight(i);
            sum += counts ? (own > 0 ? 1 : 0) : own;
        }
        return block_sum(sum);
    }

    // Raises the cut as far as so much is left. Equals at the cut stay together.
    __device__ void keep(float least, bool counts) {
        u32 low = cut, high = order_of(max);
        while (low < high) {
            u32 middle = low + (high - low) / 2 + 1;
            cut = middle;
            float there = total(counts);
            if (there >= least)
                low = middle;
            else
                high = middle - 1;
            if (there == least) break;
        }
        cut = low;
    }
};

// places[i] = the token that draws[i] takes from row i of x, of n logits; NO_TOKEN where they are no distribution.
extern "C" KERNEL choose(const float *x, const u32 *draws, u32 *places, u32 n) {
    __shared__ float sums[WARP];
    const float *row = x + (u64)blockIdx.x * n;
    Draw draw;
    memcpy(&draw, draws + blockIdx.x * (sizeof draw / sizeof(u32)), sizeof draw);
    float max;
    u32 place;
    bool is_fine = largest(row, n, max, place);
    if (threadIdx.x == 0) places[blockIdx.x] = is_fine ? place : NO_TOKEN;
    if (!is_fine || draw.scale == 0) return;

    Left left = {row, n, max, draw.scale, draw.min_p, order_of(-INFINITY)};
    if (draw.top_k > 0 && draw.top_k < n) left.keep(draw.top_k, true);
    if (draw.top_p < 1) left.keep(draw.top_p * left.total(false), false);

    // Each warp adds up a piece of the row; then the one in whose piece the draw falls looks for the token.
    u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    u32 piece = (n + warps * WARP - 1) / (warps * WARP) * WARP, begin = warp * piece;
    u32 end = begin + piece < n ? begin + piece : n;
    float sum = 0;
    for (u32 i = begin + lane; i < end; i += WARP) sum += left.weight(i);
    sum = warp_sum(sum);
    __syncthreads();
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    float total = 0;
    u32 last = 0;
    for (u32 i = 0; i < warps; i++) {
        total += sums[i];
        if (sums[i] > 0) last = i;
    }
    float rest = draw.uniform * total;
    u32 mine = 0;
    while (mine < last && rest >= sums[mine]) rest -= sums[mine++];
    if (warp != mine) return;
    u32 found = place;
    for (u32 from = begin; from < end; from += WARP) {
        float own = from + lane < end ? left.weight(from + lane) : 0, all = warp_sum(own);
        if (all == 0) continue;
        if (rest >= all) {
            // Beyond this one; but should it be the last, rounding has it that way, and its last token is meant.
            rest -= all;
            found = from + (u32)warp_max(own > 0 ? lane : 0);
            continue;
        }
        for (u32 other = 0; other < WARP && rest >= 0; other++) {
            float weight = __shfl_sync(ALL, own, other);
            if (weight > 0) found = from + other;
            rest -= weight;
        }
        break;
    }
    if (lane == 0) places[blockIdx.x] = found;
}
