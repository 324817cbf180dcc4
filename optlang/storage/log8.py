"""``log8``: nonnegative numbers over a range of 2**32 below the largest of a block, rounded stochastically."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.blocks import Blocks, divided

if TYPE_CHECKING:
    import torch

#: The largest code, 255, represents this fraction of the scale.
LARGEST = 0.9375


@dataclass(frozen=True)
class Log8(Blocks):
    """Five exponent bits and three mantissa bits, without a sign; code 0 represents only 0.

    A divisor in this format is at most 1/8 too small, however small it is compared with the others of its block, down
    to 2**-32 of the largest; below that it is too large, which makes a step short and not long. Numbers are rounded up
    or down stochastically, in proportion, because averages of squares change little in each step.
    """

    name: ClassVar[str] = "log8"
    signed: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    cpp: ClassVar[str] = """\
  static float scale_of(float largest) { return largest / 0.9375f; }
  static float decoded(code c, float scale) {
    const uint32_t bits = (static_cast<uint32_t>(c) << 20) + (95u << 23);
    return number_of(c ? bits : 0) * scale;
  }
  static code encoded(float x, float, float inverse, uint32_t random) {
    const int32_t bits = static_cast<int32_t>(bits_of(x * inverse) + (random >> 12));
    const int32_t found = std::min(std::max((bits >> 20) - (95 << 3), 1), 255);
    return static_cast<code>(x > 0 ? found : 0);
  }
#ifdef OPTLANG_LANES
  static void decode_group(const code* from, float scale, float* to) {
    for (int i = 0; i < group; i += lanes) {
      const words whole = from_unsigned_bytes(from + i);
      stored(to + i, (floats)where_not_0((whole << 20) + (95 << 23), whole) * scale);
    }
  }
  static void encode_group(const float* from, float, float inverse, Random& random, code* to) {
    words signs[4], found[4];
    for (int i = 0; i < 4; ++i) {
      const floats x = loaded<floats>(from + i * lanes);
      signs[i] = (words)x;  // packing keeps whether it is above, below or equal to 0
      found[i] = ((words)(x * inverse) + shifted(random.next(), 12)) >> 20;
    }
    const shorts low = unsigned_packed(found[0], found[1]), high = unsigned_packed(found[2], found[3]);
    const unsigned_bytes code = unsigned_packed(reduced(low, 95 << 3), reduced(high, 95 << 3));
    stored(to, in_order(larger(code, unsigned_bytes{} + 1) & (unsigned_bytes)(packed_twice(signs) > 0)));
  }
#endif
"""
    triton: ClassVar[str] = """\
def log8_scale(largest):
    return triton_divide(largest, 0.9375)

def log8_decoded(codes, scale):
    whole = codes.to(tl.int32)
    return tl.where(whole > 0, (whole << 20) + (95 << 23), 0).to(tl.float32, bitcast=True)*scale

def log8_encoded(x, scale, random):
    bits = (x*triton_divide(1.0, scale)).to(tl.int32, bitcast=True) + (random >> 12).to(tl.int32)
    found = tl.minimum(tl.maximum((bits >> 20) - (95 << 3), 1), 255)
    return tl.where(x > 0, found, 0).to(tl.uint8)
"""

    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the scale that gives the largest element of each block the largest code."""
        return divided(largest, LARGEST)

    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the code above or below, with probabilities in proportion to the distance."""
        import torch

        assert random is not None
        bits = (x * scale.reciprocal()).view(torch.int32).to(torch.int64) + (random >> 12)
        found = ((bits >> 20) - (95 << 3)).clamp(1, 255)
        return torch.where(x > 0, found, 0).to(torch.uint8)

    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the dequantized numbers."""
        import torch

        whole = codes.to(torch.int32)
        return torch.where(whole > 0, (whole << 20) + (95 << 23), 0).view(torch.float32) * scale
