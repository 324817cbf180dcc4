// Tensors that are kept in codes, as the formats of this file say: each code with a second number of its own, or blocks of
// codes with a scale.
//
// A format says twice what its codes are, for a number and for a group of them (see cpp_lanes.h); both are the same codes.

// The same numbers as those of `drawn` in Python.
inline uint32_t drawn(uint32_t place, uint32_t key) { return (place ^ key) * 0x9E3779B1u; }

#ifdef OPTLANG_LANES
// What a division by `scale` gives to the last bit but for the sign of 0, where `inverse` is 1/scale.
inline floats divided(floats x, float scale, float inverse) {
  const floats near = x * inverse, all = scale - floats{}, one = inverse - floats{};
  return multiplied_added(multiplied_added(-near, all, x), one, near);
}

// Random numbers for the vectors of a group.
struct Random {
  words place;
  int32_t key;
  Random(uint32_t first, uint32_t key) : place(counted + static_cast<int32_t>(first)), key(static_cast<int32_t>(key)) {}
  words next() {
    const words random = (place ^ key) * static_cast<int32_t>(0x9E3779B1u);
    place += lanes;
    return random;
  }
};
#endif

// An element of a tensor whose rows have some columns: its row, and its place among all elements.
struct Place {
  int64_t columns, row, element;
  // Goes forward to another element.
  void move(int64_t to) {
    element = to;
    while (element >= (row + 1) * columns) ++row;
  }
};

// The block of some size that an element is in: the place of its scale, and where it begins and ends.
struct Block {
  int64_t columns, size, row, scale, begin, end, row_end;
  Block(const Place& place, int64_t size) : columns(place.columns), size(size), row(place.row) {
    const int64_t row_begin = row * columns, within = static_cast<uint64_t>(place.element - row_begin) / size;
    scale = row * (static_cast<uint64_t>(columns + size - 1) / size) + within;
    begin = row_begin + within * size;
    row_end = row_begin + columns;
    end = std::min(begin + size, row_end);
  }
  void next() {
    begin = end;
    if (begin == row_end) {
      row_end += columns;
      ++row;
    }
    end = std::min(begin + size, row_end);
    ++scale;
  }
  Place place() const { return {columns, row, begin}; }
};

// Codes of a block as numbers.
template <typename Format>
void decode_block(const typename Format::code* __restrict from, float scale, float* __restrict to, int64_t n) {
  int64_t i = 0;
#ifdef OPTLANG_LANES
  for (; i + group <= n; i += group) Format::decode_group(from + i, scale, to + i);
  if (i < n) {  // the rest, filled up
    typename Format::code rest[group] = {};
    float numbers[group];
    std::memcpy(rest, from + i, (n - i) * sizeof(*from));
    Format::decode_group(rest, scale, numbers);
    std::memcpy(to + i, numbers, (n - i) * sizeof(*to));
  }
#else
  for (; i < n; ++i) to[i] = Format::decoded(from[i], scale);
#endif
}

// The largest magnitude. They are in the order of their bits, with NaN the largest.
inline float largest(const float* x, int64_t n) {
  int32_t found = 0;
  int64_t i = 0;
#ifdef OPTLANG_LANES
  words most[4] = {};
  for (; i + group <= n; i += group)
    for (int k = 0; k < 4; ++k) most[k] = larger(most[k], magnitude(loaded<floats>(x + i + k * lanes)));
  found = largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
#endif
  for (; i < n; ++i) found = std::max(found, static_cast<int32_t>(bits_of(x[i]) & 0x7fffffffu));
  return number_of(static_cast<uint32_t>(found));
}

// The scale of a block, as it is used and as it is kept.
template <typename Format>
struct Scale {
  float scale, inverse;
  typename Format::second kept;
  Scale(const float* numbers, int64_t n)
      : scale(Format::scale_of(largest(numbers, n))), inverse(1.0f / scale),
        kept(static_cast<typename Format::second>(scale)) {}
};

// Numbers of a block as codes; `first` is the place of the first of them in the tensor.
template <typename Format>
void encode_block(const float* __restrict from, typename Format::code* __restrict to, int64_t n, float scale, float inverse,
    uint32_t first, uint32_t key) {
  int64_t i = 0;
#ifdef OPTLANG_LANES
  Random random(first, key);
  for (; i + group <= n; i += group) Format::encode_group(from + i, scale, inverse, random, to + i);
  if (i < n) {  // the rest, filled up
    float rest[group] = {};
    typename Format::code codes[group];
    std::memcpy(rest, from + i, (n - i) * sizeof(*from));
    Format::encode_group(rest, scale, inverse, random, codes);
    std::memcpy(to + i, codes, (n - i) * sizeof(*to));
  }
#else
  for (; i < n; ++i)
    to[i] = Format::encoded(from[i], scale, inverse, Format::draws ? drawn(first + static_cast<uint32_t>(i), key) : 0);
#endif
}

// Elements of a format whose codes have a second number each, as numbers and back.
template <typename Format>
void decode_pairs(const typename Format::code* __restrict from, const typename Format::second* __restrict second,
    float* __restrict to, int64_t n) {
  using Second = typename Format::second;
  int64_t i = 0;
#ifdef OPTLANG_LANES
  for (; i + group <= n; i += group) Format::decode_group(from + i, second + (Format::alone ? 0 : i), to + i);
#endif
  for (; i < n; ++i) to[i] = Format::decoded(from[i], Format::alone ? Second() : second[i]);
}
template <typename Format>
void encode_pairs(const float* __restrict from, typename Format::code* __restrict to,
    typename Format::second* __restrict second, int64_t n, uint32_t first, uint32_t key) {
  typename Format::second none;
  int64_t i = 0;
#ifdef OPTLANG_LANES
  Random random(first, key);
  for (; i + group <= n; i += group)
    Format::encode_group(from + i, random, to + i, second + (Format::alone ? 0 : i));
#endif
  for (; i < n; ++i) {
    const uint32_t random = Format::draws ? drawn(first + static_cast<uint32_t>(i), key) : 0;
    Format::encoded(from[i], to[i], Format::alone ? none : second[i], random);
  }
}

// Elements of a tensor as numbers.
template <typename Format, int64_t size>
void decode(const void* codes, const void* seconds, const Place& from, int64_t end, float* numbers) {
  const int64_t begin = from.element;
  const auto* const all = static_cast<const typename Format::code*>(codes);
  const auto* const theirs = static_cast<const typename Format::second*>(seconds);
  if constexpr (Format::pairs) {
    decode_pairs<Format>(all + begin, theirs + (Format::alone ? 0 : begin), numbers, end - begin);
  } else {
    for (Block block(from, size); block.begin < end; block.next()) {
      const int64_t first = std::max(block.begin, begin), n = std::min(block.end, end) - first;
      decode_block<Format>(all + first, static_cast<float>(theirs[block.scale]), numbers + (first - begin), n);
    }
  }
}

// What random numbers are drawn by: the place in the whole tensor of the first element of this part, and a key.
struct Draw {
  uint32_t first, key;
};

// Numbers as codes, from where a block begins to `end`, where one ends.
template <typename Format, int64_t size>
void encode(const float* numbers, void* codes, void* seconds, const Place& to, int64_t end, Draw draw) {
  const int64_t begin = to.element;
  auto* const all = static_cast<typename Format::code*>(codes);
  auto* const theirs = static_cast<typename Format::second*>(seconds);
  if constexpr (Format::pairs) {
    auto* const second = theirs + (Format::alone ? 0 : begin);
    encode_pairs<Format>(numbers, all + begin, second, end - begin, draw.first + static_cast<uint32_t>(begin), draw.key);
  } else {
    Block block(to, size);
    Scale<Format> scale(numbers, block.end - block.begin);
    while (block.begin < end) {
      const Block now = block;
      const Scale<Format> its = scale;
      const float* const from = numbers + (now.begin - begin);
      const int64_t n = now.end - now.begin;
      block.next();
      // Before the codes are written, so that nothing waits for it.
      if (block.begin < end) scale = Scale<Format>(from + n, block.end - block.begin);
      theirs[now.scale] = its.kept;
      if (its.scale - its.scale == 0) {
        encode_block<Format>(from, all + now.begin, n, its.scale, its.inverse, draw.first + static_cast<uint32_t>(now.begin),
            draw.key);
      } else {  // something is infinite or undefined: so is all of the block
        std::memset(all + now.begin, 0, n * sizeof(*all));
        theirs[now.scale] = static_cast<typename Format::second>(undefined);
      }
    }
  }
}

// A tensor that is kept in codes: its place among the tensors of a parameter, and how a part of it is read and written.
struct Coded {
  int tensor;
  int64_t block;
  void (*decode)(const void*, const void*, const Place&, int64_t, float*);
  void (*encode)(const float*, void*, void*, const Place&, int64_t, Draw);
};
