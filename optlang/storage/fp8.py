"""``fp8``: numbers of eight bits under the largest of their block, the nearest one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.blocks import Blocks

if TYPE_CHECKING:
    import torch

#: The largest number with four bits of exponent and three of mantissa.
LARGEST = 448.0
#: The least scale: a block of zeros has one, too.
LEAST = 1e-12


@dataclass(frozen=True)
class Fp8(Blocks):
    """A sign, four bits of exponent and three of mantissa (e4m3, which has no infinities).

    Small numbers beside large ones keep their size to a sixteenth, over a range of nearly 2**18. Codes and scales are
    those of torchao's ``AdamWFp8``.
    """

    name: ClassVar[str] = "fp8"
    codes: ClassVar[str] = "float8_e4m3fn"
    cpp: ClassVar[str] = """\
  static float scale_of(float largest) { return std::max(largest, 1e-12f) / 448.0f; }
  static float decoded(code c, float scale) {
    const uint32_t rest = c & 0x7fu;
    const float small = static_cast<float>(rest) * 0x1p-9f, usual = number_of((rest << 20) + (120u << 23));
    return number_of(bits_of(rest < 8 ? small : usual) | (static_cast<uint32_t>(c) & 0x80u) << 24) * scale;
  }
  // As numbers of 16 bits they have the same fields, and the processor reads those.
  static int64_t decode_vectors(const code* from, float scale, float* to, int64_t n) {
    int64_t i = 0;
#ifdef __AVX2__
    const __m256 factor = _mm256_set1_ps(scale * 256.0f);
    for (; i + 8 <= n; i += 8) {
      const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i));
      const __m128i high = _mm_srai_epi16(_mm_slli_epi16(_mm_cvtepu8_epi16(codes), 8), 1);
      const __m128i half = _mm_and_si128(high, _mm_set1_epi16(static_cast<int16_t>(0xBFFF)));
      _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_cvtph_ps(half), factor));
    }
#endif
    return i;
  }
  static code encoded(float x, float scale, float inverse, uint32_t) {
    // Beside a number 2**20 times as large as the first bit, all but three more bits are rounded off.
    const uint32_t bits = bits_of(divided(x, scale, inverse)), rest = bits & 0x7fffffffu;
    const uint32_t exponent = std::max(rest, 121u << 23) & 0x7f800000u, large = exponent + (20u << 23);
    const uint32_t whole = bits_of(number_of(rest) + number_of(large)) - large;
    return static_cast<code>((whole + (exponent >> 20) - (121u << 3)) | (bits >> 24 & 0x80u));
  }
"""

    @property
    def vanishes(self) -> str:
        """Which numbers become 0: those below half of the least one, 2**-9, with 448 as the largest."""
        return "numbers below 1/458,752 of the largest of their block"

    @property
    def half_code(self) -> float:
        """What is lost of a number at most, in parts of it: half of the last of three bits."""
        return 2.0**-4

    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the largest of each block as 448."""
        return largest.clamp_min(LEAST) / LARGEST

    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the nearest codes."""
        import torch

        return (x / scale).to(torch.float8_e4m3fn)

    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the numbers of codes."""
        return codes.float() * scale
