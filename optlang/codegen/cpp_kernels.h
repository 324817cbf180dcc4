// What every generated C++ kernel begins with, after the types that it is built for (`real`, `type_0`, ...): functions of
// numbers, and how they are stored. Loops over elements call them; the compiler makes vectors of such loops.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>
#if defined(OPTLANG_CODES) && defined(__AVX2__)
#include <immintrin.h>  // half of the time that compiling takes
#endif

// All functions that the C library has for vectors as well. It says so itself only where accuracy is given up everywhere.
#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GLIBC_PREREQ(2, 35)
#define OPTLANG_VECTOR(name)                                                    \
  extern "C" __attribute__((simd("notinbranch"))) double name(double) noexcept; \
  extern "C" __attribute__((simd("notinbranch"))) float name##f(float) noexcept;
OPTLANG_VECTOR(acos)
OPTLANG_VECTOR(acosh)
OPTLANG_VECTOR(asin)
OPTLANG_VECTOR(asinh)
OPTLANG_VECTOR(atan)
OPTLANG_VECTOR(atanh)
OPTLANG_VECTOR(cbrt)
OPTLANG_VECTOR(cos)
OPTLANG_VECTOR(cosh)
OPTLANG_VECTOR(erf)
OPTLANG_VECTOR(erfc)
OPTLANG_VECTOR(exp)
OPTLANG_VECTOR(exp2)
OPTLANG_VECTOR(expm1)
OPTLANG_VECTOR(log)
OPTLANG_VECTOR(log10)
OPTLANG_VECTOR(log1p)
OPTLANG_VECTOR(log2)
OPTLANG_VECTOR(sin)
OPTLANG_VECTOR(sinh)
OPTLANG_VECTOR(tan)
OPTLANG_VECTOR(tanh)
extern "C" __attribute__((simd("notinbranch"))) double pow(double, double) noexcept;
extern "C" __attribute__((simd("notinbranch"))) float powf(float, float) noexcept;
#undef OPTLANG_VECTOR
#endif
#endif

namespace {

constexpr real infinite = std::numeric_limits<real>::infinity();
constexpr real undefined = std::numeric_limits<real>::quiet_NaN();

// Numbers in 16 bits. NaN stays NaN, and what lies between two of them becomes the nearer one, or the even one.

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float number_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// The nearest number that bfloat16 has; all is done in 32 bits, which need no packing. Rounding as a whole number can make
// anything of NaN. A product that is too small to change another number brings it back without a choice, which compilers
// would make once for each use of the result.
inline float near_bfloat16(float x) {
  const uint32_t all = bits_of(x);
  const float near = number_of((all + 0x7fff + (all >> 16 & 1)) & 0xffff0000u);
#ifdef __FMA__
  return std::fma(x, 0x1p-30f, near);
#else
  return x == x ? near : number_of(0x7fc00000u);
#endif
}

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float x) : bits(static_cast<uint16_t>(bits_of(near_bfloat16(x)) >> 16)) {}
  operator float() const { return number_of(static_cast<uint32_t>(bits) << 16); }
};

#ifdef OPTLANG_HALF
using float16 = _Float16;
#endif

// A number as T. Of bfloat16 the bits are written, as compilers make no vectors of structs.
template <typename T>
inline void store(T& to, real x) { to = static_cast<T>(x); }
inline void store(bfloat16& to, real x) { to.bits = bfloat16(static_cast<float>(x)).bits; }

// The same of a number that T has.
template <typename T>
inline void store_rounded(T& to, real x) { to = static_cast<T>(x); }
inline void store_rounded(bfloat16& to, real x) {
  to.bits = static_cast<uint16_t>(bits_of(static_cast<float>(x)) >> 16);
}

// What is stored in T, read again.
template <typename T>
inline real rounded(real x) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return static_cast<real>(near_bfloat16(static_cast<float>(x)));
  } else {
    return static_cast<real>(static_cast<T>(x));
  }
}

// Choices. Both sides have been computed: there is nothing to gain by a branch.
inline real choose(bool condition, real a, real b) { return condition ? a : b; }

template <int n>
inline real power(real x) {
  if constexpr (n == 1) {
    return x;
  } else if constexpr (n % 2 == 0) {
    const real half = power<n / 2>(x);
    return half * half;
  } else {
    return power<n - 1>(x) * x;
  }
}

// Maxima, minima and signs keep NaN. Two choices, as compilers make no vectors of one between conditions that are joined
// by "or" where it is made several times over.
template <typename T>
inline T max_(T a, T b) {
  const T larger = a > b ? a : b;
  return a != a ? a : larger;
}
template <typename T>
inline T min_(T a, T b) {
  const T smaller = a < b ? a : b;
  return a != a ? a : smaller;
}
inline real sign_(real x) { return x == x ? static_cast<real>((x > 0) - (x < 0)) : x; }

inline bool isfinite_(real x) { return std::abs(x) < infinite; }
inline real nan_to_num_(real x) {
  constexpr real largest = std::numeric_limits<real>::max();
  return x == x ? std::min(std::max(x, -largest), largest) : real(0);
}
inline real sigmoid_(real x) { return real(1) / (real(1) + std::exp(-x)); }

// The remainder has the sign of the divisor.
inline real mod_(real x, real y) {
  const real rest = std::fmod(x, y);
  return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}

#pragma omp declare reduction(max_ : real : omp_out = max_(omp_out, omp_in)) initializer(omp_priv = -infinite)
#pragma omp declare reduction(min_ : real : omp_out = min_(omp_out, omp_in)) initializer(omp_priv = infinite)

// One parameter and where its step stands: its sizes, its elements, where its tensors lie, and its numbers. It is cut along
// one dimension, of `count` indices; `step` of them are worked on at once. `kept` is what is kept for the whole step.
template <typename Row>
struct Plan;

template <int tensors, int numbers>
struct Parameter {
  const int64_t* n;
  void* const* at;
  const Plan<Parameter>* plan;
  int64_t size, count, step, parts;
  double* kept;
  real number[numbers + 1];
};

template <typename Row>
using Sweep = void (*)(Row&, int64_t, int64_t, const real*, double*, double*);
template <typename Row>
using Finish = void (*)(Row&, const real*, const double*, int64_t);

// The functions for parameters that are cut along one dimension while vectors run along another, the lane; all
// dimensions but the first `present` are of size 1. What is
// `sliced` may be cut anywhere: chunks need nothing of each other.
template <typename Row>
struct Plan {
  int chunked, lane, present, sweeps;
  bool sliced;
  void (*ready)(Row&, const real*);
  const Sweep<Row>* sweep;
  const Finish<Row>* finish;
  void (*done)(Row&, const real*);
  int64_t (*kept_size)(const Row&);
  int64_t (*local_size)(const Row&);
  int64_t (*parts_size)(const Row&);
};
