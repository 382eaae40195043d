// The network as its callers describe it, and the functions of the library.
#pragma once

#include <omp.h>

#include "kernels.h"

struct Shape {  // of n pictures (channels, height, width) in patches of patch x patch pixels
  int64_t n, channels, height, width, patch, c, depth, kernel, relu, threads;
  int64_t eight;  // whether evaluation multiplies matrices in 8 bits
};

struct Stem {
  const float *w, *b, *gamma, *beta;
  float *mean, *var;
  int64_t batch;
};

struct Block {  // as Paddle keeps them: (c, 1, k, k), (c), ..., (c, c, 1, 1)
  const float *w1, *b1, *gamma1, *beta1;
  float *mean1, *var1;
  const float *w2, *b2, *gamma2, *beta2;
  float *mean2, *var2;
  int64_t batch1, batch2;  // whether the statistics are the batch's, and the running ones follow
};

struct StemGradients {
  float *w, *b, *gamma, *beta;
};

struct Gradients {
  float *w1, *b1, *gamma1, *beta1, *w2, *b2, *gamma2, *beta2;
};

constexpr float EPSILON = 1e-5f, MOMENTUM = 0.9f;

// The number of threads inside, whatever it is outside: Paddle sets it to 1.
struct Threads {
  int outside = omp_get_max_threads();
  explicit Threads(int inside) { omp_set_num_threads(inside); }
  ~Threads() { omp_set_num_threads(outside); }
};

namespace {

struct Sizes {
  int n, h, w, c, cp, k, pad, hp, wp;  // the padding before a row; an even kernel has one more after it
  int channels, patch, in, inp;  // numbers of a patch, and padded
  long height, width;            // of a picture, in pixels
  long pixels, plane;            // of all feature maps; floats of a padded plane of one vector
  explicit Sizes(const Shape& s)
      : n(s.n), h(s.height / s.patch), w(s.width / s.patch), c(s.c), cp((c + PANEL - 1) / PANEL * PANEL),
        k(s.kernel), pad((k - 1) / 2), hp(h + k - 1), wp((w + TAPS - 1) / TAPS * TAPS + k - 1), channels(s.channels),
        patch(s.patch), in(channels * patch * patch), inp((in + PANEL - 1) / PANEL * PANEL), height(s.height),
        width(s.width), pixels((long)n * h * w), plane((long)hp * wp * V) {}
};

// The numbers of the patch that becomes a pixel of the feature map; `put(i, number)`.
template <class Put>
inline void patch_of(const Sizes& s, const float* images, long pixel, Put put) {
  long n = pixel / (s.h * s.w), i = pixel / s.w % s.h, j = pixel % s.w;
  int at = 0;
  for (int c = 0; c < s.channels; ++c)
    for (int y = 0; y < s.patch; ++y) {
      const float* row = images + ((n * s.channels + c) * s.height + i * s.patch + y) * s.width + j * s.patch;
      for (int x = 0; x < s.patch; ++x) put(at++, row[x]);
    }
}

}  // namespace

extern "C" {

// Floats that mixer_forward works in and, with `keep`, leaves for mixer_backward; and floats of one feature map.
int64_t mixer_memory(const Shape* shape, int64_t keep);
int64_t mixer_map(const Shape* shape);

// The way back ends with the layer `lowest`, 0 being the stem and i + 1 block i; gradients below are left as they are.
void mixer_forward(const Shape* shape, const Stem* stem, const Block* blocks, const float* images, int64_t pooled,
                   float* out, float* memory, int64_t keep);
void mixer_backward(const Shape* shape, const Stem* stem, const Block* blocks, const float* images, int64_t pooled,
                    const float* dout, float* memory, const StemGradients* stem_gradients, const Gradients* gradients,
                    float* d, int64_t lowest);

// Evaluation: floats of the prepared network, which depend on the pictures' size in nothing; its making; floats of the
// memory that network_run works in; and the run, to feature maps (n, c, h, w), or pooled to their means (n, c).
int64_t network_floats(const Shape* shape);
int64_t network_eight_is_fast();
void network_prepare(const Shape* shape, const Stem* stem, const Block* blocks, float* prepared);
int64_t network_memory(const Shape* shape);
void network_run(const Shape* shape, const float* prepared, const float* images, int64_t pooled, float* out,
                 float* memory);
}
