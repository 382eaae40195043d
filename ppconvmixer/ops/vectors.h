// Vectors of 16 floats, the activations on them, and memory that starts at whole vectors.
//
// One statement of vector code serves every width: the compiler cuts `vec` to what the processor has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int V = 16;  // floats of a vector: 64 bytes, a cache line
typedef float vec __attribute__((vector_size(V * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(V * 4), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
// The next vector of channels of a pixel is 64 bytes on, but a processor that sees one vector a pixel does not know.
inline void prefetch(const float* p) { __builtin_prefetch(p); }
inline vec splat(float f) { return f - vec{}; }
constexpr float WHOLE = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number, which is in the low bits then
inline vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

// 1 / x for x in [1, 4]: an estimate and one step of Newton's are thrice as fast as a division.
inline vec reciprocal(vec x) {
#ifdef __AVX512F__
  vec r = (vec)_mm512_rcp14_ps((__m512)x);
  return r + r * (1.f - x * r);
#else
  return 1.f / x;
#endif
}

// exp(x) for x in [-87, 0], to 1 ulp or so: 2^n times a Taylor polynomial on [-ln2/2, ln2/2].
inline vec exp_negative(vec x) {
  const vec magic = splat(WHOLE);
  vec n = x * 1.44269504f + magic;
  ivec exponent = ((ivec)n - (ivec)magic + 127) << 23;
  n -= magic;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = splat(1.f / 5040);
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  return p * (vec)exponent;
}

struct Gauss {
  vec below;    // Phi(z), the share of the normal distribution below z
  vec density;  // phi(z)
};

// Phi(-a) = phi(a) R(a); R is a polynomial in t = 1 / (1 + 0.21 a), fitted on [0, 13] to 1e-08 of its value.
inline Gauss gauss(vec z) {
  vec a = pick(z < 0, -z, z);
  a = pick(a > 13, splat(13.f), a);
  vec density = exp_negative(a * a * -0.5f) * 0.39894228f;
  vec t = reciprocal(a * 0.21f + 1.f);
  vec r = splat(-0.181534532f);
  r = r * t + 0.720332238f;
  r = r * t + -0.847858575f;
  r = r * t + 0.899439284f;
  r = r * t + -0.252404905f;
  r = r * t + 0.320607649f;
  r = r * t + 0.171370417f;
  r = r * t + 0.213548857f;
  r = r * t + 0.209813689f;
  vec tail = density * r * t;
  return {pick(z < 0, tail, 1.f - tail), density};
}

// The larger and the smaller of two; what is no number in b stays none.
inline vec larger(vec a, vec b) {
#ifdef __AVX512F__
  return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return pick(a > b, a, b);
#endif
}
inline vec smaller(vec a, vec b) { return -larger(-a, -b); }

struct Gelu {
  // Without the slope half the arithmetic will do: z Phi(z) = max(z, 0) - |z| Phi(-|z|), and Phi(-a) = 2^e with a
  // polynomial e, fitted on [0, 5.8] so that Phi is off by 1e-08; the roundings come to 6e-08.
  static vec value(vec z) {
    vec x = smaller(splat(5.8f), larger(z, -z));
    vec e = splat(-2.77205186e-06f);
    e = e * x + 3.86207794e-05f;
    e = e * x + -0.000182547767f;
    e = e * x + -0.000145869752f;
    e = e * x + 0.00707547134f;
    e = e * x + -0.0525050275f;
    e = e * x + -0.459204912f;
    e = e * x + -1.15110576f;
    e = e * x + -1.f;
    vec n = e + WHOLE, r = e - (n - WHOLE);
    vec power = splat(0.000153458124f);
    power = power * r + 0.00133999309f;
    power = power * r + 0.00961848907f;
    power = power * r + 0.0555032864f;
    power = power * r + 0.240226462f;
    power = power * r + 0.693147182f;
    power = power * r + 1.f;
    vec tail = (vec)((ivec)power + ((ivec)n << 23));  // the whole number ends up in the exponent
    return larger(vec{}, z) - x * tail;  // of an infinite z too
  }
  static vec slope(vec z, vec& value) {
    Gauss g = gauss(z);
    value = z * g.below;
    return g.below + z * g.density;
  }
};

struct Relu {
  static vec value(vec z) { return pick(z > 0, z, vec{}); }
  static vec slope(vec z, vec& value) {
    value = Relu::value(z);
    return pick(z > 0, splat(1.f), vec{});
  }
};

// Memory of earlier calls for the next one: pages fresh from the system cost more than the arithmetic in them.
class Pool {
  static constexpr size_t KEPT = 64;  // a training step takes no more at once with four threads
  std::mutex mutex;
  std::multimap<size_t, float*> kept;

 public:
  float* take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = kept.find(bytes);
    if (found == kept.end()) return static_cast<float*>(aligned_alloc(64, bytes));
    float* p = found->second;
    kept.erase(found);
    return p;
  }
  void give(float* p, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    kept.emplace(bytes, p);
    if (kept.size() <= KEPT) return;
    free(kept.begin()->second);
    kept.erase(kept.begin());
  }
};

inline Pool& pool() {
  static Pool* pool = new Pool;  // never destroyed: at the end of the program others may still give back
  return *pool;
}

struct Give {
  size_t bytes;
  void operator()(float* p) const { pool().give(p, bytes); }
};
using Floats = std::unique_ptr<float[], Give>;

// `count` zeros.
Floats floats(size_t count) {
  size_t bytes = std::max<size_t>((count * sizeof(float) + 63) / 64 * 64, 64);
  Floats out(pool().take(bytes), {bytes});
  memset(out.get(), 0, bytes);
  return out;
}

}  // namespace
