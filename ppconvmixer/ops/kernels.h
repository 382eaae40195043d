// Matrix products and depthwise convolutions: the inner loops, the sums of which stay in registers.
#pragma once

#include <utility>

#include "vectors.h"

namespace {

constexpr int PANEL = 2 * V;  // columns of a product that are made at once
#ifdef __AVX512F__
constexpr int ROWS = 14;  // 28 of 32 registers hold sums
constexpr int TAPS = 8;   // sums of a depthwise convolution: pixels on the way forth,
constexpr int SLOPES = 13;  // taps for the gradient of its weights
#else
constexpr int ROWS = 3;
constexpr int TAPS = 3;
constexpr int SLOPES = 3;
#endif
constexpr int DEPTH = 256;  // of one pass through a product: a panel of 32 kB stays in the first cache,
constexpr int AHEAD = PANEL / 4;  // and four strips fetch that of the next pass, which is on its way from the memory

// The first matrix of a product: element (r, k) is at[r * row + k % 16 * column + k / 16 * block].
struct Rows {
  const float* at;
  long row, column, block;
};

inline Rows row_major(const float* at, long width) { return {at, width, 1, V}; }
inline Rows transposed(const float* at, long width) { return {at, 1, width, V * width}; }

// c (R x 32) = or += a (R x depth) b (depth x 32); what is at `ahead` comes into the second cache meanwhile.
template <int R>
void product(Rows a, const float* b, int depth, float* c, long cr, bool add, const float* ahead) {
  vec sums[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sums[r][0] = add ? load(c + r * cr) : vec{};
    sums[r][1] = add ? load(c + r * cr + V) : vec{};
  }
  const float* column = a.at;
  for (int k = 0; k < depth; b += PANEL) {  // one loop: between two, the compiler would put the sums into memory
    vec b0 = load(b), b1 = load(b + V);
    __builtin_prefetch(ahead, 0, 2);
    ahead += AHEAD;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      vec x = splat(column[r * a.row]);
      sums[r][0] += x * b0;
      sums[r][1] += x * b1;
    }
    column += ++k % V ? a.column : a.block - (V - 1) * a.column;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(c + r * cr, sums[r][0]);
    store(c + r * cr + V, sums[r][1]);
  }
}

using Product = void (*)(Rows, const float*, int, float*, long, bool, const float*);

template <int... R>
Product product_of(int rows, std::integer_sequence<int, R...>) {
  static constexpr Product table[] = {product<R + 1>...};
  return table[rows - 1];
}

// c (rows x 32) += or = a b for any number of rows and any depth, in equal strips.
void panel_product(Rows a, const float* b, int rows, int depth, float* c, long cr, bool add) {
  int strips = (rows + ROWS - 1) / ROWS;
  for (int k = 0; k < depth; k += DEPTH) {
    int some = std::min(DEPTH, depth - k);
    for (int s = 0; s < strips; ++s) {
      int from = rows * s / strips, count = rows * (s + 1) / strips - from;
      Rows part = {a.at + from * a.row + k / V * a.block, a.row, a.column, a.block};
      const float *pass = b + (long)k * PANEL, *ahead = pass + some * (PANEL + s * AHEAD);
      auto product = product_of(count, std::make_integer_sequence<int, ROWS>());
      product(part, pass, some, c + from * cr, cr, add || k > 0, ahead);
    }
  }
}

// Panels of 32 columns of a product's second matrix, element (k, column) at w[k * wk + column * wc]; zeros elsewhere.
void put_panels(const float* w, int depth, int columns, int padded_depth, long wk, long wc, float* out) {
  int count = (columns + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
  for (int p = 0; p < count; ++p) {
    float* panel = out + (size_t)p * padded_depth * PANEL;
    int some = std::min(PANEL, columns - p * PANEL);
    std::fill_n(panel, (size_t)padded_depth * PANEL, 0.f);
    auto put = [&](int k, int c) { panel[k * PANEL + c] = w[k * wk + (p * PANEL + c) * wc]; };
    for (int from = 0; from < depth; from += V) {  // the inner loop is along the rows of w
      int to = std::min(depth, from + V);
      if (wk == 1)
        for (int c = 0; c < some; ++c)
          for (int k = from; k < to; ++k) put(k, c);
      else
        for (int k = from; k < to; ++k)
          for (int c = 0; c < some; ++c) put(k, c);
    }
  }
}

// A depthwise convolution of one picture and one vector of channels: k x k taps over a padded plane of rows of `stride`
// vectors. `put(x, sums)` is called for the w pixels of the row whose first tap is at `in`; w holds the taps in order.
template <class Put>
inline void depthwise_row(const float* in, long stride, const float* taps, int kernel, int width, vec start, Put put) {
  for (int x = 0; x < width; x += TAPS) {
    vec sums[TAPS];
    for (int t = 0; t < TAPS; ++t) sums[t] = start;
    const float* w = taps;
    for (int ky = 0; ky < kernel; ++ky) {
      const float* p = in + (ky * stride + x) * V;
      for (int kx = 0; kx < kernel; ++kx, w += V, p += V) {
        vec tap = load(w);
#pragma GCC unroll 8
        for (int t = 0; t < TAPS; ++t) sums[t] += load(p + t * V) * tap;
      }
    }
    for (int t = 0; t < TAPS && x + t < width; ++t) put(x + t, sums[t]);
  }
}

// Taps as depthwise_row takes them, (channels / 16, taps, 16), of weights (channels, taps); turned round for the way back.
void put_taps(const float* w, int channels, int padded, int taps, bool turned, float* out) {
  std::fill_n(out, (long)padded * taps, 0.f);
  for (int c = 0; c < channels; ++c)
    for (int t = 0; t < taps; ++t)
      out[((long)(c / V) * taps + t) * V + c % V] = w[(long)c * taps + (turned ? taps - 1 - t : t)];
}

}  // namespace
