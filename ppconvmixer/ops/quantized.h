// A product of two matrices in 8 bits, four times as fast as one of floats where the processor adds four products of
// bytes at once (VNNI). Every row of the first matrix has a scale of its own, found when it is multiplied, and every
// column of the second one; so there is nothing to calibrate.
#pragma once

#include "kernels.h"

namespace {

typedef int8_t bytes16 __attribute__((vector_size(V), aligned(1), may_alias));

constexpr int QUAD = 4;          // bytes whose products are added at once
constexpr float LARGEST = 127.f;  // of a byte
constexpr int MIDDLE = 128;      // added to the bytes of the second matrix, which the processor wants from 0 to 255
constexpr float TINY = 1e-30f;   // a row or a column with nothing above is taken for zeros

inline int bits_of(float f) {
  int32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return bits;
}

// sums + the products of u (from 0 to 255) and s (from -127 to 127), four for each sum.
inline ivec dot(ivec sums, ivec u, ivec s) {
#ifdef __AVX512VNNI__
  return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)u, (__m512i)s);
#else
  for (int i = 0; i < V; ++i)
    for (int j = 0; j < QUAD; ++j) sums[i] += (u[i] >> 8 * j & 255) * (int8_t)(s[i] >> 8 * j);
  return sums;
#endif
}

#ifdef __AVX512VNNI__
constexpr bool FAST = true;
#else
constexpr bool FAST = false;
#endif

// For a square second matrix, whose columns come in panels of 32.
struct Quantized {
  int size;
  explicit Quantized(int size) : size(size) {}
  long weights() const { return (long)size * size / sizeof(float) + size; }  // in floats: bytes, then scales of columns
  long stride() const { return size + 64; }                                  // of rows, which share no set of the cache
  long rows_floats(int rows) const { return rows * (stride() / sizeof(float) + 2); }

  const uint8_t* panel(const float* weights, int p) const {
    return reinterpret_cast<const uint8_t*>(weights) + (long)p * PANEL * size;
  }
  const float* scales(const float* weights) const { return weights + (long)size * size / sizeof(float); }

  // From the panels of the whole matrix: (panel, four rows, 32 columns, 4).
  void put_weights(const float* whole, float* out) const {
#pragma omp parallel for schedule(static)
    for (int p = 0; p < size / PANEL; ++p) {
      const float* from = whole + (long)p * PANEL * size;
      auto to = const_cast<uint8_t*>(panel(out, p));
      for (int c = 0; c < PANEL; ++c) {
        float most = 0;
        for (long k = 0; k < size; ++k) {
          float a = std::fabs(from[k * PANEL + c]);
          most = a > most || a != a ? a : most;
        }
        float scale = most < TINY ? 0 : most / LARGEST, by = most < TINY ? 0 : LARGEST / most;
        const_cast<float*>(scales(out))[p * PANEL + c] = scale;
        for (long k = 0; k < size; ++k) {
          float w = from[k * PANEL + c] * by;
          to[(k / QUAD * PANEL + c) * QUAD + k % QUAD] = MIDDLE + (w == w ? (int)std::nearbyint(w) : 0);
        }
      }
    }
  }

  // Rows as bytes, with what their products are to be multiplied with and what is too much in them.
  struct Bytes {
    int8_t* at;
    float* scale;
    int32_t* excess;
  };
  Bytes put_rows(Rows a, int rows, float* memory) const {
    float* after = memory + rows * stride() / (long)sizeof(float);
    Bytes out = {reinterpret_cast<int8_t*>(memory), after, reinterpret_cast<int32_t*>(after + rows)};
    constexpr int SOME = 8;  // rows at a time, which lie side by side
    for (int from = 0; from < rows; from += SOME) {
      int some = std::min(SOME, rows - from);
      ivec most[SOME] = {}, sums[SOME] = {};
      for (int k = 0; k < size / V; ++k)
        for (int r = 0; r < some; ++r) {
          ivec x = (ivec)load(a.at + k * a.block + (from + r) * a.row) & 0x7fffffff;  // as whole numbers, NaN is largest
          most[r] = (ivec)pick(x > most[r], (vec)x, (vec)most[r]);
        }
      float by[SOME];
      for (int r = 0; r < some; ++r) {
        float largest = 0;
        for (int i = 0; i < V; ++i) {
          float v = ((vec)most[r])[i];
          largest = v > largest || v != v ? v : largest;
        }
        by[r] = largest < TINY ? 0 : LARGEST / largest;
        out.scale[from + r] = largest < TINY ? 0 : largest / LARGEST;
      }
      for (int k = 0; k < size / V; ++k)
        for (int r = 0; r < some; ++r) {
          vec x = load(a.at + k * a.block + (from + r) * a.row) * by[r] + WHOLE;
          ivec whole = (ivec)x - bits_of(WHOLE);
          sums[r] += whole;
          *reinterpret_cast<bytes16*>(out.at + (from + r) * stride() + k * V) = __builtin_convertvector(whole, bytes16);
        }
      for (int r = 0; r < some; ++r) {
        int sum = 0;
        for (int i = 0; i < V; ++i) sum += sums[r][i];
        out.excess[from + r] = MIDDLE * sum;
      }
    }
    return out;
  }

  // R rows of a panel: `put(row, vector of the panel, sums)`.
  template <int R, class Put>
  void product(const int8_t* a, const uint8_t* b, const uint8_t* ahead, Put put) const {
    ivec sums[R][2] = {};
    for (int k = 0; k < size; k += QUAD, b += PANEL * QUAD, ahead += PANEL) {
      ivec b0 = *reinterpret_cast<const ivec*>(b), b1 = *reinterpret_cast<const ivec*>(b + V * QUAD);
      __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        int32_t quad;
        memcpy(&quad, a + r * stride() + k, sizeof quad);
        ivec x = quad - ivec{};
        sums[r][0] = dot(sums[r][0], b0, x);
        sums[r][1] = dot(sums[r][1], b1, x);
      }
    }
    for (int r = 0; r < R; ++r) {
      put(r, 0, sums[r][0]);
      put(r, 1, sums[r][1]);
    }
  }

  // Panel p of the result for the rows: `put(row, first channel, vector)`.
  template <class Put>
  void panel_product(Bytes rows, int count, const float* weights, int p, Put put) const {
    panel_product(rows, count, weights, p, put, std::make_integer_sequence<int, ROWS>());
  }

 private:
  template <class Put, int... R>
  void panel_product(Bytes rows, int count, const float* weights, int p, Put put,
                     std::integer_sequence<int, R...>) const {
    int strips = (count + ROWS - 1) / ROWS;
    for (int s = 0; s < strips; ++s) {
      int from = (long)count * s / strips, some = (long)count * (s + 1) / strips - from;
      auto finish = [&](int r, int half, ivec sums) {
        long c = p * PANEL + half * V;
        vec z = __builtin_convertvector(sums - rows.excess[from + r], vec);
        put(from + r, c, z * (load(scales(weights) + c) * rows.scale[from + r]));
      };
      const int8_t* a = rows.at + from * stride();
      const uint8_t *b = panel(weights, p), *ahead = panel(weights, p + 1) + (long)s * size / QUAD * PANEL;
      ((some == R + 1 ? product<R + 1>(a, b, ahead, finish) : void()), ...);
    }
  }
};

}  // namespace
