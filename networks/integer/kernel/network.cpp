// Inference of ternary networks with integer products on a CPU: C interface, division of the work, and the four paths.
//
// Weights stay packed, 2 bits each; 32 output channels at a time are decoded to int8 into a block that stays in the cache.
// Activations are bytes, products are summed in int32. networks/integer/runtime.py calls this file, and
// networks/integer/reference.py defines its results.
#include "network.h"

#include <omp.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LVR_X86 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static void barrier() {
#pragma omp barrier
}

namespace portable {
#include "portable.inc"
}

#ifdef LVR_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "avx2.inc"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace vnni {
#include "vnni.inc"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,amx-tile,amx-int8,prefer-vector-width=512")
namespace amx {
#include "amx.inc"
}
#pragma GCC pop_options
#endif

enum Path { PORTABLE, AVX2, VNNI, AMX };

// Linux lets a process use the tiles only after it has asked (ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA).
static bool has_amx() {
#ifdef LVR_X86
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool tile = d >> 24 & 1, int8 = d >> 25 & 1;
    return tile && int8 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}

static bool has(int path) {
    if (path == PORTABLE) return true;
#ifdef LVR_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (path == AVX2) return avx2;
    const bool vnni = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (path == VNNI) return vnni;
    if (path == AMX) return vnni && __builtin_cpu_supports("avx512vbmi") && has_amx();
#endif
    return false;
}

static const RunStep RUN_STEP[] = {
    portable::run_step,
#ifdef LVR_X86
    avx2::run_step, vnni::run_step, amx::run_step,
#endif
};

static const int MOST_IMAGES = 32;               // of a group
static const size_t GROUP_BYTES = 1 << 20;       // activations of a group of images, to stay in the second-level cache

// Shapes of the input and output of each step.
static void shapes(const Network& net, int h, int w, std::vector<Shape>& in, std::vector<Shape>& out) {
    std::vector<Shape> slots(net.slots());
    Shape quantised = {}, padded = {};
    for (const Step& s : net.steps) {
        Shape from = s.kind == INPUT ? Shape{h, w, s.cin} : s.kind == TERNARY ? quantised : s.kind == FLOAT ? padded : slots[s.in];
        Shape to = {from.h, from.w, s.cout};
        if (s.kind == QUANTISE || s.kind == PAD_FLOAT) {
            to = {from.h + 2 * s.pad, from.w + 2 * s.pad, from.c};
            (s.kind == QUANTISE ? quantised : padded) = to;
        } else {
            // of a convolution, `pad` is the part of the border that it does not need
            if (s.kind == TERNARY || s.kind == FLOAT)
                to.h = (from.h - 2 * s.pad - s.kernel) / s.stride + 1, to.w = (from.w - 2 * s.pad - s.kernel) / s.stride + 1;
            if (s.kind == SHORTCUT) to.h = (from.h + s.stride - 1) / s.stride, to.w = (from.w + s.stride - 1) / s.stride;
            if (s.kind == POOL) to.h = to.w = 1;
            slots[s.out] = to;
        }
        in.push_back(from), out.push_back(to);
    }
}

// Images of the groups in which the stages are computed: powers of 2, more from stage to stage as the activations shrink.
static std::vector<int> group_sizes(const Network& net, const std::vector<Shape>& out, int images) {
    std::vector<size_t> most(net.stages(), 1);
    for (size_t i = 0; i < net.steps.size(); i++) {
        size_t& size = most[net.steps[i].stage];
        size = out[i].size() > size ? out[i].size() : size;
    }
    std::vector<int> groups;
    for (size_t size : most) {
        int group = groups.empty() ? 1 : groups.back();
        while (2 * group <= MOST_IMAGES && 9 * size * 2 * group <= GROUP_BYTES) group *= 2;
        groups.push_back(group < images ? group : images);
    }
    return groups;
}

static void reserve(Work& work, const Network& net, const std::vector<Shape>& out, const std::vector<int>& groups, int threads) {
    const int chunk = groups.back();
    while (work.slots.size() < net.slots()) work.slots.emplace_back(new Buffer<float>);
    while (work.scratch.size() < size_t(threads)) work.scratch.emplace_back(new Scratch);
    work.largest.need(net.steps.size() * chunk), work.unit.need(chunk), work.broken.need(chunk);
    for (size_t i = 0; i < net.steps.size(); i++) {
        const Step& s = net.steps[i];
        const int group = groups[s.stage], next = groups[size_t(s.stage) + 1 < groups.size() ? s.stage + 1 : s.stage];
        if (s.kind == QUANTISE) work.quantised.need(out[i].size() * group);
        else if (s.kind == PAD_FLOAT) work.padded.need(out[i].size() * group);
        else if (s.kind != OUTPUT) work.slots[s.out]->need(out[i].size() * (s.out < 2 ? group : next));
        if (s.kind != TERNARY) continue;
        const size_t rows = (size_t(s.kernel) * s.cin + 3) / 4, area = size_t(out[i].h) * out[i].w;
        work.panel.need((area * group + 128) * ((rows * s.kernel + 15) / 16 * 64));
        for (auto& scratch : work.scratch) {
            scratch->weights.need(2 * s.kernel * ((rows + 15) / 16 * 16 + 16) * 64 + 18432);
            scratch->linear.need((s.kernel * rows + 16) * 64);  // also holds a window
            scratch->sums.need(128 * 32);
        }
    }
}

// A stage for a group of images, after the stages before it for the smaller groups in it: what a stage leaves stays in the cache.
static void run_stage(const Network& net, RunStep run, const Task& task, const std::vector<int>& groups, int stage) {
    for (int first = 0; stage > 0 && first < task.count; first += groups[stage - 1]) {
        Task part = task;
        part.parent = task.first, part.first = task.first + first;
        part.count = task.count - first < groups[stage - 1] ? task.count - first : groups[stage - 1];
        run_stage(net, run, part, groups, stage - 1);
    }
    for (size_t i = 0; i < net.steps.size(); i++)
        if (net.steps[i].stage == stage) run(task, int(i));
}

static void run_chunk(const Network& net, RunStep run, const Task& task, const std::vector<int>& groups) {
    for (size_t i = task.thread; i < net.steps.size(); i += task.threads)
        std::memset(task.work->largest.data + i * task.chunk, 0, task.chunk * sizeof(float));
    if (task.threads > 1) barrier();
    run_stage(net, run, task, groups, net.stages() - 1);
}

extern "C" {

int lvr_version() { return 1; }

int lvr_has(int path) { return has(path); }

Network* lvr_new() { return new (std::nothrow) Network; }

void lvr_free(Network* net) { delete net; }

void lvr_add(Network* net, const Step* step) { net->steps.push_back(*step); }

// images (count, C, h, w) -> logits (count, K); 0, or 1 if there is not enough memory. An image is computed by one thread if there
// are as many images as threads, and by all threads otherwise.
int lvr_run(Network* net, const float* images, int count, int h, int w, float* logits, int threads, int path) {
    std::lock_guard<std::mutex> guard(net->lock);
    try {
        std::vector<Shape> in, out;
        shapes(*net, h, w, in, out);
        const bool apart = count >= threads;
        const int teams = apart ? threads : 1;
        const std::vector<int> groups = group_sizes(*net, out, (count + teams - 1) / teams);
        while (net->works.size() < size_t(teams)) net->works.emplace_back(new Work);
        for (int i = 0; i < teams; i++) reserve(*net->works[i], *net, out, groups, apart ? 1 : threads);
#pragma omp parallel num_threads(threads)
        {
            const int thread = omp_get_thread_num(), all = omp_get_num_threads();
            const int begin = apart ? int(int64_t(count) * thread / all) : 0;
            const int end = apart ? int(int64_t(count) * (thread + 1) / all) : count;
            Task task{net->steps.data(), in.data(), out.data(), images, logits, net->works[apart ? thread : 0].get(),
                      0, 0, 0, 0, 0, apart ? 0 : thread, apart ? 1 : all};
#ifdef LVR_X86
            if (path == AMX) amx::begin();
#endif
            for (int first = begin; first < end; first += groups.back()) {
                task.origin = first, task.chunk = task.count = end - first < groups.back() ? end - first : groups.back();
                run_chunk(*net, RUN_STEP[path], task, groups);
            }
#ifdef LVR_X86
            if (path == AMX) amx::end();
#endif
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}
