// Data of a network, its working memory, and the interface between network.cpp and the code of each path (steps.inc).
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

enum Kind { INPUT, QUANTISE, TERNARY, PAD_FLOAT, FLOAT, SHORTCUT, POOL, OUTPUT };

// One step, with the fields in the order of `CStep` in networks/integer/plan.py. Channels are pitches: multiples of 16, but not of
// images.
struct Step {
    int32_t kind, source, in, out, residual, cin, cout, kernel, stride, pad, relu, levels, is_signed, scales, stage, width;
    const uint8_t* symbols;    // 2 bits a weight, see `pack_symbols` in networks/integer/plan.py
    const float* weight;       // of a float layer, (kernel * kernel * cin, cout)
    const float *scale, *negative, *bias;       // (cout); negative only with two scales
    const int32_t *offset, *negative_offset;    // (cout), zero point times the sum of the symbols, or null
};

struct Shape {
    int h, w, c;
    size_t size() const { return size_t(h) * w * c; }
};

// Memory aligned to 64 bytes that only grows; 256 bytes behind the end may be read.
template <class T>
struct Buffer {
    T* data = nullptr;
    size_t count = 0;
    void need(size_t wanted) {
        if (wanted <= count) return;
        std::free(data);
        count = 0;
        size_t bytes = (wanted * sizeof(T) + 256 + 63) / 64 * 64;
        data = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (!data) throw std::bad_alloc();
        std::memset(static_cast<void*>(data), 0, bytes);
        count = wanted;
    }
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
};

// Working memory of a thread: decoded weights of 32 channels, and a block of sums.
struct Scratch {
    Buffer<int8_t> weights, linear;
    Buffer<int32_t> sums;
};

// Working memory of a team of threads that compute the same images.
struct Work {
    std::vector<std::unique_ptr<Buffer<float>>> slots;
    Buffer<float> padded;
    Buffer<uint8_t> quantised, panel;
    Buffer<float> largest, unit;   // (steps, images): largest activation; (images): its step in the quantised input
    Buffer<int32_t> broken;        // (images): 1 if an image holds a value that is not finite
    std::vector<std::unique_ptr<Scratch>> scratch;
};

struct Network {
    std::vector<Step> steps;
    std::vector<std::unique_ptr<Work>> works;
    std::mutex lock;
    int stages() const { return steps.back().stage + 1; }
    size_t slots() const { return 2 + stages(); }
};

// What a step works on: images first .. first + count of the chunk; `total` are in the whole call.
struct Task {
    const Step* steps;
    const Shape *in, *out;      // of every step
    const float* images;        // of the whole call
    float* logits;
    Work* work;
    int chunk, origin;          // images in the chunk, index of its first one in the call
    int first, count;           // group of images within the chunk
    int parent;                 // first image of the group of the next stage, which contains this group
    int thread, threads;        // of the team
};

using RunStep = void (*)(const Task&, int step);
