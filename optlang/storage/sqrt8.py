"""``sqrt8``: nonnegative numbers, by their square roots relative to the largest one of their block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.blocks import BY_ELEMENT, Blocks, divided, root

if TYPE_CHECKING:
    import torch

#: The largest code, which the largest element of a block gets.
LARGEST = 255.0
#: The smallest root by which a block is divided.
LEAST = 1e-12


@dataclass(frozen=True)
class Sqrt8(Blocks):
    """Integers from 0 to 255 that represent square roots, rounded to the nearest; scales are float16.

    Codes are those of FlashOptim's second moments. A number whose root is less than 1/510 of the largest one in its
    block becomes 0: next to large elements, a step that is divided by it grows without bound. A block with a number
    above 4e9 is undefined.
    """

    block: int = 32
    name: ClassVar[str] = "sqrt8"
    codes: ClassVar[str] = "uint8"
    second: ClassVar[str] = "float16"
    signed: ClassVar[bool] = False
    cpp: ClassVar[str] = (
        """\
  static float scale_of(float largest) { return std::max(std::sqrt(largest), 1e-12f); }
  static float decoded(code c, float scale) {
    const float root = static_cast<float>(c) / 255.0f * scale;
    return root * root;
  }
  static code encoded(float x, float scale, float, uint32_t) {
    return static_cast<code>(static_cast<int32_t>(std::floor(std::sqrt(x) / scale * 255.0f + 0.5f)));
  }
"""
        + BY_ELEMENT
    )
    triton: ClassVar[str] = """\
def sqrt8_scale(largest):
    root = tl.sqrt_rn(largest)
    return tl.where(root < 1e-12, 1e-12, root)

def sqrt8_decoded(codes, scale):
    root = triton_divide(codes.to(tl.float32), 255.0)*scale
    return root*root

def sqrt8_encoded(x, scale, random):
    return tl.floor(triton_divide(tl.sqrt_rn(x), scale)*255.0 + 0.5).to(tl.int32).to(tl.uint8)
"""

    @property
    def vanishes(self) -> str:
        """Which numbers become 0: those whose roots are below half a code."""
        return "numbers below 1/260,100 of the largest of their block"

    @property
    def half_code(self) -> float:
        """The relative error of the largest element of a block; smaller ones have larger errors."""
        return 2 / 510

    def scale_of(self, largest: torch.Tensor) -> torch.Tensor:
        """Return the square root of the largest element of each block."""
        return root(largest).clamp_min(LEAST)

    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the nearest codes."""
        import torch

        return (root(x) / scale * LARGEST + 0.5).floor().to(torch.uint8)

    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the dequantized numbers."""
        root = divided(codes.float(), LARGEST) * scale
        return root * root
