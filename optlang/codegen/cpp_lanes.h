// Vectors of the processor, for what compilers make no good vectors of: numbers that become codes, and codes that become
// numbers. Arithmetic, shifts and comparisons are the language's own; the functions here are what it has no word for.
//
// Formats work on a group at a time: as many elements as make four vectors of words, or one vector of bytes.

#ifdef OPTLANG_CODES
#ifdef __AVX512BW__
#define OPTLANG_LANES 16
#define OPTLANG_WIDE(name) _mm512_##name
#define OPTLANG_HALF_AT(at) _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))
#define OPTLANG_QUARTER_AT(at) _mm_loadu_si128(reinterpret_cast<const __m128i*>(at))
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define OPTLANG_LANES 8
#define OPTLANG_WIDE(name) _mm256_##name
#define OPTLANG_HALF_AT(at) _mm_loadu_si128(reinterpret_cast<const __m128i*>(at))
#define OPTLANG_QUARTER_AT(at) _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))
#endif
#endif

#ifdef OPTLANG_LANES

constexpr int lanes = OPTLANG_LANES, group = 4 * lanes;

using floats = float __attribute__((vector_size(group)));
using words = int32_t __attribute__((vector_size(group)));
using unsigned_words = uint32_t __attribute__((vector_size(group)));
using shorts = int16_t __attribute__((vector_size(group)));
using bytes = int8_t __attribute__((vector_size(group)));
using unsigned_bytes = uint8_t __attribute__((vector_size(group)));
#if OPTLANG_LANES == 16
using raw = __m512i;  // what the functions of the processor take
constexpr words counted = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
using raw = __m256i;
constexpr words counted = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

template <typename Vector>
inline Vector loaded(const void* at) {
  Vector x;
  std::memcpy(&x, at, sizeof(x));
  return x;
}
template <typename Vector>
inline void stored(void* at, Vector x) { std::memcpy(at, &x, sizeof(x)); }

// Narrower numbers, as many as a vector has words.
inline words from_unsigned_bytes(const void* at) { return (words)OPTLANG_WIDE(cvtepu8_epi32)(OPTLANG_QUARTER_AT(at)); }
inline words from_bytes(const void* at) { return (words)OPTLANG_WIDE(cvtepi8_epi32)(OPTLANG_QUARTER_AT(at)); }
inline words from_unsigned_shorts(const void* at) { return (words)OPTLANG_WIDE(cvtepu16_epi32)(OPTLANG_HALF_AT(at)); }
inline words from_shorts(const void* at) { return (words)OPTLANG_WIDE(cvtepi16_epi32)(OPTLANG_HALF_AT(at)); }
inline shorts wider(const void* at) { return (shorts)OPTLANG_WIDE(cvtepu8_epi16)(OPTLANG_HALF_AT(at)); }  // bytes
inline floats from_halves(const void* at) { return OPTLANG_WIDE(cvtph_ps)(OPTLANG_HALF_AT(at)); }

inline floats from_whole(words x) { return OPTLANG_WIDE(cvtepi32_ps)((raw)x); }
inline words nearest_whole(floats x) { return (words)OPTLANG_WIDE(cvtps_epi32)(x); }
inline floats multiplied_added(floats a, floats b, floats c) { return OPTLANG_WIDE(fmadd_ps)(a, b, c); }

inline words magnitude(floats x) { return (words)x & 0x7fffffff; }  // in the order of numbers, with NaN the largest
inline words shifted(words x, int by) { return (words)((unsigned_words)x >> by); }  // without regard to a sign
inline words larger(words a, words b) { return (words)OPTLANG_WIDE(max_epi32)((raw)a, (raw)b); }
inline unsigned_bytes larger(unsigned_bytes a, unsigned_bytes b) {
  return (unsigned_bytes)OPTLANG_WIDE(max_epu8)((raw)a, (raw)b);
}
inline int32_t largest(words x) {
#if OPTLANG_LANES == 16
  return _mm512_reduce_max_epi32((raw)x);
#else
  const __m128i half = _mm_max_epi32(_mm256_castsi256_si128((raw)x), _mm256_extracti128_si256((raw)x, 1));
  const __m128i two = _mm_max_epi32(half, _mm_unpackhi_epi64(half, half));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
#endif
}

// `x` where `y` is above 0, and 0 where it is 0.
inline words where_not_0(words x, words y) {
#if OPTLANG_LANES == 16
  return (words)_mm512_maskz_mov_epi32(_mm512_test_epi32_mask((raw)y, (raw)y), (raw)x);
#else
  return (words)_mm256_sign_epi32((raw)x, (raw)y);
#endif
}

// The sums of the upper and the lower halves of words, each times a number.
inline words halves_added(words x, int upper, int lower) {
  return (words)OPTLANG_WIDE(madd_epi16)((raw)x, OPTLANG_WIDE(set1_epi32)(upper << 16 | lower));
}

// Two vectors in half of the bits, in an order of the processor's own. What is too large or too small for that becomes
// the largest or the smallest of it; `unsigned_` is about the result, what comes in has a sign.
inline shorts packed(words a, words b) { return (shorts)OPTLANG_WIDE(packs_epi32)((raw)a, (raw)b); }
inline shorts unsigned_packed(words a, words b) { return (shorts)OPTLANG_WIDE(packus_epi32)((raw)a, (raw)b); }
inline bytes packed(shorts a, shorts b) { return (bytes)OPTLANG_WIDE(packs_epi16)((raw)a, (raw)b); }
inline unsigned_bytes unsigned_packed(shorts a, shorts b) {
  return (unsigned_bytes)OPTLANG_WIDE(packus_epi16)((raw)a, (raw)b);
}
// Less a number, but not less than 0; they have no sign.
inline shorts reduced(shorts x, int16_t by) {
  return (shorts)OPTLANG_WIDE(subs_epu16)((raw)x, OPTLANG_WIDE(set1_epi16)(by));
}

// The elements of a group that has been packed twice, or of half of one that has been packed once, as they were.
template <typename Packed>
inline Packed in_order(Packed x) {
#if OPTLANG_LANES == 16
  constexpr words twice = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  constexpr words once = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
  return (Packed)_mm512_permutexvar_epi32((raw)(sizeof(x[0]) == 1 ? twice : once), (raw)x);
#else
  constexpr words twice = {0, 4, 1, 5, 2, 6, 3, 7}, once = {0, 1, 4, 5, 2, 3, 6, 7};
  return (Packed)_mm256_permutevar8x32_epi32((raw)x, (raw)(sizeof(x[0]) == 1 ? twice : once));
#endif
}

// A group of words as bytes, not yet in order.
inline bytes packed_twice(const words* x) { return packed(packed(x[0], x[1]), packed(x[2], x[3])); }
// The lowest eight bits of a group.
inline unsigned_bytes packed_lowest(const words* x) {
  return unsigned_packed(unsigned_packed(x[0] & 255, x[1] & 255), unsigned_packed(x[2] & 255, x[3] & 255));
}
// Writes a group of words in 16 bits.
inline void stored_shorts(uint16_t* to, const words* x) {
  for (int i = 0; i < 4; i += 2) stored(to + i * lanes, in_order(unsigned_packed(x[i], x[i + 1])));
}
inline void stored_shorts(int16_t* to, const words* x) {
  for (int i = 0; i < 4; i += 2) stored(to + i * lanes, in_order(packed(x[i], x[i + 1])));
}

#endif
