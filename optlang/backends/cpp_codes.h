// Tensors that are kept in codes with a scale for each block, as the formats of this file say.

// The place among the blocks of a tensor of the element `place`, where its block begins and ends.
struct Block {
  int64_t scale, begin, end;
  Block(int64_t place, int64_t columns, int64_t size) {
    const int64_t row = place / columns, within = (place - row * columns) / size;
    scale = row * ((columns + size - 1) / size) + within;
    begin = row * columns + within * size;
    end = std::min(begin + size, (row + 1) * columns);
  }
};

// The same numbers as those of `drawn` in Python.
inline uint32_t drawn(uint32_t place, uint32_t key) {
  uint32_t h = (place ^ key) * 0x9E3779B1u;
  h = (h ^ h >> 15) * 0x85EBCA77u;
  return h ^ h >> 13;
}

template <typename Format>
void decode(const void* codes, const void* scales, const Block& block, float* to) {
  const auto* const from = static_cast<const typename Format::code*>(codes) + block.begin;
  const float scale = static_cast<float>(static_cast<const typename Format::scale*>(scales)[block.scale]);
  const int64_t n = block.end - block.begin;
  for (int64_t i = 0; i < n; ++i) to[i] = Format::decoded(from[i], scale);
}

template <typename Format>
void encode(const float* from, void* codes, void* scales, const Block& block, uint32_t key) {
  const int64_t n = block.end - block.begin;
  // Magnitudes are in the order of their bits, with NaN the largest; what is negative counts only where it can be kept.
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = static_cast<int32_t>(bits_of(from[i]));
    largest = std::max(largest, Format::is_signed || (bits & 0x7fffffff) > 0x7f800000 ? bits & 0x7fffffff : bits);
  }
  auto& kept = static_cast<typename Format::scale*>(scales)[block.scale];
  kept = static_cast<typename Format::scale>(Format::scale_of(number_of(static_cast<uint32_t>(largest))));
  const float scale = static_cast<float>(kept);
  auto* const to = static_cast<typename Format::code*>(codes) + block.begin;
  const uint32_t first = static_cast<uint32_t>(block.begin);
  for (int64_t i = 0; i < n; ++i)
    to[i] = Format::encoded(from[i], scale, Format::draws ? drawn(first + static_cast<uint32_t>(i), key) : 0);
}

// A tensor that is kept in codes: its place among the tensors of a parameter, and how blocks of it are read and written.
struct Coded {
  int tensor;
  int64_t block;
  void (*decode)(const void*, const void*, const Block&, float*);
  void (*encode)(const float*, void*, void*, const Block&, uint32_t);
};
