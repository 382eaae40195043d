// What the machine can do at most, for the benchmark to compare with.

#include "vectors.h"

#include <omp.h>

#include <chrono>

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int CHAINS = 16;           // sums that do not wait for each other
constexpr long ROUNDS = 20'000'000;  // about 0.1 s
constexpr long FLOATS = 1 << 25;     // 128 MB an array, more than any cache

}  // namespace

extern "C" {

// Multiply-accumulates a second of all threads together, float32, from registers.
double ceiling_macs(int64_t threads) {
  float kept = 0;
  double start = seconds();
#pragma omp parallel num_threads(threads) reduction(+ : kept)
  {
    vec sums[CHAINS], a = splat(0.999f), b = splat(1e-3f);
    for (int c = 0; c < CHAINS; ++c) sums[c] = splat(c + start);  // all different, or the compiler makes one of them
    for (long i = 0; i < ROUNDS; ++i)
#pragma GCC unroll 16
      for (int c = 0; c < CHAINS; ++c) sums[c] = sums[c] * a + b;
    for (vec sum : sums) kept += sum[0];
  }
  double macs = (double)threads * ROUNDS * CHAINS * V / (seconds() - start);
  return kept > 0 ? macs : 0;  // the sums are needed, so they are made
}

// Bytes a second of all threads together, read and written, for a[i] = b[i] + c[i].
double ceiling_bytes(int64_t threads) {
  Floats a = floats(FLOATS), b = floats(FLOATS), c = floats(FLOATS);
  double best = 0;
  for (int round = 0; round < 4; ++round) {
    double start = seconds();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < FLOATS; i += V) store(&a[i], load(&b[i]) + load(&c[i]));
    best = std::max(best, 3.0 * FLOATS * sizeof(float) / (seconds() - start));
  }
  return best;
}
}
