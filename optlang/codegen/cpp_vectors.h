// Operations on whole vectors that torch would go through memory for more than once.
//
// Sums are made of parts of a size that depends on nothing, added up in order, so that none depends on the threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

// Elements of a part that one thread takes, of the part of it that is summed in the type of the elements, and sums that
// are made side by side.
constexpr int64_t longest = 65536, block = 4096, lanes = 32, ahead = 512;

// to = x + c*y for some elements.
template <typename real>
void added(int64_t n, real* to, const real* x, real c, const real* y) {
  for (int64_t i = 0; i < n; ++i) to[i] = x[i] + c * y[i];
}

// The sum of x*y for some elements.
template <typename real>
double sum_of(int64_t n, const real* x, const real* y) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(begin + block, n);
    real sums[lanes] = {};
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      for (int64_t j = 0; j < lanes; ++j) sums[j] += x[i + j] * y[i + j];
    }
    for (; i < end; ++i) total += static_cast<double>(x[i] * y[i]);
    for (int64_t j = 0; j < lanes; ++j) total += static_cast<double>(sums[j]);
  }
  return total;
}

// to = x + c*y for some elements; returns the sum of to*z.
template <typename real>
double sum_of(int64_t n, real* to, const real* x, real c, const real* y, const real* z) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(begin + block, n);
    real sums[lanes] = {};
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      for (int64_t j = 0; j < lanes; j += 64 / sizeof(real)) {
        __builtin_prefetch(y + i + ahead + j);
        __builtin_prefetch(z + i + ahead + j);
      }
      for (int64_t j = 0; j < lanes; ++j) {
        const real value = x[i + j] + c * y[i + j];
        to[i + j] = value;
        sums[j] += value * z[i + j];
      }
    }
    for (; i < end; ++i) {
      const real value = x[i] + c * y[i];
      to[i] = value;
      total += static_cast<double>(value * z[i]);
    }
    for (int64_t j = 0; j < lanes; ++j) total += static_cast<double>(sums[j]);
  }
  return total;
}

// The sum of part(begin, n) over the parts of a vector.
template <typename Part>
double sum_of_parts(int64_t n, int threads, Part part) {
  const int64_t parts = (n + longest - 1) / longest;
  std::vector<double> sums(parts);
  #pragma omp parallel for num_threads(threads) if (threads > 1 && parts > 1)
  for (int64_t i = 0; i < parts; ++i) sums[i] = part(i * longest, std::min(longest, n - i * longest));
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

template <typename real>
double dot(int64_t n, const real* x, const real* y, int threads) {
  return sum_of_parts(n, threads, [=](int64_t at, int64_t count) { return sum_of<real>(count, x + at, y + at); });
}

// to = x + c*y; returns the sum of to*z, or 0 without z.
template <typename real>
double multiply_add_dot(int64_t n, real* to, const real* x, double c, const real* y, const real* z, int threads) {
  const real factor = static_cast<real>(c);
  return sum_of_parts(n, threads, [=](int64_t at, int64_t count) {
    if (z != nullptr) return sum_of<real>(count, to + at, x + at, factor, y + at, z + at);
    added<real>(count, to + at, x + at, factor, y + at);
    return 0.0;
  });
}

// Whether values are x + c*y up to how a sum of two numbers may be rounded; without y, whether they are x.
template <typename real>
bool near(int64_t n, const real* value, const real* x, double c, const real* y) {
  const real factor = static_cast<real>(c), least = 4 * std::numeric_limits<real>::epsilon();
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(begin + block, n);
    bool all = true;
    for (int64_t i = begin; i < end; ++i) {
      const real there = y != nullptr ? factor * y[i] + x[i] : x[i];
      all &= std::abs(value[i] - there) <= least * (std::abs(x[i]) + std::abs(there));
    }
    if (!all) return false;
  }
  return true;
}

}  // namespace
