// Tensors that are kept in codes, as the formats of this file say: each code with a second number of its own, or blocks of
// codes with a scale.

// What a division by `scale` gives to the last bit, where `inverse` is 1/scale and products can be added exactly.
inline float divided(float x, float scale, float inverse) {
#ifdef __FMA__
  const float near = x * inverse;
  return std::fma(std::fma(-near, scale, x), inverse, near);
#else
  return x / scale;
#endif
}

// A block of a tensor whose rows have some columns: the place of its scale, and where it begins and ends.
struct Block {
  int64_t columns, size, scale, begin, end, row_end;
  // The block that the element `place` is in.
  Block(int64_t place, int64_t columns, int64_t size) : columns(columns), size(size) {
    const int64_t row = place / columns, within = (place - row * columns) / size;
    scale = row * ((columns + size - 1) / size) + within;
    begin = row * columns + within * size;
    row_end = (row + 1) * columns;
    end = std::min(begin + size, row_end);
  }
  void next() {
    begin = end;
    if (begin == row_end) row_end += columns;
    end = std::min(begin + size, row_end);
    ++scale;
  }
};

// The same numbers as those of `drawn` in Python.
inline uint32_t drawn(uint32_t place, uint32_t key) { return (place ^ key) * 0x9E3779B1u; }

// Elements of a tensor from `begin`, where a block begins, to `end`, where one ends, as numbers.
template <typename Format, int64_t size>
void decode(const void* codes, const void* seconds, int64_t columns, int64_t begin, int64_t end, float* numbers) {
  const auto* const all = static_cast<const typename Format::code*>(codes);
  const auto* const theirs = static_cast<const typename Format::second*>(seconds);
  if constexpr (Format::pairs) {
    const auto* __restrict const from = all + begin;
    const auto* __restrict const second = Format::alone ? nullptr : theirs + begin;
    for (int64_t i = 0; i < end - begin; ++i) numbers[i] = Format::decoded(from[i], Format::alone ? 0 : second[i]);
  } else {
    for (Block block(begin, columns, size); block.begin < end; block.next()) {
      const auto* __restrict const from = all + block.begin;
      float* __restrict const to = numbers + (block.begin - begin);
      const float scale = static_cast<float>(theirs[block.scale]);
      const int64_t n = block.end - block.begin;
      int64_t i = Format::decode_vectors(from, scale, to, n);
      for (; i < n; ++i) to[i] = Format::decoded(from[i], scale);
    }
  }
}

template <typename Format>
void encode_block(const float* __restrict from, typename Format::code* __restrict to, typename Format::second& kept,
    int64_t n, uint32_t first, uint32_t key) {
  // Magnitudes are in the order of their bits, with NaN the largest.
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, static_cast<int32_t>(bits_of(from[i]) & 0x7fffffffu));
  const float scale = Format::scale_of(number_of(static_cast<uint32_t>(largest)));
  kept = static_cast<typename Format::second>(scale);
  const float inverse = 1.0f / scale;
  if (scale - scale == 0) {
    for (int64_t i = 0; i < n; ++i)
      to[i] = Format::encoded(from[i], scale, inverse, Format::draws ? drawn(first + static_cast<uint32_t>(i), key) : 0);
  } else {  // something is infinite or undefined: so is all of the block
    std::memset(to, 0, n * sizeof(*to));
    kept = static_cast<typename Format::second>(undefined);
  }
}

template <typename Format, int64_t size>
void encode(
    const float* numbers, void* codes, void* seconds, int64_t columns, int64_t begin, int64_t end, uint32_t key) {
  auto* const all = static_cast<typename Format::code*>(codes);
  auto* const theirs = static_cast<typename Format::second*>(seconds);
  if constexpr (Format::pairs) {
    auto* __restrict const to = all + begin;
    auto* __restrict const second = Format::alone ? nullptr : theirs + begin;
    const uint32_t first = static_cast<uint32_t>(begin);
    typename Format::second none;
    for (int64_t i = 0; i < end - begin; ++i) {
      const uint32_t random = Format::draws ? drawn(first + static_cast<uint32_t>(i), key) : 0;
      Format::encoded(numbers[i], to[i], Format::alone ? none : second[i], random);
    }
  } else {
    for (Block block(begin, columns, size); block.begin < end; block.next()) {
      const uint32_t first = static_cast<uint32_t>(block.begin);
      const float* const from = numbers + (block.begin - begin);
      encode_block<Format>(from, all + block.begin, theirs[block.scale], block.end - block.begin, first, key);
    }
  }
}

// A tensor that is kept in codes: its place among the tensors of a parameter, and how a part of it is read and written.
struct Coded {
  int tensor;
  int64_t block;
  void (*decode)(const void*, const void*, int64_t, int64_t, int64_t, float*);
  void (*encode)(const float*, void*, void*, int64_t, int64_t, int64_t, uint32_t);
};
