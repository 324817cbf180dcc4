"""``int8``: integers relative to the largest element of the block, rounded to the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.blocks import Blocks, divided

if TYPE_CHECKING:
    import torch

#: The largest code, which the largest element of a block gets.
LARGEST = 127.0
#: The smallest number by which a block is scaled: numbers are multiplied by 127 over it, which must be finite.
LEAST = 2e-36


@dataclass(frozen=True)
class Int8(Blocks):
    """Integers from -127 to 127.

    Numbers below 1/254 of the largest in their block become 0: small elements next to large ones stop changing.
    """

    name: ClassVar[str] = "int8"
    codes: ClassVar[str] = "int8"
    cpp: ClassVar[str] = """\
  static float scale_of(float largest) { return std::max(largest, 2e-36f) / 127.0f; }
  static float decoded(code c, float scale) { return static_cast<float>(c) * scale; }
  static code encoded(float x, float, float inverse, uint32_t) {
    return static_cast<code>(static_cast<int32_t>(std::nearbyint(x * inverse)));
  }
#ifdef OPTLANG_LANES
  static void decode_group(const code* from, float scale, float* to) {
    for (int i = 0; i < group; i += lanes) stored(to + i, from_whole(from_bytes(from + i)) * scale);
  }
  static void encode_group(const float* from, float, float inverse, Random&, code* to) {
    words found[4];
    for (int i = 0; i < 4; ++i) found[i] = nearest_whole(loaded<floats>(from + i * lanes) * inverse);
    stored(to, in_order(packed_lowest(found)));
  }
#endif
"""
    triton: ClassVar[str] = """\
def int8_scale(largest):
    return triton_divide(tl.where(largest < 2e-36, 2e-36, largest), 127.0)

def int8_decoded(codes, scale):
    return codes.to(tl.float32)*scale

def int8_encoded(x, scale, random):
    y = x*triton_divide(1.0, scale)
    return ((y + 12582912.0) - 12582912.0).to(tl.int32).to(tl.int8)  # the nearest whole number
"""

    @property
    def vanishes(self) -> str:
        """Which numbers become 0: those below half a code."""
        return "numbers below 1/254 of the largest of their block"

    @property
    def half_code(self) -> float:
        """The relative error of the largest element of a block; smaller ones have larger errors."""
        return 1 / 254

    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Map the largest element of each block to 127."""
        return divided(largest.clamp_min(LEAST), LARGEST)

    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the nearest codes."""
        import torch

        return (x * scale.reciprocal()).round().to(torch.int8)

    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the dequantized numbers."""
        return codes.float() * scale
