// The part of CUDA that our kernels use, on a CPU: for tests of what the kernels compute, never for speed.
//
// A block's threads are fibers that run one after another until they meet at a barrier; blocks follow each other. Shared
// memory is therefore plain static memory, filled with NaNs before each block, as a GPU does not clear it either. A barrier
// that not all threads reach, or a kernel that reads what another thread has not yet written behind a missing barrier,
// shows as a failure or as a wrong number where the order of the threads is turned round.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <csetjmp>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) unsigned char *name = emulator::dynamic_shared()

struct dim3 {
    unsigned x, y, z;
};

namespace emulator {
inline std::vector<unsigned char> dynamic_memory;

inline unsigned char *dynamic_shared() {
    auto at = uintptr_t(dynamic_memory.data());
    return dynamic_memory.data() + (at + 127) / 128 * 128 - at;
}

// Fibers are made once and run block after block: after their start they are left and entered by jumps, which take no
// system call.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::vector<unsigned char> stack;
    bool started = false, done = true;
    // How many barriers of the block, and of its warp, it has come to.
    unsigned block_barriers, warp_barriers;
};

// Of the running block; there may be more, which then rest.
inline unsigned threads;
inline std::vector<Fiber> fibers;
inline std::vector<uint64_t> exchanged;
inline jmp_buf scheduler;
inline unsigned current;
inline std::function<void()> body;
inline bool failed;

constexpr unsigned WARP_SIZE = 32;
constexpr size_t STACK = 256 * 1024;

inline void back_to_scheduler() {
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}
} // namespace emulator

// These are what the running fiber sees.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
inline void run_fiber() {
    for (;;) {
        body();
        fibers[current].done = true;
        back_to_scheduler();
    }
}

// Waits until all threads of the block, or of the warp, have come as far.
inline void wait(bool whole_block) {
    Fiber &own = fibers[current];
    unsigned reached = whole_block ? ++own.block_barriers : ++own.warp_barriers;
    unsigned from = whole_block ? 0 : current / WARP_SIZE * WARP_SIZE;
    unsigned to = whole_block ? threads : std::min(from + WARP_SIZE, threads);
    for (;;) {
        bool all = true;
        for (unsigned i = from; i < to; i++) {
            unsigned there = whole_block ? fibers[i].block_barriers : fibers[i].warp_barriers;
            if (there < reached) {
                // Who has ended will never come.
                if (fibers[i].done) failed = true;
                all = false;
            }
        }
        if (all || failed) return;
        back_to_scheduler();
    }
}

// Gives each lane the value of another lane of its warp.
template <class V> V exchange(V value, unsigned lane) {
    static_assert(sizeof(V) <= 8);
    memcpy(&exchanged[current], &value, sizeof(V));
    wait(false);
    unsigned from = current / WARP_SIZE * WARP_SIZE + lane % WARP_SIZE;
    memcpy(&value, &exchanged[std::min<size_t>(from, exchanged.size() - 1)], sizeof(V));
    wait(false);
    return value;
}

inline void make(Fiber &fiber) {
    fiber.stack.resize(STACK);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    fiber.started = false;
    makecontext(&fiber.context, run_fiber, 0);
}

// Runs a fiber until it waits or ends.
inline void enter(Fiber &fiber) {
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

// Runs one block; false if its threads did not all end. `backwards`: the last thread first.
inline bool run_block(bool backwards) {
    while (fibers.size() < threads) make(fibers.emplace_back());
    exchanged.assign(threads, 0);
    failed = false;
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].done = false;
        fibers[i].block_barriers = fibers[i].warp_barriers = 0;
    }
    for (;;) {
        bool any = false;
        for (unsigned k = 0; k < threads && !failed; k++) {
            unsigned i = backwards ? threads - 1 - k : k;
            if (fibers[i].done) continue;
            any = true;
            current = i;
            threadIdx = {i, 0, 0};
            enter(fibers[i]);
        }
        if (failed) {
            // Who is in the middle of a kernel stays there for ever.
            for (Fiber &fiber : fibers) make(fiber);
            return false;
        }
        if (!any) return true;
    }
}

inline int launch(std::function<void()> kernel, dim3 grid, unsigned block, unsigned shared, bool backwards) {
    body = std::move(kernel);
    gridDim = grid;
    blockDim = {block, 1, 1};
    threads = block;
    // Places must not move while fibers are in them.
    fibers.reserve(1024);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                dynamic_memory.assign(shared + 128, 0xff);
                if (!run_block(backwards)) return 1;
            }
    return 0;
}

using Arguments = void **;
using Kernel = std::function<int(dim3, unsigned, unsigned, Arguments, bool)>;

inline std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), Arguments arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
}

template <class... A> bool add(const char *name, void (*kernel)(A...)) {
    kernels()[name] = [kernel](dim3 grid, unsigned block, unsigned shared, Arguments arguments, bool backwards) {
        // The list ends with a null.
        for (size_t i = 0; i < sizeof...(A); i++)
            if (!arguments[i]) return 3;
        if (arguments[sizeof...(A)]) return 3;
        auto run = [=] { call(kernel, arguments, std::index_sequence_for<A...>{}); };
        return launch(run, grid, block, shared, backwards);
    };
    return true;
}
} // namespace emulator

inline void __syncthreads() { emulator::wait(true); }
inline void __syncwarp(unsigned = ~0u) { emulator::wait(false); }
template <class V> V __shfl_xor_sync(unsigned, V value, unsigned mask) {
    return emulator::exchange(value, (emulator::current % emulator::WARP_SIZE) ^ mask);
}
template <class V> V __shfl_sync(unsigned, V value, unsigned lane) { return emulator::exchange(value, lane); }

// --- numbers ---------------------------------------------------------------------------------------------------------

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __half {
    _Float16 value;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return {0x7fff};
    // To the nearest, ties to even.
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half(float x) { return {_Float16(x)}; }

struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

// --- matrix products of a warp: the warp's first lane holds the whole 16 by 16 matrices ---------------------------------

namespace nvcuda::wmma {
struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static constexpr int num_elements = 256;
    T x[256];
};

inline bool first_lane() { return emulator::current % emulator::WARP_SIZE == 0; }

template <class F> void fill_fragment(F &f, float value) {
    for (auto &x : f.x) x = value;
}
template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout> &f, const T *from, unsigned stride) {
    if (uintptr_t(from) % 32 || stride * sizeof(T) % 16) emulator::failed = true;
    emulator::wait(false);
    constexpr bool by_row = std::is_same_v<Layout, row_major>;
    if (first_lane())
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 16; c++) f.x[r * 16 + c] = by_row ? from[r * stride + c] : from[c * stride + r];
    emulator::wait(false);
}
inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, float> &f, const float *from, unsigned stride, layout_t) {
    if (uintptr_t(from) % 32 || stride % 4) emulator::failed = true;
    emulator::wait(false);
    if (first_lane())
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 16; c++) f.x[r * 16 + c] = from[r * stride + c];
    emulator::wait(false);
}
inline void store_matrix_sync(float *to, fragment<accumulator, 16, 16, 16, float> &f, unsigned stride, layout_t) {
    if (uintptr_t(to) % 32 || stride % 4) emulator::failed = true;
    emulator::wait(false);
    if (first_lane())
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 16; c++) to[r * stride + c] = f.x[r * 16 + c];
    emulator::wait(false);
}
inline float to_float_of(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float to_float_of(__half x) { return __half2float(x); }
template <class A, class B>
void mma_sync(fragment<accumulator, 16, 16, 16, float> &d, A &a, B &b, fragment<accumulator, 16, 16, 16, float> &c) {
    if (!first_lane()) return;
    for (int r = 0; r < 16; r++)
        for (int n = 0; n < 16; n++) {
            float sum = c.x[r * 16 + n];
            for (int k = 0; k < 16; k++) sum += to_float_of(a.x[r * 16 + k]) * to_float_of(b.x[k * 16 + n]);
            d.x[r * 16 + n] = sum;
        }
}
} // namespace nvcuda::wmma
