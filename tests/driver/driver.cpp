// What stands for NVIDIA's driver, cuBLAS and cuRAND where there is no GPU, so that a program built with the feature `cuda` can be
// run and its calls are tried (tests/driver/run). Our kernels are run by the emulator of the tests; "device" memory is the host's.
//
// It is as late as it may be: what is asked for of a stream is done when somebody waits for it. With SCONE_DRIVER=eager all is done
// at once, with SCONE_DRIVER=crossed what is asked for of any but the first stream. So what a real GPU may do in any order is
// tried in those that hurt, and shows as wrong numbers: staging memory that is written again before its copy, a copy on a second
// stream that nobody joined, one into what a step still reads. What no GPU would take it refuses and says so: copies and products
// beyond an allocation or of memory that was given back, launches with too much shared memory, waiting while a stream is
// captured. What a kernel itself reads and writes it does not check.
//
// The signatures are those of cuda.h and cublas_v2.h; every other function that the program is linked against is refused.
#include "kernels.inc" // Our kernels, and scone_launch; made by tests/driver/run.

#include <deque>
#include <memory>
#include <mutex>
#include <set>

namespace {

enum Result { OK = 0, INVALID = 1, MEMORY = 2, NOT_FOUND = 500, NOT_READY = 600, IN_CAPTURE = 900 };

using Work = std::function<void()>;

struct Stream {
    std::deque<Work> asked;
    // How many were asked for ever, and how many of them are done.
    size_t count = 0, done = 0;
    bool captures = false, is_eager = false;
    std::vector<Work> captured;
};

struct Event {
    Stream *stream = nullptr;
    size_t count = 0;
};

struct Graph {
    std::vector<Work> work;
};

struct Function {
    std::string name;
    size_t parameters;
    unsigned shared = 48 * 1024;
};

struct Module {
    std::map<std::string, size_t> parameters;
    std::map<std::string, Function> functions;
};

struct Blas {
    Stream *stream = nullptr;
};

// A piece of memory, and when on its stream it is there.
struct Piece {
    size_t bytes;
    Stream *stream;
    size_t count;
};

constexpr size_t LIMIT_OF_SHARED = 227 * 1024;
const size_t TOTAL = (getenv("SCONE_DRIVER_MIB") ? strtoull(getenv("SCONE_DRIVER_MIB"), nullptr, 10) : 8192) << 20;
std::recursive_mutex mutex;
std::map<uintptr_t, Piece> device, host;
size_t taken = 0;
const std::string mode = getenv("SCONE_DRIVER") ? getenv("SCONE_DRIVER") : "late";

int refuse(int result, const std::string &why) {
    fprintf(stderr, "stand-in driver: %s\n", why.c_str());
    return result;
}

[[noreturn]] void fault(const std::string &why) {
    refuse(INVALID, why);
    abort();
}

// The piece that has these bytes.
const Piece *piece(const std::map<uintptr_t, Piece> &all, uintptr_t at, size_t bytes) {
    auto next = all.upper_bound(at);
    if (next == all.begin()) return nullptr;
    auto &[from, found] = *std::prev(next);
    return at + bytes <= from + found.bytes ? &found : nullptr;
}

// That a stream, when it comes to it, may use so many bytes of the device's, or of locked memory that the device reads.
void check(Stream *stream, const char *what, uintptr_t at, size_t bytes) {
    if (bytes == 0 || piece(host, at, bytes)) return;
    const Piece *found = piece(device, at, bytes);
    if (!found) fault(std::string(what) + ": " + std::to_string(bytes) + " bytes are no memory of the device");
    if (found->stream != stream && found->stream->done < found->count)
        fault(std::string(what) + ": memory of another stream, which has not come to it");
}

void run_until(Stream *stream, size_t count) {
    while (stream->done < count) {
        Work work = std::move(stream->asked.front());
        stream->asked.pop_front();
        work();
        stream->done++;
    }
}

int ask(Stream *stream, Work work) {
    if (stream->captures) {
        stream->captured.push_back(std::move(work));
        return OK;
    }
    stream->asked.push_back(std::move(work));
    stream->count++;
    if (stream->is_eager) run_until(stream, stream->count);
    return OK;
}

int wait_for(Stream *stream) {
    if (stream->captures) return refuse(IN_CAPTURE, "waited for a stream that is captured");
    run_until(stream, stream->count);
    return OK;
}

std::set<Stream *> streams;

// Numbers of a matrix, as cuBLAS names their types.
float number(const void *from, int type, size_t at) {
    switch (type) {
    case 0: return ((const float *)from)[at];
    case 2: return __half2float(((const __half *)from)[at]);
    case 14: return __bfloat162float(((const __nv_bfloat16 *)from)[at]);
    }
    fault("a matrix product of numbers of type " + std::to_string(type));
}

void put(void *to, int type, size_t at, float x) {
    switch (type) {
    case 0: ((float *)to)[at] = x; return;
    case 2: ((__half *)to)[at] = __float2half(x); return;
    case 14: ((__nv_bfloat16 *)to)[at] = __float2bfloat16(x); return;
    }
    fault("a matrix product into numbers of type " + std::to_string(type));
}

size_t width(int type) { return type == 0 ? 4 : 2; }

std::vector<float> numbers(const void *from, int type, size_t count) {
    std::vector<float> all(count);
    for (size_t i = 0; i < count; i++) all[i] = number(from, type, i);
    return all;
}

// candle's kernels, as far as training asks for them: over `count` elements, of `n` dimensions unless there are none, with the strides
// of each operand behind them.
struct Elements {
    size_t count, n;
    const size_t *info;

    size_t place(size_t i, size_t operand) const {
        if (!info) return i;
        size_t at = 0;
        for (size_t d = n; d-- > 0; i /= info[d]) at += i % info[d] * info[(1 + operand) * n + d];
        return at;
    }
};

template <class T> T value(uint64_t argument) {
    T x;
    memcpy(&x, &argument, sizeof x);
    return x;
}

// `of` is how each element comes about from those of `operands` operands, which follow; after them the result.
template <class Of> void each(const uint64_t *arguments, size_t operands, int type, int to, Of of) {
    Elements all{arguments[0], arguments[1], (const size_t *)arguments[2]};
    const uint64_t *data = arguments + 3;
    for (size_t i = 0; i < all.count; i++) {
        float x[2] = {};
        for (size_t k = 0; k < operands; k++) x[k] = number((const void *)data[k], type, all.place(i, k));
        put((void *)data[operands], to, i, of(x));
    }
}

void set(const uint64_t *arguments, int type) {
    Elements all{arguments[0], arguments[1], (const size_t *)arguments[2]};
    for (size_t i = 0; i < all.count; i++) put((void *)arguments[4], type, all.place(i, 0), number(&arguments[3], type, 0));
}

const std::map<std::string, std::function<void(const uint64_t *)>> of_candle = {
    {"affine_f32",
     [](const uint64_t *a) {
         float by = value<float>(a[5]), more = value<float>(a[6]);
         each(a, 1, 0, 0, [=](float *x) { return x[0] * by + more; });
     }},
    {"const_set_f32", [](const uint64_t *a) { set(a, 0); }},
    {"const_set_bf16", [](const uint64_t *a) { set(a, 14); }},
    {"badd_f32", [](const uint64_t *a) { each(a, 2, 0, 0, [](float *x) { return x[0] + x[1]; }); }},
    {"bmul_f32", [](const uint64_t *a) { each(a, 2, 0, 0, [](float *x) { return x[0] * x[1]; }); }},
    {"badd_bf16", [](const uint64_t *a) { each(a, 2, 14, 14, [](float *x) { return x[0] + x[1]; }); }},
    {"ucopy_f32", [](const uint64_t *a) { each(a, 1, 0, 0, [](float *x) { return x[0]; }); }},
    {"ucopy_bf16", [](const uint64_t *a) { each(a, 1, 14, 14, [](float *x) { return x[0]; }); }},
    {"cast_f32_bf16", [](const uint64_t *a) { each(a, 1, 0, 14, [](float *x) { return x[0]; }); }},
    {"cast_bf16_f32", [](const uint64_t *a) { each(a, 1, 14, 0, [](float *x) { return x[0]; }); }},
};

} // namespace

#define CALL extern "C" __attribute__((visibility("default"))) int
#define ONE_AT_A_TIME std::lock_guard<std::recursive_mutex> one(mutex)

CALL cuInit(unsigned) { return OK; }
CALL cuDriverGetVersion(int *version) { return *version = 13000, OK; }
CALL cuDeviceGetCount(int *count) { return *count = 1, OK; }
CALL cuDeviceGet(int *found, int ordinal) {
    *found = ordinal;
    return ordinal == 0 ? OK : 101;
}
CALL cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "no GPU: a stand-in"), OK; }
CALL cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = TOTAL, OK; }
CALL cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 97: *value = LIMIT_OF_SHARED; break; // Shared memory of a block, where it is asked for.
    case 75: *value = 9; break;               // Compute capability.
    case 76: *value = 0; break;
    default: *value = 1;
    }
    return OK;
}
CALL cuDevicePrimaryCtxRetain(void **context, int) { return *context = &device, OK; }
CALL cuDevicePrimaryCtxRelease_v2(int) { return OK; }
static thread_local void *bound = nullptr;
CALL cuCtxGetCurrent(void **context) { return *context = bound, OK; }
CALL cuCtxSetCurrent(void *context) { return bound = context, OK; }
CALL cuCtxSynchronize() {
    ONE_AT_A_TIME;
    for (Stream *stream : streams)
        if (int result = wait_for(stream)) return result;
    return OK;
}
CALL cuGetErrorName(int, const char **name) { return *name = "refused by the stand-in driver", OK; }
CALL cuGetErrorString(int, const char **text) { return *text = "refused by the stand-in driver", OK; }

CALL cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = &device, OK; }
CALL cuMemPoolSetAttribute(void *, int, void *) { return OK; }
CALL cuMemGetInfo_v2(size_t *free, size_t *total) {
    ONE_AT_A_TIME;
    return *free = TOTAL - taken, *total = TOTAL, OK;
}
CALL cuMemAllocAsync(uintptr_t *at, size_t bytes, Stream *stream) {
    ONE_AT_A_TIME;
    if (!bound) return refuse(201, "no context is bound");
    if (stream->captures) return refuse(IN_CAPTURE, "memory is asked for while a stream is captured");
    if (bytes > TOTAL - taken) return MEMORY;
    void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    // Full of NaNs, but for what is so large that touching it would take the machine's memory.
    if (bytes <= size_t(64) << 20) memset(memory, 0xff, bytes);
    ask(stream, [] {});
    *at = uintptr_t(memory);
    device[*at] = {bytes, stream, stream->count};
    taken += bytes;
    return OK;
}
CALL cuMemFreeAsync(uintptr_t at, Stream *stream) {
    ONE_AT_A_TIME;
    return ask(stream, [=] {
        auto found = device.find(at);
        if (found == device.end()) fault("memory is given back that is not there");
        if (found->second.bytes <= size_t(64) << 20) memset((void *)at, 0xff, found->second.bytes);
        taken -= found->second.bytes;
        device.erase(found);
        free((void *)at);
    });
}
CALL cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    ONE_AT_A_TIME;
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*at, 0xff, bytes);
    host[uintptr_t(*at)] = {bytes, nullptr, 0};
    return OK;
}
CALL cuMemFreeHost(void *at) {
    ONE_AT_A_TIME;
    auto found = host.find(uintptr_t(at));
    if (found == host.end()) fault("locked memory is given back that is not there");
    memset(at, 0xff, found->second.bytes);
    host.erase(found);
    free(at);
    return OK;
}
CALL cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, Stream *stream) {
    ONE_AT_A_TIME;
    if (!bound) return refuse(201, "no context is bound");
    std::shared_ptr<std::vector<char>> copy;
    if (!piece(host, uintptr_t(from), bytes)) {
        if (stream->captures) return refuse(IN_CAPTURE, "a copy of memory that is not locked is captured");
        copy = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
    }
    return ask(stream, [=] {
        check(stream, "a copy to the device", to, bytes);
        if (!copy && !piece(host, uintptr_t(from), bytes)) fault("a copy of locked memory that was given back meanwhile");
        memcpy((void *)to, copy ? copy->data() : from, bytes);
    });
}
CALL cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, Stream *stream) {
    ONE_AT_A_TIME;
    if (!bound) return refuse(201, "no context is bound");
    ask(stream, [=] {
        check(stream, "a copy from the device", from, bytes);
        memcpy(to, (void *)from, bytes);
    });
    // Into memory that is not locked the driver copies before it returns.
    return piece(host, uintptr_t(to), bytes) ? OK : wait_for(stream);
}
CALL cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, Stream *stream) {
    ONE_AT_A_TIME;
    return ask(stream, [=] {
        check(stream, "a copy on the device", from, bytes);
        check(stream, "a copy on the device", to, bytes);
        memmove((void *)to, (void *)from, bytes);
    });
}
CALL cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, Stream *stream) {
    ONE_AT_A_TIME;
    return ask(stream, [=] {
        check(stream, "filling", to, bytes);
        memset((void *)to, value, bytes);
    });
}

CALL cuStreamCreate(Stream **stream, unsigned) {
    ONE_AT_A_TIME;
    *stream = new Stream;
    (*stream)->is_eager = mode == "eager" || (mode == "crossed" && !streams.empty());
    streams.insert(*stream);
    return OK;
}
CALL cuStreamDestroy_v2(Stream *stream) {
    ONE_AT_A_TIME;
    run_until(stream, stream->count);
    // Kept: memory says which stream it came from.
    return OK;
}
CALL cuStreamSynchronize(Stream *stream) {
    ONE_AT_A_TIME;
    return wait_for(stream);
}
CALL cuStreamIsCapturing(Stream *stream, int *status) { return *status = stream->captures, OK; }
CALL cuEventCreate(Event **event, unsigned) { return *event = new Event, OK; }
CALL cuEventDestroy_v2(Event *event) { return delete event, OK; }
CALL cuEventRecord(Event *event, Stream *stream) {
    ONE_AT_A_TIME;
    *event = {stream, stream->count};
    return OK;
}
CALL cuEventQuery(Event *event) {
    ONE_AT_A_TIME;
    return !event->stream || event->stream->done >= event->count ? OK : NOT_READY;
}
CALL cuEventSynchronize(Event *event) {
    ONE_AT_A_TIME;
    if (event->stream) run_until(event->stream, event->count);
    return OK;
}
CALL cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    ONE_AT_A_TIME;
    Event then = *event;
    return ask(stream, [=] {
        if (then.stream) run_until(then.stream, then.count);
    });
}

// How many parameters each kernel of a PTX text has.
CALL cuModuleLoadData(Module **module, const char *text) {
    ONE_AT_A_TIME;
    auto found = std::make_unique<Module>();
    const char *at = text;
    while ((at = strstr(at, ".entry "))) {
        at += strlen(".entry ");
        const char *open = strpbrk(at, "( \t\n"), *end = strchr(at, ')');
        if (!open || !end) return refuse(INVALID, "this is no PTX");
        size_t count = 0;
        for (const char *next = at; (next = strstr(next, ".param")) && next < end; next++) count++;
        found->parameters[std::string(at, open)] = count;
    }
    *module = found.release();
    return OK;
}
CALL cuModuleUnload(Module *module) { return delete module, OK; }
CALL cuModuleGetFunction(Function **function, Module *module, const char *name) {
    ONE_AT_A_TIME;
    auto found = module->parameters.find(name);
    if (found == module->parameters.end()) return refuse(NOT_FOUND, std::string("the module has no kernel ") + name);
    *function = &module->functions.try_emplace(name, Function{name, found->second}).first->second;
    return OK;
}
CALL cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != 8) return OK;
    if (size_t(value) > LIMIT_OF_SHARED) return refuse(INVALID, function->name + ": too much shared memory");
    return function->shared = unsigned(value), OK;
}
CALL cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned block, unsigned by, unsigned bz,
                    unsigned shared, Stream *stream, void **arguments, void **) {
    ONE_AT_A_TIME;
    if (!bound) return refuse(201, "no context is bound");
    if (!x || !y || !z || y > 65535 || z > 65535 || x > 0x7fffffffu || !block || block > 1024 || by != 1 || bz != 1)
        return refuse(INVALID, function->name + ": no such grid");
    if (shared > function->shared) return refuse(INVALID, function->name + ": more shared memory than it is allowed");
    // Each is the lowest bytes of a number of eight.
    std::vector<uint64_t> values;
    for (size_t i = 0; i < function->parameters; i++) values.push_back(*(const uint64_t *)arguments[i]);
    std::string name = function->name;
    auto other = of_candle.find(name);
    if (other != of_candle.end()) return ask(stream, [=] { other->second(values.data()); });
    return ask(stream, [=]() mutable {
        std::vector<void *> pointers;
        for (uint64_t &value : values) pointers.push_back(&value);
        pointers.push_back(nullptr);
        unsigned grid[] = {x, y, z};
        int status = scone_launch(name.c_str(), grid, block, shared, pointers.data(), 0);
        if (status) fault(name + (status == 2 ? ": a kernel that the stand-in has not" : ": the emulator fails"));
    });
}

CALL cuStreamBeginCapture_v2(Stream *stream, int) {
    ONE_AT_A_TIME;
    if (stream->captures) return refuse(IN_CAPTURE, "a stream is captured twice");
    return stream->captures = true, OK;
}
CALL cuStreamEndCapture(Stream *stream, Graph **graph) {
    ONE_AT_A_TIME;
    if (!stream->captures) return refuse(IN_CAPTURE, "nothing is captured");
    stream->captures = false;
    *graph = new Graph{std::move(stream->captured)};
    stream->captured.clear();
    return OK;
}
CALL cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long) {
    return *executable = new Graph(*graph), OK;
}
CALL cuGraphUpload(Graph *, Stream *) { return OK; }
CALL cuGraphLaunch(Graph *graph, Stream *stream) {
    ONE_AT_A_TIME;
    if (stream->captures) return refuse(IN_CAPTURE, "a graph is started while a stream is captured");
    // The work itself, as the graph may be gone before it is done.
    return ask(stream, [work = graph->work]() mutable {
        for (Work &one : work) one();
    });
}
CALL cuGraphExecDestroy(Graph *graph) { return delete graph, OK; }
CALL cuGraphDestroy(Graph *graph) { return delete graph, OK; }

CALL cublasCreate_v2(Blas **blas) { return *blas = new Blas, OK; }
CALL cublasDestroy_v2(Blas *blas) { return delete blas, OK; }
CALL cublasSetStream_v2(Blas *blas, Stream *stream) { return blas->stream = stream, OK; }
CALL cublasGemmEx(Blas *blas, int turn_a, int turn_b, int m, int n, int k, const float *alpha, const void *a, int a_type, int lda,
                  const void *b, int b_type, int ldb, const float *beta, void *c, int c_type, int ldc, int, int) {
    ONE_AT_A_TIME;
    Stream *stream = blas->stream;
    float by = *alpha, keep = *beta;
    if (lda < (turn_a ? k : m) || ldb < (turn_b ? n : k) || ldc < m) return refuse(7, "a matrix's columns overlap");
    return ask(stream, [=] {
        size_t columns_a = turn_a ? m : k, columns_b = turn_b ? k : n;
        size_t count_a = (columns_a - 1) * lda + (turn_a ? k : m), count_b = (columns_b - 1) * ldb + (turn_b ? n : k);
        size_t count_c = size_t(n - 1) * ldc + m;
        check(stream, "a product", uintptr_t(a), count_a * width(a_type));
        check(stream, "a product", uintptr_t(b), count_b * width(b_type));
        check(stream, "a product", uintptr_t(c), count_c * width(c_type));
        std::vector<float> left = numbers(a, a_type, count_a), right = numbers(b, b_type, count_b);
        for (int column = 0; column < n; column++)
            for (int row = 0; row < m; row++) {
                float sum = 0;
                for (int i = 0; i < k; i++)
                    sum += left[turn_a ? size_t(row) * lda + i : size_t(i) * lda + row] *
                           right[turn_b ? size_t(i) * ldb + column : size_t(column) * ldb + i];
                size_t place = size_t(column) * ldc + row;
                put(c, c_type, place, by * sum + (keep != 0 ? keep * number(c, c_type, place) : 0));
            }
    });
}

CALL curandCreateGenerator(void **generator, int) { return *generator = &device, OK; }
CALL curandDestroyGenerator(void *) { return OK; }
CALL curandSetStream(void *, Stream *) { return OK; }
CALL curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return OK; }
