// The entries of a history, as loops over them read them.

#include <cstdint>

namespace {

// The rows of a ring, of which each is an entry, and what has been pushed since and lies elsewhere.
template <typename real>
struct History {
  const real* rows;
  int64_t size, width, start;
  int64_t pushes = 0;
  const real* pushed[16] = {};

  void push(const real* entry, bool held) {
    if (held) pushed[pushes++] = entry;
  }

  // Where an entry lies, the oldest being 0.
  const real* operator[](int64_t i) const {
    i += pushes;
    return i < size ? rows + (start + i) % size * width : pushed[i - size];
  }
};

}  // namespace
