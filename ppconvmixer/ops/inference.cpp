// Evaluation: weights are put into the order of use once, norms become one multiplication and addition.
//
// A feature map is (vector of 16 channels, pixel, 16). The depthwise half goes through it plane by plane, and the matrix
// product takes its rows from where the depthwise half left them, so nothing is copied in between. Pictures go through
// the whole network in small groups, whose maps stay in the cache.

#include "network.h"
#include "quantized.h"
#include "strassen.h"

namespace {

constexpr int TILE = 128;       // pixels of a matrix product at most,
constexpr int FLOATS = 131072;  // and floats of its rows: half a megabyte of the second cache
constexpr int FEW = 4 * ROWS;   // with fewer pixels a thread reads more weights than it computes with

// A convolution, its bias and its norm, for padded channels.
struct Half {
  float *w, *bias, *scale, *shift;
  Half(float* at, long weights, int channels)
      : w(at), bias(at + weights), scale(bias + channels), shift(scale + channels) {}
};

struct Network : Sizes {
  int depth, threads, area;
  Strassen strassen;
  Quantized quantized;
  bool eight;  // products in 8 bits,
  bool seven;  // or products of quarters, instead of one of the whole
  explicit Network(const Shape& s)
      : Sizes(s), depth(s.depth), threads(s.threads), area(h * w), strassen(cp), quantized(cp), eight(s.eight),
        seven(!eight && Strassen::pays(cp)) {}
  long matrix_floats() const {
    return eight ? quantized.weights() : seven ? strassen.weights() : (long)cp * cp;
  }
  long stem_floats() const { return (long)cp * (inp + 3); }
  long depthwise_floats() const { return (long)cp * (k * k + 3); }
  long block_floats() const { return depthwise_floats() + matrix_floats() + 3 * cp; }
  Half stem(float* base) const { return {base, (long)cp * inp, cp}; }
  Half depthwise(float* base, int block) const {
    return {base + stem_floats() + block * block_floats(), (long)cp * k * k, cp};
  }
  Half pointwise(float* base, int block) const {
    return {base + stem_floats() + block * block_floats() + depthwise_floats(), matrix_floats(), cp};
  }
  // Pixels of a plane, and some more: planes of 16 kB after one another would all fall on the same lines of the cache.
  long plane_pixels() const { return (area + 63) / 64 * 64 + V; }
  long map() const { return cp * plane_pixels(); }
  // Pictures that go together: enough for every thread to have two tiles, so that weights come from the memory once for
  // both, and no more, so that the maps are still in the cache when the next half wants them.
  int group() const { return std::clamp(2 * ((threads * TILE + area - 1) / area), 1, n); }
};

// How the pixels of a group's pictures and the columns of a product are shared among the threads.
struct Split {
  int tiles, columns;  // of a picture; parts of the panels
  Split(const Network& s, int pictures, int panels) : columns(1) {
    int most = std::clamp(FLOATS / s.cp, ROWS, TILE);
    long tasks = (long)pictures * ((s.area + most - 1) / most);
    tasks = (tasks + s.threads - 1) / s.threads * s.threads;
    tiles = std::min<long>((tasks + pictures - 1) / pictures, s.area);
    while (s.area / tiles < FEW && tiles > 1 && columns * 2 <= panels) {
      tiles = (tiles + 1) / 2;
      columns *= 2;
    }
  }
};

void prepare_half(const float* bias, const float* gamma, const float* beta, const float* mean, const float* var, int c,
                  int cp, Half out) {
  for (int i = 0; i < cp; ++i) {
    double scale = i < c ? gamma[i] / std::sqrt((double)var[i] + EPSILON) : 0;
    out.bias[i] = i < c ? bias[i] : 0;
    out.scale[i] = scale;
    out.shift[i] = i < c ? beta[i] - mean[i] * scale : 0;
  }
}

// norm(act(z + bias)) for a vector of channels from c on.
template <class Act>
inline vec finish(Half half, long c, vec z) {
  return Act::value(z + load(half.bias + c)) * load(half.scale + c) + load(half.shift + c);
}

// Panels [from, to) of norm(act(a w + bias)) for the rows of a tile, put into planes. `sums` has room for rows x 32.
template <class Act>
void tile_product(const Network& s, Rows a, int depth, int rows, Half half, int from, int to, float* out, float* sums) {
  for (long p = from * PANEL; p < to * PANEL; p += PANEL) {
    panel_product(a, half.w + p * depth, rows, depth, sums, PANEL, false);
    for (int c = 0; c < PANEL; c += V) {
      float* plane = out + (p + c) * s.plane_pixels();
      for (int r = 0; r < rows; ++r) store(plane + r * V, finish<Act>(half, p + c, load(sums + r * PANEL + c)));
    }
  }
}

// The same with seven products, for the pairs [from, to) of panels.
template <class Act>
void tile_seven(const Network& s, Rows a, int rows, Half half, int from, int to, float* out, float* row_sums,
                float* products) {
  auto firsts = s.strassen.put_rows(a, rows, row_sums);
  int down = rows - Strassen::upper(rows);
  for (long p = from; p < to; ++p)
    s.strassen.panel(firsts, half.w, p, rows, products, [&](int r, int c, vec c11, vec c12, vec c21, vec c22) {
      long left = p * PANEL + c, right = left + s.strassen.half;
      auto put = [&](long channel, int row, vec z) {
        store(out + channel * s.plane_pixels() + row * V, finish<Act>(half, channel, z));
      };
      put(left, r, c11);
      put(right, r, c12);
      put(left, r + down, c21);
      put(right, r + down, c22);
    });
}

// The same in 8 bits.
template <class Act>
void tile_eight(const Network& s, Rows a, int rows, Half half, int from, int to, float* out, float* bytes) {
  auto quantized = s.quantized.put_rows(a, rows, bytes);
  for (int p = from; p < to; ++p)
    s.quantized.panel_product(quantized, rows, half.w, p, [&](int r, long c, vec z) {
      store(out + c * s.plane_pixels() + r * V, finish<Act>(half, c, z));
    });
}

// One plane's y = x + norm(act(depthwise(x))). The middle of `padded` is overwritten, its rim stays zero.
template <class Act>
void depthwise_plane(const Network& s, const float* x, Half half, int c, float* padded, float* y) {
  float* middle = padded + (s.pad * s.wp + s.pad) * V;
  for (int i = 0; i < s.h; ++i) memcpy(middle + (long)i * s.wp * V, x + (long)i * s.w * V, s.w * V * sizeof(float));
  vec bias = load(half.bias + c), scale = load(half.scale + c), shift = load(half.shift + c);
  for (int i = 0; i < s.h; ++i) {
    long row = (long)i * s.w * V;
    depthwise_row(padded + (long)i * s.wp * V, s.wp, half.w + (long)c * s.k * s.k, s.k, s.w, bias, [&](int j, vec z) {
      store(y + row + j * V, load(x + row + j * V) + Act::value(z) * scale + shift);
    });
  }
}

// What a thread works in by itself.
struct Worker {
  float *padded, *sums, *patches, *rows;  // `rows` as the fast products want them
  static long sums_floats() { return Strassen::products(TILE); }
  static long floats(const Network& s) {
    return s.plane + sums_floats() + TILE * s.inp +
           (s.eight ? s.quantized.rows_floats(TILE) : s.seven ? s.strassen.row_sums(TILE) : 0);
  }
  Worker(const Network& s, float* at)
      : padded(at), sums(padded + s.plane), patches(sums + sums_floats()), rows(patches + TILE * s.inp) {
    std::fill_n(padded, s.plane, 0.f);
    std::fill_n(patches, (long)TILE * s.inp, 0.f);
  }
};

// A tile of every task: `make(picture, first pixel, rows, first panel, last panel)`.
template <class Make>
void for_tiles(const Network& s, int pictures, int panels, Make make) {
  Split split(s, pictures, panels);
#pragma omp for schedule(static)
  for (int task = 0; task < pictures * split.tiles * split.columns; ++task) {
    int part = task % split.columns, tile = task / split.columns % split.tiles;
    int from = (long)s.area * tile / split.tiles, to = (long)s.area * (tile + 1) / split.tiles;
    make(task / split.columns / split.tiles, from, to - from, panels * part / split.columns,
         panels * (part + 1) / split.columns);
  }
}

// A group of pictures, by all threads together: from images to the maps x; y is of the same size.
template <class Act>
void run_group(const Network& s, float* weights, const float* images, int first, int pictures, float* x, float* y,
               Worker worker) {
  long block = s.plane_pixels() * V;
  for_tiles(s, pictures, s.cp / PANEL, [&](int picture, int from, int rows, int panel, int last) {
    for (int r = 0; r < rows; ++r)
      patch_of(s, images, (long)(first + picture) * s.area + from + r, [&](int i, float v) {
        worker.patches[((long)(i / V) * TILE + r) * V + i % V] = v;
      });
    tile_product<Act>(s, {worker.patches, V, 1, TILE * V}, s.inp, rows, s.stem(weights), panel, last,
                      x + picture * s.map() + from * V, worker.sums);
  });
  for (int i = 0; i < s.depth; ++i) {
    Half depthwise = s.depthwise(weights, i), pointwise = s.pointwise(weights, i);
    int vectors = s.cp / V;
#pragma omp for schedule(static)
    for (int task = 0; task < pictures * vectors; ++task) {
      long at = task / vectors * s.map() + task % vectors * block;
      depthwise_plane<Act>(s, x + at, depthwise, task % vectors * V, worker.padded, y + at);
    }
    int panels = s.seven ? s.strassen.panels : s.cp / PANEL;
    for_tiles(s, pictures, panels, [&](int picture, int from, int rows, int panel, int last) {
      long at = picture * s.map() + from * V;
      Rows a = {y + at, V, 1, block};
      if (s.eight)
        tile_eight<Act>(s, a, rows, pointwise, panel, last, x + at, worker.rows);
      else if (s.seven)
        tile_seven<Act>(s, a, rows, pointwise, panel, last, x + at, worker.rows, worker.sums);
      else
        tile_product<Act>(s, a, s.cp, rows, pointwise, panel, last, x + at, worker.sums);
    });
  }
}

// The maps of a group as (n, c, h, w), or their means.
void put_out(const Network& s, const float* x, int first, int pictures, bool pooled, float* out) {
#pragma omp for schedule(static)
  for (int task = 0; task < pictures * (s.cp / V); ++task) {
    int picture = task / (s.cp / V), c = task % (s.cp / V) * V;
    const float* plane = x + picture * s.map() + c * s.plane_pixels();
    float* to = out + ((long)(first + picture) * s.c + c) * (pooled ? 1 : s.area);
    int some = std::min(V, s.c - c);
    vec sum{};
    for (int i = 0; i < s.area; ++i) {
      vec v = load(plane + i * V);
      sum += v;
      for (int j = 0; j < some && !pooled; ++j) to[(long)j * s.area + i] = v[j];
    }
    sum /= (float)s.area;
    for (int j = 0; j < some && pooled; ++j) to[j] = sum[j];
  }
}

template <class Act>
void run(const Network& s, float* weights, const float* images, bool pooled, float* out, float* memory) {
#pragma omp parallel
  {
    float *x = memory, *y = memory + s.group() * s.map();
    Worker worker(s, memory + 2 * s.group() * s.map() + Worker::floats(s) * omp_get_thread_num());
    for (int first = 0; first < s.n; first += s.group()) {
      int pictures = std::min(s.group(), s.n - first);
      run_group<Act>(s, weights, images, first, pictures, x, y, worker);
      put_out(s, x, first, pictures, pooled, out);
    }
  }
}

}  // namespace

extern "C" {

int64_t network_floats(const Shape* shape) {
  Network s(*shape);
  return s.stem_floats() + s.depth * s.block_floats();
}

void network_prepare(const Shape* shape, const Stem* stem, const Block* blocks, float* prepared) {
  Threads threads(shape->threads);
  Network s(*shape);
  Half half = s.stem(prepared);
  put_panels(stem->w, s.in, s.c, s.inp, 1, s.in, half.w);
  bool made = s.seven || s.eight;  // from the panels of the whole matrix
  Floats whole = floats(made ? (long)s.cp * s.cp : 0);
  prepare_half(stem->b, stem->gamma, stem->beta, stem->mean, stem->var, s.c, s.cp, half);
  for (int i = 0; i < s.depth; ++i) {
    const Block& b = blocks[i];
    Half depthwise = s.depthwise(prepared, i), pointwise = s.pointwise(prepared, i);
    put_taps(b.w1, s.c, s.cp, s.k * s.k, false, depthwise.w);
    prepare_half(b.b1, b.gamma1, b.beta1, b.mean1, b.var1, s.c, s.cp, depthwise);
    put_panels(b.w2, s.c, s.c, s.cp, 1, s.c, made ? whole.get() : pointwise.w);
    if (s.seven) s.strassen.put_weights(whole.get(), pointwise.w);
    if (s.eight) s.quantized.put_weights(whole.get(), pointwise.w);
    prepare_half(b.b2, b.gamma2, b.beta2, b.mean2, b.var2, s.c, s.cp, pointwise);
  }
}

int64_t network_eight_is_fast() { return FAST; }

int64_t network_memory(const Shape* shape) {
  Network s(*shape);
  return 2 * s.group() * s.map() + Worker::floats(s) * s.threads;
}

void network_run(const Shape* shape, const float* prepared, const float* images, int64_t pooled, float* out,
                 float* memory) {
  Threads threads(shape->threads);
  (shape->relu ? run<Relu> : run<Gelu>)(Network(*shape), const_cast<float*>(prepared), images, pooled, out, memory);
}
}
