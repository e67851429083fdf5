// What a .cu file needs to run on the CPU: see cuda_on_cpu.py.
//
// The threads of a block are fibers of one thread of the operating system. One after the other
// runs to the next barrier, in an order that is shuffled anew each time, so that a kernel that
// lacks a barrier computes something else. The blocks come in a shuffled order too, and find
// shared memory full of NaNs.

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __shared__ static __attribute__((section("block_shared")))

struct Dimensions {
    unsigned x, y, z;
};
Dimensions gridDim, blockDim, blockIdx, threadIdx;

[[maybe_unused]] static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

[[maybe_unused]] static float __fdiv_rn(float a, float b) { return a / b; }

namespace shim {

// -- threads --------------------------------------------------------------------------------------

// The shared memory of all kernels; the linker knows where it is.
extern "C" char __start_block_shared[] __attribute__((weak));
extern "C" char __stop_block_shared[] __attribute__((weak));

enum class State { ready, waiting, finished };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Dimensions index;
    State state;
};

const size_t STACK = 1 << 16;

static std::vector<Fiber> fibers;  // kept from launch to launch
static ucontext_t scheduler;
static Fiber* running;
static const std::function<void()>* body;

static void run_body() {
    (*body)();
    running->state = State::finished;  // and on to uc_link, the scheduler
}

static void pause() {
    if (!running) abort();  // cuda_on_cpu.py says of this kernel that it has no barrier
    running->state = State::waiting;
    swapcontext(&running->context, &scheduler);
}

static void start(Fiber& fiber, Dimensions index) {
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &scheduler;
    fiber.index = index;
    fiber.state = State::ready;
    makecontext(&fiber.context, run_body, 0);
}

static Dimensions thread(unsigned i) {
    const unsigned row = i / blockDim.x;
    return {i % blockDim.x, row % blockDim.y, row / blockDim.y};
}

// Runs every thread of the current block to its end, without a fiber: for kernels without barriers.
static void run_block_at_once(std::mt19937_64& random) {
    std::vector<unsigned> order(blockDim.x * blockDim.y * blockDim.z);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    running = nullptr;
    for (unsigned i : order) {
        threadIdx = thread(i);
        (*body)();
    }
}

// Runs every thread of the current block to its end; false if a barrier was not reached by all.
static bool run_block(std::mt19937_64& random) {
    const size_t count = blockDim.x * blockDim.y * blockDim.z;
    if (__start_block_shared) {
        memset(__start_block_shared, 0xff, __stop_block_shared - __start_block_shared);
    }
    if (fibers.size() < count) fibers.resize(count);
    std::vector<Fiber*> order;
    for (unsigned i = 0; i < count; ++i) {
        start(fibers[i], thread(i));
        order.push_back(&fibers[i]);
    }
    for (;;) {
        std::shuffle(order.begin(), order.end(), random);
        size_t finished = 0;
        for (Fiber* fiber : order) {
            running = fiber;
            threadIdx = fiber->index;
            swapcontext(&scheduler, &fiber->context);
            finished += fiber->state == State::finished;
        }
        if (finished == count) return true;
        if (finished > 0) return false;
    }
}

// -- kernels --------------------------------------------------------------------------------------

// A kernel's parameter, or what a pointer points at; kind is p, f(loat), i(nteger) or s(truct).
struct Parameter {
    long long size, alignment;
    char kind;
    long long element_size;
    char element_kind;
    char element_is_constant;
};

template <typename T>
char kind_of() {
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_floating_point_v<T>) return 'f';
    return std::is_integral_v<T> ? 'i' : 's';
}

template <typename T>
Parameter parameter() {
    using Element = std::remove_pointer_t<T>;
    const char element_kind = kind_of<std::remove_cv_t<Element>>();
    return {
        sizeof(T), alignof(T), kind_of<T>(),
        sizeof(Element), element_kind, std::is_const_v<Element>
    };
}

struct Kernel {
    const char* name;
    bool has_barriers;
    std::vector<Parameter> parameters;
    std::function<void(void**)> call;  // each argument is a pointer to the parameter's value
};

template <typename... P, size_t... I>
std::function<void(void**)> caller(void (*kernel)(P...), std::index_sequence<I...>) {
    return [kernel](void** arguments) { kernel(*(P*)arguments[I]...); };
}

template <typename... P>
Kernel describe(const char* name, bool has_barriers, void (*kernel)(P...)) {
    return {name, has_barriers, {parameter<P>()...}, caller(kernel, std::index_sequence_for<P...>())};
}

extern const std::vector<Kernel> kernels;  // follows behind the .cu file

}  // namespace shim

[[maybe_unused]] static void __syncthreads() { shim::pause(); }

// -- for cuda_on_cpu.py ---------------------------------------------------------------------------

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const shim::Parameter* shim_parameters(int kernel, int* count) {
    *count = shim::kernels[kernel].parameters.size();
    return shim::kernels[kernel].parameters.data();
}

// False if not all threads of a block reached a barrier.
EXPORTED bool shim_launch(
    int kernel, const unsigned* grid, const unsigned* block, void** arguments,
    unsigned long long seed
) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const std::function<void()> call = [&] { shim::kernels[kernel].call(arguments); };
    shim::body = &call;
    std::mt19937_64 random(seed);
    std::vector<unsigned> blocks(gridDim.x * gridDim.y * gridDim.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (unsigned i : blocks) {
        blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y};
        if (!shim::kernels[kernel].has_barriers) {
            shim::run_block_at_once(random);
        } else if (!shim::run_block(random)) {
            return false;
        }
    }
    return true;
}
