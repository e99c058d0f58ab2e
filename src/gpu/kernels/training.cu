#include "common.cuh"

// Turns a row of logits into the gradient of its cross-entropy, times `scale`, and gives its loss; a block a row.
template <class T>
__device__ void cross_entropy(const float *logits, const u32 *targets, T *gradient, float *losses, u32 vocabulary, float scale) {
    const float *row = logits + (u64)blockIdx.x * vocabulary;
    float max = -INFINITY;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) max = fmaxf(max, row[i]);
    max = block_max(max);
    float sum = 0;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += __expf(row[i] - max);
    sum = block_sum(sum);
    u32 target = targets[blockIdx.x];
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + max - row[target];
    if (!gradient) return;
    float factor = scale / sum;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float share = __expf(row[i] - max) * factor - (i == target ? scale : 0);
        gradient[(u64)blockIdx.x * vocabulary + i] = from_float<T>(share);
    }
}
extern "C" KERNEL cross_entropy_float(
    const float *logits, const u32 *targets, float *gradient, float *losses, u32 vocabulary, float scale) {
    cross_entropy(logits, targets, gradient, losses, vocabulary, scale);
}
extern "C" KERNEL cross_entropy_bf16(
    const float *logits, const u32 *targets, bf16 *gradient, float *losses, u32 vocabulary, float scale) {
    cross_entropy(logits, targets, gradient, losses, vocabulary, scale);
}

// A sum of squares a block.
extern "C" KERNEL squares(const float *x, float *sums, u64 n) {
    float sum = 0;
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) sum += x[i] * x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The sum of all, times `scale`; one block.
extern "C" KERNEL sum(const float *x, float *y, u64 n, float scale) {
    float sum = 0;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *y = sum * scale;
}

// AdamW in one pass; both bias corrections are in `rate` and `epsilon`.
extern "C" KERNEL adamw(
    float *p, const float *g, float *m, float *v, u64 n, float beta1, float beta2, float rate, float epsilon, float keep,
    float scale) {
    for (u64 i = thread_in_grid(); i < n; i += threads_in_grid()) {
        float gradient = g[i] * scale;
        m[i] = beta1 * m[i] + (1 - beta1) * gradient;
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
        p[i] = p[i] * keep - rate * m[i] / (sqrtf(v[i]) + epsilon);
    }
}
