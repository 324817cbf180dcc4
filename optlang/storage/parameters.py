"""bfloat16 parameters that are updated as if they had more bits: storage of the rounding error.

The model sees the parameter rounded to 16 bits. The rest of the number is stored separately, or determines the
probabilities of stochastic rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from optlang.storage.coded import WHOLE, Coded, ElementIndices, drawn
from optlang.storage.formats import SIZES

if TYPE_CHECKING:
    import torch

    from optlang.storage.coded import Key

#: Key of a parameter's companion in ``optimizer.state``.
KEY = "param.correction"

#: C++ shared by all of these formats: rounds to the nearest 16 bits, ties away from zero, as bits.
_NEAREST = """\
  static uint32_t nearest(float x) {
    const uint32_t bits = bits_of(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + 0x8000u) >> 16;
  }
#ifdef OPTLANG_LANES
  static words nearest(floats x) {
    return magnitude(x) > 0x7f800000 ? words{} + 0x7fc0 : shifted((words)x + 0x8000, 16);
  }
#endif
"""


#: The same in Triton.
_NEAREST_IN_TRITON = """\
def nearest_bfloat16(x):
    return tl.where(x == x, (x.to(tl.uint32, bitcast=True) + 0x8000) >> 16, 0x7fc0)

"""


@dataclass(frozen=True)
class ParameterFormat(Coded):
    """A way to store a bfloat16 parameter."""

    block: int = 16
    codes: ClassVar[str] = "bfloat16"
    pairs: ClassVar[bool] = True

    def label(self, parameter: str) -> str:
        """Return the name by which users request it."""
        return next(name for name, way in WAYS.items() if way == self)

    def size(self, parameter: str) -> float:
        """Return the number of bytes per element, including the companion."""
        return SIZES[self.codes] + SIZES[self.second]

    def companion(self, p: torch.Tensor) -> torch.Tensor:
        """Return the companion of a parameter that has not been updated: zeros, in the parameter's memory order."""
        import torch

        return torch.zeros_like(p, dtype=getattr(torch, self.second), requires_grad=False)


def _bits(x: torch.Tensor) -> torch.Tensor:
    """Return the bits of float32 numbers as nonnegative integers."""
    import torch

    return x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def _number(bits: torch.Tensor) -> torch.Tensor:
    """Return the numbers with these bits."""
    import torch

    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest 16 bits, ties away from zero, as bits."""
    import torch

    return torch.where(x.isnan(), 0x7FC0, (_bits(x) + 0x8000) >> 16)


def _write(high: torch.Tensor, codes: torch.Tensor) -> None:
    """Write bfloat16 bits."""
    codes.copy_(_number((high & 0xFFFF) << 16))


@dataclass(frozen=True)
class Stochastic(ParameterFormat):
    """Stochastic rounding, up or down in proportion: correct on average, with no additional storage.

    A state can also be stored this way (``bf16 stochastic``), since the format is complete without the parameter.
    """

    name: ClassVar[str] = "stochastic"
    second: ClassVar[str] = "uint8"
    alone: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    cpp: ClassVar[str] = """\
  static float decoded(code c, second) { return number_of(static_cast<uint32_t>(c) << 16); }
  static void encoded(float x, code& c, second&, uint32_t random) {
    const uint32_t bits = bits_of(x);
    c = static_cast<code>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + (random >> 16)) >> 16);
  }
#ifdef OPTLANG_LANES
  static void decode_group(const code* from, const second*, float* to) {
    for (int i = 0; i < group; i += lanes) stored(to + i, from_unsigned_shorts(from + i) << 16);
  }
  static void encode_group(const float* from, Random& random, code* to, second*) {
    words found[4];
    for (int i = 0; i < 4; ++i) {
      const floats x = loaded<floats>(from + i * lanes);
      const words sum = shifted((words)x + shifted(random.next(), 16), 16);
      found[i] = magnitude(x) > 0x7f800000 ? words{} + 0x7fc0 : sum;
    }
    stored_shorts(to, found);
  }
#endif
"""
    triton: ClassVar[str] = """\
def stochastic_decoded(codes, second):
    return (codes.to(tl.uint32) << 16).to(tl.float32, bitcast=True)

def stochastic_encoded(x, random):
    bits = x.to(tl.uint32, bitcast=True) + (random >> 16)
    codes = tl.where(x == x, bits >> 16, 0x7fc0).to(tl.uint16)
    return codes, codes
"""

    def label(self, parameter: str) -> str:
        """Return the label, which is the same for states and parameters."""
        return "bfloat16, rounded at random"

    def size(self, parameter: str) -> float:
        """Return the number of bytes per element."""
        return SIZES[self.codes]

    def companion(self, p: torch.Tensor) -> torch.Tensor:
        """Return an empty tensor."""
        import torch

        return torch.empty(0, dtype=torch.uint8, device=p.device)

    def decode(self, codes: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the parameter in float32."""
        return codes.float()

    def keep(
        self, x: torch.Tensor, codes: torch.Tensor, second: torch.Tensor, key: Key, places: ElementIndices = WHOLE
    ) -> None:
        """Write the parameter, rounded stochastically."""
        import torch

        # Indices are those in memory, which has no gaps.
        order = sorted(range(codes.dim()), key=codes.stride, reverse=True)
        shape = [codes.shape[dim] for dim in order]
        found = places.permuted(order).of(shape, x.device).view(shape)
        found = found.permute([order.index(dim) for dim in range(codes.dim())])
        _write(torch.where(x.isnan(), 0x7FC0, (_bits(x) + (drawn(found, key) >> 16)) >> 16), codes)


@dataclass(frozen=True)
class Kahan(ParameterFormat):
    """With the rounding error as a companion, also in bfloat16 (Kahan summation): 16 mantissa bits."""

    name: ClassVar[str] = "kahan"
    second: ClassVar[str] = "bfloat16"
    cpp: ClassVar[str] = (
        _NEAREST
        + """\
  static float decoded(code c, second s) {
    return number_of(static_cast<uint32_t>(c) << 16) + number_of(static_cast<uint32_t>(s) << 16);
  }
  static void encoded(float x, code& c, second& s, uint32_t) {
    const uint32_t high = nearest(x);
    const float rest = x - number_of(high << 16);
    c = static_cast<code>(high);
    s = static_cast<second>(rest - rest == 0 ? nearest(rest) : 0);
  }
#ifdef OPTLANG_LANES
  static void decode_group(const code* from, const second* rest, float* to) {
    for (int i = 0; i < group; i += lanes)
      stored(to + i, (floats)(from_unsigned_shorts(from + i) << 16) + (floats)(from_unsigned_shorts(rest + i) << 16));
  }
  static void encode_group(const float* from, Random&, code* to, second* rests) {
    words found[4], others[4];
    for (int i = 0; i < 4; ++i) {
      const floats x = loaded<floats>(from + i * lanes);
      found[i] = nearest(x);
      const floats rest = x - (floats)(found[i] << 16);
      others[i] = magnitude(rest) < 0x7f800000 ? nearest(rest) : words{};
    }
    stored_shorts(to, found);
    stored_shorts(rests, others);
  }
#endif
"""
    )
    triton: ClassVar[str] = (
        _NEAREST_IN_TRITON
        + """\
def kahan_decoded(codes, second):
    rest = (second.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return (codes.to(tl.uint32) << 16).to(tl.float32, bitcast=True) + rest

def kahan_encoded(x, random):
    high = nearest_bfloat16(x)
    rest = x - (high << 16).to(tl.float32, bitcast=True)
    return high.to(tl.uint16), tl.where(rest - rest == 0, nearest_bfloat16(rest), 0).to(tl.uint16)
"""
    )

    def decode(self, codes: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the sum of parameter and error in float32."""
        return codes.float() + second.float()

    def keep(
        self, x: torch.Tensor, codes: torch.Tensor, second: torch.Tensor, key: Key, places: ElementIndices = WHOLE
    ) -> None:
        """Write the parameter and the error."""
        import torch

        high = _rounded(x)
        _write(high, codes)
        rest = x - _number((high & 0xFFFF) << 16)
        _write(torch.where(rest.isfinite(), _rounded(rest), 0), second)


@dataclass(frozen=True)
class Corrected(ParameterFormat):
    """With the bits that bfloat16 cuts off as a companion.

    Attributes:
        left_out: How many of these 16 bits are dropped; the others are rounded to the nearest.
    """

    left_out: ClassVar[int]
    largest: ClassVar[int]  # of the companion's type

    def decode(self, codes: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the parameter in float32."""
        import torch

        return _number((_bits(codes.float()) + (second.to(torch.int64) << self.left_out)) & 0xFFFFFFFF)

    def keep(
        self, x: torch.Tensor, codes: torch.Tensor, second: torch.Tensor, key: Key, places: ElementIndices = WHOLE
    ) -> None:
        """Write the parameter, and the bits that it cuts off."""
        import torch

        high = _rounded(x)
        _write(high, codes)
        rest = torch.where(x.isnan(), 0, _bits(x) - ((high & 0xFFFF) << 16))
        second.copy_(((rest + (1 << self.left_out >> 1)) >> self.left_out).clamp(max=self.largest))


def _corrected_cpp(left_out: int, largest: int) -> str:
    """Return the functions of such a format in C++."""
    if left_out == 8:
        rests, stored = "bytes", "stored(rests, in_order(packed_twice(others)));"
    else:
        rests, stored = "shorts", "stored_shorts(rests, others);"
    return f"""{_NEAREST}\
  static float decoded(code c, second s) {{
    return number_of((static_cast<uint32_t>(c) << 16) + (static_cast<uint32_t>(static_cast<int32_t>(s)) << {left_out}));
  }}
  static void encoded(float x, code& c, second& s, uint32_t) {{
    const uint32_t high = nearest(x);
    const int32_t rest = x == x ? static_cast<int32_t>(bits_of(x) - (high << 16)) : 0;
    c = static_cast<code>(high);
    s = static_cast<second>(std::min((rest + {1 << left_out >> 1}) >> {left_out}, {largest}));
  }}
#ifdef OPTLANG_LANES
  static void decode_group(const code* from, const second* rest, float* to) {{
    for (int i = 0; i < group; i += lanes)
      stored(to + i, (from_unsigned_shorts(from + i) << 16) + (from_{rests}(rest + i) << {left_out}));
  }}
  static void encode_group(const float* from, Random&, code* to, second* rests) {{
    words found[4], others[4];
    for (int i = 0; i < 4; ++i) {{
      const floats x = loaded<floats>(from + i * lanes);
      found[i] = nearest(x);
      const words rest = x == x ? (words)x - (found[i] << 16) : words{{}};
      others[i] = (rest + {1 << left_out >> 1}) >> {left_out};
    }}
    stored_shorts(to, found);
    {stored}
  }}
#endif
"""


def _corrected_triton(name: str, left_out: int, largest: int, second: str) -> str:
    """Return the same in Triton."""
    return f"""{_NEAREST_IN_TRITON}\
def {name}_decoded(codes, second):
    rest = (second.to(tl.int32) << {left_out}).to(tl.uint32, bitcast=True)
    return ((codes.to(tl.uint32) << 16) + rest).to(tl.float32, bitcast=True)

def {name}_encoded(x, random):
    high = nearest_bfloat16(x)
    rest = tl.where(x == x, (x.to(tl.uint32, bitcast=True) - (high << 16)).to(tl.int32, bitcast=True), 0)
    return high.to(tl.uint16), tl.minimum((rest + {1 << left_out >> 1}) >> {left_out}, {largest}).to(tl.{second})
"""


@dataclass(frozen=True)
class Corrected16(Corrected):
    """With all 16 bits that are cut off as a companion: exactly float32."""

    name: ClassVar[str] = "bf16_16"
    second: ClassVar[str] = "int16"
    left_out: ClassVar[int] = 0
    largest: ClassVar[int] = 32767
    cpp: ClassVar[str] = _corrected_cpp(0, 32767)
    triton: ClassVar[str] = _corrected_triton("bf16_16", 0, 32767, "int16")


@dataclass(frozen=True)
class Corrected8(Corrected):
    """With eight of the bits that are cut off as a companion: 16 mantissa bits, in three bytes."""

    name: ClassVar[str] = "bf16_8"
    second: ClassVar[str] = "int8"
    left_out: ClassVar[int] = 8
    largest: ClassVar[int] = 127
    cpp: ClassVar[str] = _corrected_cpp(8, 127)
    triton: ClassVar[str] = _corrected_triton("bf16_8", 8, 127, "int8")


#: The formats, by the name passed as ``rounding``.
WAYS: dict[str, ParameterFormat] = {
    "stochastic": Stochastic(),
    "kahan": Kahan(),
    "bf16+8": Corrected8(),
    "bf16+16": Corrected16(),
}


#: The value that rounds parameters to the nearest, whatever the rule specifies.
NEAREST = "nearest"


def checked(who: str, way: object) -> str | None:
    """Validate the argument ``rounding``.

    Raises:
        ValueError: If the format is unknown.
    """
    if way is None or (isinstance(way, str) and (way in WAYS or way == NEAREST)):
        return way
    raise ValueError(f"{who}: rounding must be one of {', '.join(map(repr, (*WAYS, NEAREST)))}; got {way!r}")
