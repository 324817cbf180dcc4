"""``fp8``: 8-bit floats relative to the largest element of the block, rounded to the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.blocks import Blocks, divided

if TYPE_CHECKING:
    import torch

#: The largest number with four exponent bits and three mantissa bits.
LARGEST = 448.0
#: The smallest scale, which also applies to a block of zeros.
LEAST = 1e-12


@dataclass(frozen=True)
class Fp8(Blocks):
    """A sign, four exponent bits and three mantissa bits (e4m3, which has no infinities).

    Small numbers next to large ones keep a relative precision of 1/16, over a range of nearly 2**18. Codes and scales
    are those of torchao's ``AdamWFp8``.
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
  static code encoded(float x, float scale, float, uint32_t) {
    // Beside a number 2**20 times as large as the first bit, all but three more bits are rounded off.
    const uint32_t bits = bits_of(x / scale), rest = bits & 0x7fffffffu;
    const uint32_t exponent = std::max(rest, 121u << 23) & 0x7f800000u, large = exponent + (20u << 23);
    const uint32_t whole = bits_of(number_of(rest) + number_of(large)) - large;
    return static_cast<code>((whole + (exponent >> 20) - (121u << 3)) | (bits >> 24 & 0x80u));
  }
#ifdef OPTLANG_LANES
  // As numbers of 16 bits they have the same fields, and the processor reads those.
  static void decode_group(const code* from, float scale, float* to) {
    for (int half = 0; half < group; half += 2 * lanes) {
      shorts halves = ((wider(from + half) << 8) >> 1) & static_cast<int16_t>(0xBFFF);
      const auto* const each = reinterpret_cast<const int16_t*>(&halves);
      stored(to + half, from_halves(each) * (scale * 256.0f));
      stored(to + half + lanes, from_halves(each + lanes) * (scale * 256.0f));
    }
  }
  static void encode_group(const float* from, float scale, float inverse, Random&, code* to) {
    words signs[4], found[4];
    for (int i = 0; i < 4; ++i) {
      const floats x = loaded<floats>(from + i * lanes);
      signs[i] = (words)x;  // packing keeps whether it is above, below or equal to 0
      const words rest = magnitude(divided(x, scale, inverse));
      const words exponent = larger(rest, words{} + (121 << 23)) & 0x7f800000;
      // The upper half of the sum has 128 times the exponent, the lower one the rounded mantissa: 16 times the code.
      const floats sum = multiplied_added((floats)exponent, floats{} + 0x1p20f, (floats)rest);
      found[i] = halves_added((words)sum, 1, 16);
    }
    const shorts low = unsigned_packed(found[0], found[1]) >> 4, high = unsigned_packed(found[2], found[3]) >> 4;
    const unsigned_bytes code = unsigned_packed(low - (141 << 3), high - (141 << 3));
    stored(to, in_order(code | ((unsigned_bytes)packed_twice(signs) & 0x80)));
  }
#endif
"""
    triton: ClassVar[str] = """\
def fp8_scale(largest):
    return triton_divide(tl.where(largest < 1e-12, 1e-12, largest), 448.0)

def fp8_decoded(codes, scale):
    whole = codes.to(tl.int32)
    rest = whole & 127
    usual = ((rest << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    size = tl.where(rest < 8, rest.to(tl.float32)*0.001953125, usual).to(tl.int32, bitcast=True)
    return (size | ((whole & 128) << 24)).to(tl.float32, bitcast=True)*scale

def fp8_encoded(x, scale, random):
    bits = triton_divide(x, scale).to(tl.int32, bitcast=True)
    rest = bits & 0x7fffffff
    exponent = tl.maximum(rest, 121 << 23) & 0x7f800000
    large = exponent + (20 << 23)
    whole = (rest.to(tl.float32, bitcast=True) + large.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True) - large
    return ((whole + (exponent >> 20) - (121 << 3)) | ((bits >> 24) & 128)).to(tl.uint8)
"""

    @property
    def vanishes(self) -> str:
        """Which numbers become 0: those below half of the smallest one, 2**-9, with 448 as the largest."""
        return "numbers below 1/458,752 of the largest of their block"

    @property
    def half_code(self) -> float:
        """The largest relative error: half a unit in the last of three mantissa bits."""
        return 2.0**-4

    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Map the largest element of each block to 448."""
        return divided(largest.clamp_min(LEAST), LARGEST)

    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the nearest codes."""
        import torch

        return (x / scale).to(torch.float8_e4m3fn)

    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the dequantized numbers."""
        return codes.float() * scale
