// Training: the network forward, with all that the way back needs, and backward.
//
// Inside, a feature map is (pixel, channel) with the channels padded to whole vectors of 16 floats, so that no
// loop over channels has a remainder. A block keeps its input x and both convolutions' results z for the way
// back; everything else is computed again, which costs less than the memory it would go through.

#include <vector>

#include "network.h"

namespace {

// Sums of every thread, added in the order of the threads, so that they do not depend on who was faster.
struct Sums {
  int count, threads;
  std::vector<double> values;
  Sums(int count) : count(count), threads(omp_get_max_threads()), values((size_t)count * threads) {}
  double* mine() { return values.data() + (size_t)count * omp_get_thread_num(); }
  double total(int i) const {
    double sum = 0;
    for (int t = 0; t < threads; ++t) sum += values[(size_t)count * t + i];
    return sum;
  }
};

inline void add(double* sums, vec v) {
  for (int i = 0; i < V; ++i) sums[i] += v[i];
}

// A norm: (g - mean) scale + shift. The inverse deviation is for the way back.
struct Affine {
  float *scale, *shift, *mean, *inverse;
};

struct Normed {  // of a vector of channels
  vec scale, shift, mean;
  Normed(Affine norm, int c) : scale(load(norm.scale + c)), shift(load(norm.shift + c)), mean(load(norm.mean + c)) {}
  vec operator()(vec g) const { return (g - mean) * scale + shift; }
};

struct Plan : Sizes {
  int tile;    // pixels that a thread takes through a matrix product
  long wide;   // of a row there; more than the channels, lest rows of 4 kB all fall on the same lines of the cache
  explicit Plan(const Shape& shape)
      : Sizes(shape), tile(std::clamp(40000 / std::max(cp, inp), ROWS, 112)), wide(std::max(cp, inp) + V) {}
  long map() const { return pixels * cp; }
  long saved() const { return 3 * map() + 8 * cp; }  // of a block
  long saved_stem() const { return map() + 4 * cp; }
};

// What a convolution gave, and the norm that makes the next input of it: norm(act(z)).
struct Source {
  float* z;
  Affine norm;
};

Affine affine(const Plan& s, float* p) { return {p, p + s.cp, p + 2 * s.cp, p + 3 * s.cp}; }

// Where everything is; without a way back, all blocks use the memory of one in turn.
struct Saved {
  const Plan& s;
  Source stem;
  float* blocks;
  long stride;
  Saved(float* memory, const Plan& s, bool keep)
      : s(s), stem{memory, affine(s, memory + s.map())}, blocks(memory + s.saved_stem()), stride(keep ? s.saved() : 0) {}
  float* x(int block) const { return blocks + block * stride; }
  Source mixer(int block) const { return {x(block) + s.map(), affine(s, x(block) + 3 * s.map())}; }
  Source last(int block) const {  // of a block; of the stem for block -1
    return block < 0 ? stem : Source{x(block) + 2 * s.map(), affine(s, x(block) + 3 * s.map() + 4 * s.cp)};
  }
};

// Sum and sum of squares of some values of a vector of channels. The squares are taken off the first value, so that
// a channel that hardly moves does not drown in the rounding of its mean; in double that danger is past.
struct Spread {
  vec first{}, sum{}, squares{};
  int count = 0;
  void operator+=(vec g) {
    if (!count++) first = g;
    vec off = g - first;
    sum += off;
    squares += off * off;
  }
  void add_to(double* sums, double* square_sums) const {
    for (int i = 0; i < V; ++i) {
      double off = sum[i], mean = first[i] + off / count;
      sums[i] += count * mean;
      square_sums[i] += squares[i] - off * off / count + count * mean * mean;
    }
  }
};

// `sums` are those of the batch; without them the running statistics serve.
void finish_norm(const Plan& s, const Sums* sums, const float* gamma, const float* beta,
                 float* mean, float* var, Affine out) {
  for (int c = 0; c < s.cp; ++c) {
    if (c >= s.c) {
      out.scale[c] = out.shift[c] = out.mean[c] = out.inverse[c] = 0;
      continue;
    }
    double m = mean[c], v = var[c];
    if (sums) {
      m = sums->total(c) / s.pixels;
      v = std::max(0.0, sums->total(s.cp + c) / s.pixels - m * m);
      mean[c] = MOMENTUM * mean[c] + (1 - MOMENTUM) * (float)m;
      var[c] = MOMENTUM * var[c] + (1 - MOMENTUM) * (float)v;
    }
    double inverse = 1 / std::sqrt(v + EPSILON);
    out.mean[c] = m;
    out.inverse[c] = inverse;
    out.scale[c] = gamma[c] * inverse;
    out.shift[c] = beta[c];
  }
}

Floats taps_of(const Plan& s, const float* w, bool turned) {
  Floats out = floats((size_t)s.k * s.k * s.cp);
  put_taps(w, s.c, s.cp, s.k * s.k, turned, out.get());
  return out;
}

Floats panels(const float* w, int depth, int columns, int padded_depth, long wk, long wc) {
  Floats out = floats((size_t)(columns + PANEL - 1) / PANEL * PANEL * padded_depth);
  put_panels(w, depth, columns, padded_depth, wk, wc, out.get());
  return out;
}

Floats padded(const float* values, int count, int room) {
  Floats out = floats(room);
  std::copy(values, values + count, out.get());
  return out;
}

// Depthwise half of a block: x is made of what came before, then z and the sums for its norm.
template <class Act>
void depthwise_forward(const Plan& s, const Block& block, Source before, float* x, float* z1, Sums* sums) {
  Floats taps = taps_of(s, block.w1, false), bias = padded(block.b1, s.c, s.cp);
  int vectors = s.cp / V;
#pragma omp parallel
  {
    Floats in = floats(s.plane);
    double* mine = sums ? sums->mine() : nullptr;
#pragma omp for schedule(static)
    for (long task = 0; task < (long)s.n * vectors; ++task) {
      int c = task % vectors * V;
      long first = task / vectors * s.h * s.w * s.cp + c;
      Normed norm(before.norm, c);
      for (int i = 0; i < s.h; ++i)
        for (int j = 0; j < s.w; ++j) {
          long at = first + ((long)i * s.w + j) * s.cp;
          prefetch(before.z + at + V);
          vec v = norm(Act::value(load(before.z + at)));
          store(x + at, v);
          store(&in[((long)(i + s.pad) * s.wp + j + s.pad) * V], v);
        }
      vec start = load(&bias[c]);
      Spread spread;
      for (int i = 0; i < s.h; ++i) {
        float* out = z1 + first + (long)i * s.w * s.cp;
        depthwise_row(&in[(long)i * s.wp * V], s.wp, &taps[(long)s.k * s.k * c], s.k, s.w, start, [&](int j, vec z) {
          store(out + (long)j * s.cp, z);
          if (mine) spread += Act::value(z);
        });
      }
      if (mine) spread.add_to(mine + c, mine + s.cp + c);
    }
  }
}

// A product of all pixels with a matrix in panels, plus the bias; and the sums for the norm. `fill(pixel, row)` puts the
// `depth` numbers of a pixel.
template <class Act, class Fill>
void product_forward(const Plan& s, int depth, const float* w, const float* bias, float* z, Sums* sums, Fill fill) {
#pragma omp parallel
  {
    Floats y = floats(s.tile * s.wide);
    double* mine = sums ? sums->mine() : nullptr;
#pragma omp for schedule(static)
    for (long from = 0; from < s.pixels; from += s.tile) {
      int rows = std::min<long>(s.tile, s.pixels - from);
      for (int r = 0; r < rows; ++r) fill(from + r, &y[r * s.wide]);
      for (int p = 0; p < s.cp; p += PANEL) {
        float* out = z + from * s.cp + p;
        panel_product(row_major(y.get(), s.wide), w + (size_t)p * depth, rows, depth, out, s.cp, false);
        for (int c = 0; c < PANEL; c += V) {
          vec start = load(bias + p + c);
          Spread spread;
          for (int r = 0; r < rows; ++r) {
            vec v = load(out + (long)r * s.cp + c) + start;
            store(out + (long)r * s.cp + c, v);
            if (mine) spread += Act::value(v);
          }
          if (mine) spread.add_to(mine + p + c, mine + s.cp + p + c);
        }
      }
    }
  }
}

// Pointwise half: z2 = W (x + norm1(act(z1))) + b.
template <class Act>
void pointwise_forward(const Plan& s, const Block& block, const float* x, Source mixer, float* z2, Sums* sums) {
  Floats w = panels(block.w2, s.c, s.c, s.cp, 1, s.c), bias = padded(block.b2, s.c, s.cp);
  product_forward<Act>(s, s.cp, w.get(), bias.get(), z2, sums, [&](long pixel, float* y) {
    for (int c = 0; c < s.cp; c += V) {
      long at = pixel * s.cp + c;
      store(y + c, load(x + at) + Normed(mixer.norm, c)(Act::value(load(mixer.z + at))));
    }
  });
}

template <class Act>
void stem_forward(const Plan& s, const Stem& stem, const float* images, float* z, Sums* sums) {
  Floats w = panels(stem.w, s.in, s.c, s.inp, 1, s.in), bias = padded(stem.b, s.c, s.cp);
  product_forward<Act>(s, s.inp, w.get(), bias.get(), z, sums, [&](long pixel, float* y) {
    patch_of(s, images, pixel, [&](int i, float v) { y[i] = v; });
  });
}

// A norm's way back: dg = a (dy - c) + b (g - mean) for every channel; c is the mean of dy, which often is most of it.
struct NormBack {
  Floats a, b, c;
  const float* mean;
  struct Channels {
    vec a, b, c, mean;
    vec operator()(vec dy, vec g) const { return a * (dy - c) + b * (g - mean); }
  };
  Channels at(int i) const { return {load(&a[i]), load(&b[i]), load(&c[i]), load(mean + i)}; }
};

// From the sums of dy and of dy (g - mean); the gradients of gamma and beta come with it.
NormBack norm_back(const Plan& s, const Sums& sums, Affine norm, bool batch, float* gamma, float* beta) {
  NormBack out = {floats(s.cp), floats(s.cp), floats(s.cp), norm.mean};
  for (int c = 0; c < s.c; ++c) {
    double dy = sums.total(c), normed = sums.total(s.cp + c) * norm.inverse[c];
    gamma[c] = normed;
    beta[c] = dy;
    out.a[c] = norm.scale[c];
    if (batch) {
      out.b[c] = -norm.scale[c] * norm.inverse[c] * normed / s.pixels;
      out.c[c] = dy / s.pixels;
    }
  }
  return out;
}

// The sums that norm_back wants, over all pixels.
template <class Act>
void norm_sums(const Plan& s, const float* dy, Source source, Sums& sums) {
#pragma omp parallel
  {
    double* mine = sums.mine();
#pragma omp for schedule(static)
    for (long from = 0; from < s.pixels; from += s.tile) {
      int rows = std::min<long>(s.tile, s.pixels - from);
      for (int c = 0; c < s.cp; c += V) {
        vec mean = load(source.norm.mean + c), sum{}, products{};
        for (int r = 0; r < rows; ++r) {
          long at = (from + r) * s.cp + c;
          vec d = load(dy + at);
          sum += d;
          products += d * (Act::value(load(source.z + at)) - mean);
        }
        add(mine + c, sum);
        add(mine + s.cp + c, products);
      }
    }
  }
}

// Adds what the threads found, (input panel, output, 32) each, to (output, input).
void gather(const Plan& s, const float* dw, int threads, int inputs, float* out) {
  size_t each = (size_t)(inputs + PANEL - 1) / PANEL * PANEL * s.cp;
#pragma omp parallel for schedule(static)
  for (int o = 0; o < s.c; ++o)
    for (int i = 0; i < inputs; ++i) {
      float sum = 0;
      for (int t = 0; t < threads; ++t) sum += dw[each * t + ((size_t)(i / PANEL) * s.cp + o) * PANEL + i % PANEL];
      out[(size_t)o * inputs + i] = sum;
    }
}

// From dx of the block after to dy of the residual sum, in place; gradients of W and b; the sums for norm1's way back.
template <class Act>
void pointwise_backward(const Plan& s, const Block& block, const float* x, Source mixer, const float* z2,
                        const NormBack& norm, float* d, const Gradients& gradients, Sums& sums) {
  Floats w = panels(block.w2, s.c, s.c, s.cp, s.c, 1);
  Sums bias(s.cp);
  int threads = omp_get_max_threads();
  size_t square = (size_t)s.cp * s.cp;
  Floats dw = floats(square * threads);
#pragma omp parallel
  {
    size_t tile = (size_t)s.tile * s.cp;
    Floats dz = floats(s.tile * s.wide), y = floats(tile), g1 = floats(tile), bias_sums = floats(s.cp);
    double *mine = sums.mine(), *mine_bias = bias.mine();
    float* mine_dw = &dw[square * omp_get_thread_num()];
#pragma omp for schedule(static)
    for (long from = 0; from < s.pixels; from += s.tile) {
      int rows = std::min<long>(s.tile, s.pixels - from);
      float* dy = d + from * s.cp;
      std::fill_n(bias_sums.get(), s.cp, 0.f);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < s.cp; c += V) {
          Normed norm1(mixer.norm, c);
          long here = (long)r * s.cp + c, at = from * s.cp + here;
          vec g2, slope = Act::slope(load(z2 + at), g2);
          vec v = slope * norm.at(c)(load(d + at), g2);
          store(&dz[r * s.wide + c], v);
          store(&bias_sums[c], load(&bias_sums[c]) + v);
          vec g = Act::value(load(mixer.z + at));
          store(&g1[here], g - norm1.mean);
          store(&y[((size_t)(c / PANEL) * s.tile + r) * PANEL + c % PANEL], load(x + at) + norm1(g));
        }
      for (int c = 0; c < s.cp; c += V) add(mine_bias + c, load(&bias_sums[c]));
      for (int p = 0; p < s.cp; p += PANEL) {
        panel_product(transposed(dz.get(), s.wide), &y[(size_t)p * s.tile], s.cp, rows, &mine_dw[(size_t)p * s.cp], PANEL, true);
        panel_product(row_major(dz.get(), s.wide), &w[(size_t)p * s.cp], rows, s.cp, dy + p, s.cp, false);
        for (int c = p; c < p + PANEL; c += V) {
          vec sum{}, products{};
          for (int r = 0; r < rows; ++r) {
            vec v = load(dy + (long)r * s.cp + c);
            sum += v;
            products += v * load(&g1[(long)r * s.cp + c]);
          }
          add(mine + c, sum);
          add(mine + s.cp + c, products);
        }
      }
    }
  }
  gather(s, dw.get(), threads, s.c, gradients.w2);
  for (int c = 0; c < s.c; ++c) gradients.b2[c] = bias.total(c);
}

// From dy of the residual sum to dx of the block, in place; gradients of the depthwise weights and bias; the sums
// for the norm2 of the block before.
template <class Act>
void depthwise_backward(const Plan& s, const Block& block, Source before, const float* x, const float* z1,
                        const NormBack& norm, float* d, const Gradients& gradients, Sums& sums) {
  Floats w = taps_of(s, block.w1, true);
  int taps = s.k * s.k, after = s.k - 1 - s.pad, vectors = s.cp / V;
  Sums dw((taps + 1) * s.cp);
#pragma omp parallel
  {
    Floats padded_x = floats(s.plane), padded_dz = floats(s.plane);
    double *mine = dw.mine(), *mine_sums = sums.mine();
#pragma omp for schedule(static)
    for (long task = 0; task < (long)s.n * vectors; ++task) {
      int c = task % vectors * V;
      long first = task / vectors * s.h * s.w * s.cp + c;
      NormBack::Channels back = norm.at(c);
      vec bias{};
      for (int i = 0; i < s.h; ++i)
        for (int j = 0; j < s.w; ++j) {
          long at = first + ((long)i * s.w + j) * s.cp;
          for (const float* map : {z1, (const float*)d, x, (const float*)before.z}) prefetch(map + at + V);
          vec g, slope = Act::slope(load(z1 + at), g);
          vec v = slope * back(load(d + at), g);
          bias += v;
          store(&padded_dz[((long)(i + after) * s.wp + j + after) * V], v);
          store(&padded_x[((long)(i + s.pad) * s.wp + j + s.pad) * V], load(x + at));
        }
      add(mine + (long)taps * s.cp + c, bias);
      for (int t = 0; t < taps; t += SLOPES) {
        vec part[SLOPES] = {};
        long offset[SLOPES];
        for (int i = 0; i < SLOPES; ++i) {
          int tap = std::min(t + i, taps - 1);
          offset[i] = ((long)(tap / s.k) * s.wp + tap % s.k) * V;
        }
        for (int row = 0; row < s.h; ++row)
          for (int j = 0; j < s.w; ++j) {
            vec v = load(&padded_dz[((long)(row + after) * s.wp + j + after) * V]);
            const float* p = &padded_x[((long)row * s.wp + j) * V];
#pragma GCC unroll 16
            for (int i = 0; i < SLOPES; ++i) part[i] += v * load(p + offset[i]);
          }
        for (int i = 0; i < SLOPES && t + i < taps; ++i) add(mine + (long)(t + i) * s.cp + c, part[i]);
      }
      vec mean = load(before.norm.mean + c), sum{}, products{};
      for (int i = 0; i < s.h; ++i)
        depthwise_row(&padded_dz[(long)i * s.wp * V], s.wp, &w[(long)taps * c], s.k, s.w, vec{}, [&](int j, vec v) {
          long at = first + ((long)i * s.w + j) * s.cp;
          v += load(d + at);
          store(d + at, v);
          sum += v;
          products += v * (Act::value(load(before.z + at)) - mean);
        });
      add(mine_sums + c, sum);
      add(mine_sums + s.cp + c, products);
    }
  }
  for (int c = 0; c < s.c; ++c) {
    for (int t = 0; t < taps; ++t) gradients.w1[c * taps + t] = dw.total(t * s.cp + c);
    gradients.b1[c] = dw.total(taps * s.cp + c);
  }
}

template <class Act>
void stem_backward(const Plan& s, const float* images, const float* z, const NormBack& norm, const float* d,
                   const StemGradients& gradients) {
  Sums bias(s.cp);
  int threads = omp_get_max_threads();
  size_t each = (size_t)s.cp * s.inp;
  Floats dw = floats(each * threads);
#pragma omp parallel
  {
    Floats dz = floats(s.tile * s.wide), y = floats((size_t)s.tile * s.inp);
    double* mine = bias.mine();
    float* mine_dw = &dw[each * omp_get_thread_num()];
#pragma omp for schedule(static)
    for (long from = 0; from < s.pixels; from += s.tile) {
      int rows = std::min<long>(s.tile, s.pixels - from);
      for (int c = 0; c < s.cp; c += V) {
        NormBack::Channels back = norm.at(c);
        vec sum{};
        for (int r = 0; r < rows; ++r) {
          long at = (from + r) * s.cp + c;
          vec g, slope = Act::slope(load(z + at), g);
          vec v = slope * back(load(d + at), g);
          store(&dz[r * s.wide + c], v);
          sum += v;
        }
        add(mine + c, sum);
      }
      for (int r = 0; r < rows; ++r)
        patch_of(s, images, from + r, [&](int i, float v) {
          y[((size_t)(i / PANEL) * s.tile + r) * PANEL + i % PANEL] = v;
        });
      for (int p = 0; p < s.inp; p += PANEL)
        panel_product(transposed(dz.get(), s.wide), &y[(size_t)p * s.tile], s.cp, rows, &mine_dw[(size_t)p * s.cp], PANEL, true);
    }
  }
  gather(s, dw.get(), threads, s.in, gradients.w);
  for (int c = 0; c < s.c; ++c) gradients.b[c] = bias.total(c);
}

// The result: the mean of every channel (n, c), or the feature maps (n, c, h, w).
template <class Act>
void put_out(const Plan& s, Source last, bool pooled, float* out) {
  long area = (long)s.h * s.w;
#pragma omp parallel for schedule(static) collapse(2)
  for (int n = 0; n < s.n; ++n)
    for (int c = 0; c < s.cp; c += V) {
      Normed norm(last.norm, c);
      vec sum{};
      for (long i = 0; i < area; ++i) {
        vec v = Act::value(load(last.z + (n * area + i) * s.cp + c));
        sum += v;
        if (!pooled) {
          v = norm(v);
          for (int j = 0; j < V && c + j < s.c; ++j) out[((long)n * s.c + c + j) * area + i] = v[j];
        }
      }
      if (pooled) {
        vec v = norm(sum / (float)area);
        for (int j = 0; j < V && c + j < s.c; ++j) out[(long)n * s.c + c + j] = v[j];
      }
    }
}

// The gradient of the result as a map (n, pixels, cp).
void take_in(const Plan& s, const float* dout, bool pooled, float* d) {
  long area = (long)s.h * s.w;
#pragma omp parallel for schedule(static) collapse(2)
  for (int n = 0; n < s.n; ++n)
    for (int c = 0; c < s.cp; c += V)
      for (long i = 0; i < area; ++i) {
        vec v{};
        for (int j = 0; j < V && c + j < s.c; ++j) {
          long channel = (long)n * s.c + c + j;
          v[j] = pooled ? dout[channel] / area : dout[channel * area + i];
        }
        store(d + (n * area + i) * s.cp + c, v);
      }
}

template <class Act>
void forward(const Shape& shape, const Stem& stem, const Block* blocks, const float* images, bool pooled, float* out,
             float* memory, bool keep) {
  Plan s(shape);
  Saved saved(memory, s, keep);
  auto wanted = [&](bool batch) { return batch ? std::make_unique<Sums>(2 * s.cp) : nullptr; };
  auto sums = wanted(stem.batch);
  stem_forward<Act>(s, stem, images, saved.stem.z, sums.get());
  finish_norm(s, sums.get(), stem.gamma, stem.beta, stem.mean, stem.var, saved.stem.norm);
  for (int i = 0; i < shape.depth; ++i) {
    const Block& b = blocks[i];
    Source mixer = saved.mixer(i), last = saved.last(i);
    auto sums1 = wanted(b.batch1), sums2 = wanted(b.batch2);
    depthwise_forward<Act>(s, b, saved.last(i - 1), saved.x(i), mixer.z, sums1.get());
    finish_norm(s, sums1.get(), b.gamma1, b.beta1, b.mean1, b.var1, mixer.norm);
    pointwise_forward<Act>(s, b, saved.x(i), mixer, last.z, sums2.get());
    finish_norm(s, sums2.get(), b.gamma2, b.beta2, b.mean2, b.var2, last.norm);
  }
  put_out<Act>(s, saved.last(shape.depth - 1), pooled, out);
}

template <class Act>
void backward(const Shape& shape, const Stem& stem, const Block* blocks, const float* images, bool pooled,
              const float* dout, float* memory, const StemGradients& stem_gradients, const Gradients* gradients,
              float* d, int64_t lowest) {
  Plan s(shape);
  Saved saved(memory, s, true);
  take_in(s, dout, pooled, d);
  Sums sums2(2 * s.cp);
  norm_sums<Act>(s, d, saved.last(shape.depth - 1), sums2);
  for (int i = shape.depth - 1; i >= 0 && i + 1 >= lowest; --i) {
    const Block& b = blocks[i];
    const Gradients& g = gradients[i];
    Source mixer = saved.mixer(i), last = saved.last(i);
    NormBack norm2 = norm_back(s, sums2, last.norm, b.batch2, g.gamma2, g.beta2);
    Sums sums1(2 * s.cp);
    pointwise_backward<Act>(s, b, saved.x(i), mixer, last.z, norm2, d, g, sums1);
    NormBack norm1 = norm_back(s, sums1, mixer.norm, b.batch1, g.gamma1, g.beta1);
    sums2 = Sums(2 * s.cp);
    depthwise_backward<Act>(s, b, saved.last(i - 1), saved.x(i), mixer.z, norm1, d, g, sums2);
  }
  if (lowest > 0) return;
  NormBack norm = norm_back(s, sums2, saved.stem.norm, stem.batch, stem_gradients.gamma, stem_gradients.beta);
  stem_backward<Act>(s, images, saved.stem.z, norm, d, stem_gradients);
}

}  // namespace

extern "C" {

int64_t mixer_memory(const Shape* shape, int64_t keep) {
  Plan s(*shape);
  return s.saved_stem() + s.saved() * (keep ? shape->depth : std::min<int64_t>(shape->depth, 1));
}

int64_t mixer_map(const Shape* shape) { return Plan(*shape).map(); }

void mixer_forward(const Shape* shape, const Stem* stem, const Block* blocks, const float* images, int64_t pooled,
                   float* out, float* memory, int64_t keep) {
  Threads threads(shape->threads);
  (shape->relu ? forward<Relu> : forward<Gelu>)(*shape, *stem, blocks, images, pooled, out, memory, keep);
}

void mixer_backward(const Shape* shape, const Stem* stem, const Block* blocks, const float* images, int64_t pooled,
                    const float* dout, float* memory, const StemGradients* stem_gradients,
                    const Gradients* gradients, float* d, int64_t lowest) {
  Threads threads(shape->threads);
  (shape->relu ? backward<Relu> : backward<Gelu>)(*shape, *stem, blocks, images, pooled, dout, memory,
                                                   *stem_gradients, gradients, d, lowest);
}
}
