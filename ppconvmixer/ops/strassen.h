// A product of two matrices by seven products of their quarters instead of eight: Strassen's way (1969) with Winograd's
// fifteen sums. Sums of the weights are made once; those of the rows cost a hundredth of what they save.
//
//   s1 = a21 + a22   t1 = b12 - b11   p1 = a11 b11   p5 = s1 t1   c11 = p1 + p2
//   s2 = s1 - a11    t2 = b22 - t1    p2 = a12 b21   p6 = s2 t2   c12 = p1 + p6 + p5 + p3
//   s3 = a11 - a21   t3 = b22 - b12   p3 = s4 b22    p7 = s3 t3   c21 = p1 + p6 + p7 + p4
//   s4 = a12 - s2    t4 = b21 - t2    p4 = a22 t4                 c22 = p1 + p6 + p7 + p5
//
// The error is bounded by the largest number of the rows that are added, not by each row's own.
#pragma once

#include "kernels.h"

namespace {

constexpr int QUARTERS = 7;  // products
constexpr int LEAST = 256;   // columns from which on it pays

// For a square second matrix; all sizes are in floats.
struct Strassen {
  int size, half, panels;  // of the second matrix; of its quarters; pairs of panels, half a matrix apart
  explicit Strassen(int size) : size(size), half(size / 2), panels(half / PANEL) {}
  static bool pays(int size) { return size % (2 * PANEL) == 0 && size >= LEAST; }
  long weights() const { return (long)QUARTERS * half * half; }
  static int upper(int rows) { return (rows + 1) / 2; }  // with an odd number the two halves share a row
  long row_sums(int rows) const { return 4L * upper(rows) * half; }
  static long products(int rows) { return (long)QUARTERS * upper(rows) * PANEL; }

  // The second matrices of the products from the panels of the whole one: (pair of panels, product, half, 32).
  void put_weights(const float* whole, float* out) const {
    long quarter = (long)half * PANEL;
#pragma omp parallel for schedule(static)
    for (int p = 0; p < panels; ++p) {
      const float *b11 = whole + 2 * p * quarter, *b12 = whole + 2 * (p + panels) * quarter;
      const float *b21 = b11 + quarter, *b22 = b12 + quarter;
      float* to = out + QUARTERS * p * quarter;
      for (long i = 0; i < quarter; ++i, ++to) {
        double t1 = (double)b12[i] - b11[i], t2 = b22[i] - t1;
        const double t[QUARTERS] = {b11[i], b21[i], b22[i], b21[i] - t2, t1, t2, (double)b22[i] - b12[i]};
        for (int q = 0; q < QUARTERS; ++q) to[q * quarter] = t[q];
      }
    }
  }

  // The first matrices, of which four are sums that go to `sums`.
  struct Firsts {
    Rows of[QUARTERS];
  };
  Firsts put_rows(Rows a, int rows, float* sums) const {
    int h = upper(rows);
    long right = half / V * a.block, down = (rows - h) * a.row, block = (long)h * V, sum = block * (half / V);
    for (int k = 0; k < half / V; ++k)
      for (int r = 0; r < h; ++r) {
        const float* p = a.at + k * a.block + r * a.row;
        vec a11 = load(p), a21 = load(p + down), s1 = a21 + load(p + right + down), s2 = s1 - a11;
        float* to = sums + k * block + r * V;
        store(to, s1);
        store(to + sum, s2);
        store(to + 2 * sum, a11 - a21);
        store(to + 3 * sum, load(p + right) - s2);
      }
    auto quarter = [&](long at) { return Rows{a.at + at, a.row, a.column, a.block}; };
    auto summed = [&](int i) { return Rows{sums + i * sum, V, 1, block}; };
    return {{quarter(0), quarter(right), summed(3), quarter(right + down), summed(0), summed(1), summed(2)}};
  }

  // Panels p and p + panels of the result: `put(row, vector of the panel, of the upper left, upper right, ...)`.
  template <class Put>
  void panel(const Firsts& firsts, const float* weights, int p, int rows, float* products, Put put) const {
    int h = upper(rows);
    long quarter = (long)half * PANEL, product = (long)h * PANEL;
    for (int q = 0; q < QUARTERS; ++q)
      panel_product(firsts.of[q], weights + (QUARTERS * p + q) * quarter, h, half, products + q * product, PANEL, false);
    for (int r = 0; r < h; ++r)
      for (int c = 0; c < PANEL; c += V) {
        vec of[QUARTERS];
        for (int q = 0; q < QUARTERS; ++q) of[q] = load(products + q * product + r * PANEL + c);
        vec u2 = of[0] + of[5], u3 = u2 + of[6];
        put(r, c, of[0] + of[1], u2 + of[4] + of[2], u3 + of[3], u3 + of[4]);
      }
  }
};

}  // namespace
