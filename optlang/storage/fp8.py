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
    const float found = rest < 0x7fu ? (rest < 8 ? small : usual) : undefined;
    return number_of(bits_of(found) | (static_cast<uint32_t>(c) & 0x80u) << 24) * scale;
  }
  static code encoded(float x, float scale, uint32_t) {
    const float y = x / scale;
    const uint32_t sign = bits_of(y) & 0x80000000u, rest = bits_of(y) ^ sign;
    const uint32_t small = bits_of(number_of(rest) + 0x1p14f) - (141u << 23);
    const uint32_t usual = (rest + (rest >> 20 & 1u) + 0x7ffffu - (120u << 23)) >> 20;
    const uint32_t found = rest < (121u << 23) ? small : std::min(usual, 0x7fu);
    return static_cast<code>((rest <= 0x7f800000u ? found : 0x7fu) | sign >> 24);
  }
"""

    def scale_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return the largest of each block as 448."""
        return x.abs().amax(1).clamp_min(LEAST) / LARGEST

    def encoded(self, x: torch.Tensor, scale: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
        """Return the nearest codes."""
        import torch

        return (x / scale).to(torch.float8_e4m3fn)

    def decoded(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the numbers of codes."""
        return codes.float() * scale
