"""Kernels that take codes as they are: what they are given, and when they are not asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import optlang
from optlang.artifact import Kernel
from optlang.backends import eager
from optlang.backends.loading.signature import LoadedKernel, Signature
from optlang.runtime.plan import GroupPlan
from optlang.storage.blocks import SCALE
from optlang.storage.coded import WHOLE, Coded, ElementIndices
from optlang.storage.parameters import WAYS

#: Two stages, of which only the first has a state that is rounded at random.
STAGED = """
hyper lr = 0.5
state m, v
v = 0.5*v + abs(g)
n = total(max(v))
m = 0.5*m + g
p -= lr*m if n > 1 else 0.25
"""
SHAPES = [(64, 100), (3, 4), (70, 33, 3), (5000,)]
#: A rule whose products are exact, so that all backends make the same step to the bit.
RULE = """
hyper lr = 0.5
state m, v
m = 0.5*m + g
v = 0.5*v + abs(g)
p -= lr*m + (0.5 if v > 1 else 0.25)
"""


class Recorded:
    """A backend that takes codes, for all parameters at once, as kernels on a GPU do; it decodes and encodes itself.

    Attributes:
        calls: What its kernels have been given last.
    """

    def __init__(self) -> None:
        self.calls: list[Sequence[Any]] = []

    def accepts(self, kernel: Kernel, device: str) -> bool:
        """Take everything."""
        return True

    def accepts_codes(self, kernel: Kernel, signature: Signature) -> bool:
        """Take all codes."""
        return True

    def load(self, kernel: Kernel, signature: Signature) -> LoadedKernel:
        """Return a kernel that decodes, makes the step of the eager backend, and encodes."""
        own, draws = len(signature.dtypes), [place for place, format in signature.coded if format.draws]
        inner = eager.load(kernel, signature)

        def run(given: Sequence[Any]) -> None:
            self.calls.append(given)
            *tensors, numbers, keys, draw = given if draws else [*given, [], 0]
            stride = own + len(signature.coded)
            for i in range(len(tensors) // stride):
                each = tensors[i * stride : (i + 1) * stride]
                seconds = dict(zip((place for place, _ in signature.coded), each[own:], strict=True))
                decoded = list(each[:own])
                for place, format in signature.coded:
                    if format.pairs:  # a parameter is viewed without dimensions
                        seconds[place] = seconds[place].view(-1)
                    decoded[place] = format.decode(each[place], seconds[place])
                inner.run([*(x.reshape(-1) for x in decoded), numbers])
                for place, format in signature.coded:
                    key = keys[i][1 + draws.index(place)] ^ draw if format.draws else 0
                    first = keys[i][0] if format.draws else 0
                    assert isinstance(format, Coded)
                    if kernel.tensors[place] in kernel.written:
                        format.keep(decoded[place], each[place], seconds[place], key, after(first, each[place]))

        return LoadedKernel(run, "triton", many=True, coded=True)


def after(first: int, like: torch.Tensor) -> ElementIndices:
    """Return the places of elements that follow one another."""
    if not first:
        return WHOLE
    columns = like[0].numel()
    return ElementIndices((first // columns, *(0 for _ in like.shape[1:])), (10**6, *like.shape[1:]))


def values(shape: Sequence[int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def made(backend: Recorded | None, params: Sequence[torch.Tensor], rule: str = "", **options: Any) -> Any:
    """Return the rule, whose kernels on codes are a backend's; classes of one name share their kernels."""
    cls = optlang.compile(rule or RULE, name=f"Rule{id(backend)}", backend="eager")
    if backend is not None:
        cls._parts.parts[0].kernels._backends = [backend]
    return cls(params, **options)


def step(optimizer: Any, params: Sequence[torch.Tensor], count: int = 3) -> None:
    for number in range(count):
        for i, p in enumerate(params):
            p.grad = values(p.shape, 10 * number + i).to(p.dtype)
        optimizer.step()


def assert_same(a: Any, ps: Sequence[torch.Tensor], b: Any, qs: Sequence[torch.Tensor]) -> None:
    for p, q in zip(ps, qs, strict=True):
        assert torch.equal(p, q)
        for key, value in a.state[p].items():
            other = b.state[q][key]
            assert value.dtype is other.dtype and torch.equal(value.double(), other.double()), key


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"store": "8bit(least=1)"}, {"store": {"m": "int8"}}, *({"rounding": way} for way in WAYS)],
    ids=str,
)
def test_a_kernel_is_given_codes_of_all_parameters(options: dict[str, Any], capturable: bool) -> None:
    backend = Recorded()
    dtype = torch.bfloat16 if "rounding" in options else torch.float32
    ps, qs = ([torch.nn.Parameter(values(s, i).to(dtype)) for i, s in enumerate(SHAPES)] for _ in range(2))
    ours, usual = made(backend, ps, capturable=capturable, **options), made(None, qs, capturable=capturable, **options)
    step(ours, ps)
    step(usual, qs)
    assert_same(ours, ps, usual, qs)
    assert backend.calls
    if options.get("store") == "8bit(least=1)":
        codes = [backend.calls[-1][6 * i + place] for i in range(len(ps)) for place in (2, 3, 4, 5)]
        keys = ("m", "v", f"m{SCALE}", f"v{SCALE}")
        assert [c.data_ptr() for c in codes] == [ours.state[p][key].data_ptr() for p in ps for key in keys]


@pytest.mark.parametrize("formats", [("fp8", "log8"), ("bf16 stochastic", "fp8"), ("int8", "bf16 stochastic")], ids=str)
def test_a_stage_is_told_what_to_draw_by_only_if_it_draws(formats: tuple[str, str]) -> None:
    backend = Recorded()
    store = dict(zip(("m", "v"), formats, strict=True))
    ps, qs = ([torch.nn.Parameter(values(s, i)) for i, s in enumerate(SHAPES)] for _ in range(2))
    ours, usual = made(backend, ps, STAGED, store=store), made(None, qs, STAGED, store=store)
    step(ours, ps)
    step(usual, qs)
    assert_same(ours, ps, usual, qs)
    assert backend.calls


def test_parameters_in_the_same_memory_are_updated_one_after_the_other() -> None:
    backend, results = Recorded(), []
    for own in (backend, None):
        memory = values((64, 100), 0)
        params = [torch.nn.Parameter(memory), torch.nn.Parameter(memory[:60])]
        optimizer = made(own, params, store="8bit")
        step(optimizer, params)
        results.append((memory, optimizer.state[params[1]]["v"]))
    assert not backend.calls
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(40, 256), (40, 100), (40, 7, 9), (8192,)], ids=str)
@pytest.mark.parametrize("options", [{"store": "8bit(least=1)"}, {"rounding": "stochastic"}], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "recorded"])
def test_a_part_of_a_tensor_is_kept_as_the_whole(
    shape: tuple[int, ...], options: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where processes share it: kernels are told where the part begins."""
    start = shape[0] * 3 // 8 // 256 * 256 if len(shape) == 1 else 15
    dtype = torch.bfloat16 if "rounding" in options else torch.float32
    whole = torch.nn.Parameter(values(shape, 0).to(dtype))
    part = torch.nn.Parameter(whole.detach()[start:].clone())
    cls = optlang.compile(RULE, backend="cpp")
    usual = cls([whole], **options)
    ours = cls([part], **options) if backend == "cpp" else made(Recorded(), [part], **options)
    places = ElementIndices((start, *(0 for _ in shape[1:])), shape)
    monkeypatch.setattr(GroupPlan, "_places_of", lambda plan, p: places if p is part else WHOLE)
    for number in range(3):
        whole.grad = values(shape, number + 1).to(dtype)
        part.grad = whole.grad[start:].clone()
        usual.step()
        ours.step()
    assert torch.equal(part, whole[start:])
    for key, value in ours.state[part].items():
        other = usual.state[whole][key]
        if value.dim() and value.numel():
            skipped = len(other) - len(value)
            assert torch.equal(value.double(), other[skipped:].double()), key
