"""``softsign8``: signed numbers relative to the largest of their block, with a finer resolution near 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.blocks import BY_ELEMENT, Blocks, divided

if TYPE_CHECKING:
    import torch

#: The largest code, which the largest element of a block gets.
LARGEST = 127.0
#: The smallest number by which a block is divided.
LEAST = 1e-12


@dataclass(frozen=True)
class Softsign8(Blocks):
    """Integers from -127 to 127 that represent x/(2 - |x|), rounded to the nearest; scales are float16.

    Codes are those of FlashOptim's momenta. Numbers below 1/500 of the largest in their block become 0, and so does a
    block whose numbers are all below 3e-8, because its float16 scale is 0; a block with a number above 65504 is
    undefined.
    """

    block: int = 32
    name: ClassVar[str] = "softsign8"
    codes: ClassVar[str] = "int8"
    second: ClassVar[str] = "float16"
    cpp: ClassVar[str] = (
        """\
  static float scale_of(float largest) { return std::max(largest, 1e-12f); }
  static float decoded(code c, float scale) {
    const float y = static_cast<float>(c) / 127.0f;
    return y / (2.0f - std::abs(y)) * scale;
  }
  static code encoded(float x, float scale, float, uint32_t) {
    const float part = x / scale;
    return static_cast<code>(static_cast<int32_t>(std::floor(2.0f * part / (1.0f + std::abs(part)) * 127.0f + 0.5f)));
  }
"""
        + BY_ELEMENT
    )
    triton: ClassVar[str] = """\
def softsign8_scale(largest):
    return tl.where(largest < 1e-12, 1e-12, largest)

def softsign8_decoded(codes, scale):
    y = triton_divide(codes.to(tl.float32), 127.0)
    return triton_divide(y, 2.0 - tl.abs(y))*scale

def softsign8_encoded(x, scale, random):
    part = triton_divide(x, scale)
    return tl.floor(triton_divide(2.0*part, 1.0 + tl.abs(part))*127.0 + 0.5).to(tl.int32).to(tl.int8)
"""

    @property
    def vanishes(self) -> str:
        """Which numbers become 0: those below half a code, which represents x/(2 - x)."""
        return "numbers below 1/507 of the largest of their block"

    @property
    def half_code(self) -> float:
        """The relative error of the largest element of a block; smaller ones have larger errors."""
        return 2 / 254

    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the largest element of each block."""
        return largest.clamp_min(LEAST)

    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the nearest codes."""
        import torch

        part = x / scale
        return (2 * part / (1 + part.abs()) * LARGEST + 0.5).floor().to(torch.int8)

    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the dequantized numbers."""
        y = divided(codes.float(), LARGEST)
        return y / (2 - y.abs()) * scale
