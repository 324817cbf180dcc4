"""Each recipe of docs/how-to-add.md, followed in a copy of the package: what it names is all that has to be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each copies the package and runs it

ROOT = Path(__file__).parents[2]


class Checkout:
    """A copy of the package, in which recipes are followed.

    Args:
        root: The folder that the copy is in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("optlang", "grammars"):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def write(self, path: str, text: str) -> None:
        """Add a file to the package."""
        assert not (self.root / "optlang" / path).exists()
        (self.root / "optlang" / path).write_text(textwrap.dedent(text), encoding="utf-8")

    def insert(self, path: str, before: str, text: str) -> None:
        """Add lines to a file of the package, in front of the first place where it says ``before``."""
        file = self.root / "optlang" / path
        content = file.read_text(encoding="utf-8")
        assert before in content, f"{path} does not say {before!r}"
        file.write_text(content.replace(before, text + before, 1), encoding="utf-8")

    def run(self, code: str) -> str:
        """Run Python with the copy and return what it prints."""
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OPTLANG_CACHE": str(self.root / "cache")}
        command = [
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-c",
            textwrap.dedent(PREAMBLE) + textwrap.dedent(code),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.root, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


PREAMBLE = """
import optlang, torch
from optlang.codegen import cpp_source, triton_source
from optlang.compiler import compile_source, example_variant
from optlang.source import Source

def steps(rule, backend, shape=(5, 4), **options):
    torch.manual_seed(0)
    p = torch.randn(shape)
    optimizer = optlang.compile(rule, backend=backend)([p.requires_grad_()], lr=0.1, **options)
    start, grads = p.detach().clone(), [torch.randn(shape) for _ in range(3)]
    for g in grads:
        p.grad = g
        optimizer.step()
    return start, grads, p.detach()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.compiler
def test_a_function_of_elements_is_one_row(checkout: Checkout) -> None:
    row = '    _unary("sinh", "Hyperbolic sine."),\n    '
    checkout.insert("functions/elementwise.py", '_unary("asinh"', row.lstrip())
    checkout.run("""
        rule = "optimizer X\\nhyper lr = 0.1\\np -= lr*sinh(g)"
        for backend in ("eager", "cpp"):
            p, grads, result = steps(rule, backend)
            torch.testing.assert_close(result, p - 0.1*sum(map(torch.sinh, grads)))
        kernel = example_variant(compile_source(Source(rule))).kernel
        assert "libdevice.sinh(" in kernel.text("triton_source")
        assert "torch.sinh(" in optlang.export(rule, "plain") and "torch.sinh(" in optlang.export(rule, "module")
        assert optlang.check("hyper lr = 0.1\\nhyper a = 1\\nif sinh(a) > 1: p -= lr*g\\nelse: p -= g") == []
    """)


def test_a_function_that_the_language_can_say_is_one_row(checkout: Checkout) -> None:
    row = 'Builtin("gauss", "x, s = 1", ELEMENTWISE, "A bell of width s.", definition="exp(-(x/s)^2)"),\n    '
    checkout.insert("functions/elementwise.py", '_unary("asinh"', row)
    checkout.run("""
        p, grads, result = steps("optimizer X\\nhyper lr = 0.1\\np -= lr*gauss(g, s=2)", "eager")
        torch.testing.assert_close(result, p - 0.1*sum(torch.exp(-(g/2)**2) for g in grads))
    """)


def test_a_function_of_matrices_is_one_row(checkout: Checkout) -> None:
    row = """Builtin(
        "turned",
        "x",
        MATRIX,
        "A matrix turned by half a circle.",
        "torch.flip({0}, (1, 2))",
        matrix=True,
        one="torch.flip({0}, (0, 1))",
        shape=shapes.of_matrix,
    ),
    """
    checkout.insert("functions/matrices.py", 'Builtin(\n        "triu"', row)
    checkout.run("""
        rule = "optimizer X\\nhyper lr = 0.1\\np -= lr*turned(g)"
        p, grads, result = steps(rule, "auto")
        torch.testing.assert_close(result, p - 0.1*sum(g.flip(0, 1) for g in grads))
        assert "torch.flip(" in optlang.export(rule, "plain")
        (found,) = optlang.check("hyper lr = 0.1\\np -= lr*turned(norm(g))")
        assert found.code == "E313", found
    """)


def test_a_rule_and_a_transform_are_a_file_each(checkout: Checkout) -> None:
    checkout.write("rules/plainsign.opt", '"""SignSGD."""\noptimizer PlainSign\nhyper lr = 0.1\np -= lr*sign(g)\n')
    checkout.write("transforms/halved.opt", '"""Half of it."""\ntransform halved(u):\n    return u/2\n')
    checkout.run("""
        p, grads, result = steps("PlainSign", "eager")
        torch.testing.assert_close(result, p - 0.1*sum(map(torch.sign, grads)))
        p, grads, result = steps("hyper lr = 0.1\\np -= lr*halved(g)", "eager")
        torch.testing.assert_close(result, p - 0.05*sum(grads))
    """)


def test_a_diagnostic_is_a_finding_and_a_page(checkout: Checkout) -> None:
    rule = "hyper lr = 0.1\np -= lr*g\np -= lr*g\n"
    checkout.write("codes/W699.md", f"# an update twice\n\nThe same update runs twice.\n\n```opt\n{rule}```\n")
    checkout.insert(
        "checker/warn.py",
        "def _first_step(",
        "def _twice(rule: Rule, findings: Findings) -> None:\n"
        "    texts = [findings.text(s.value) for s in rule.body if isinstance(s, Assign)]\n"
        "    if len(set(texts)) < len(texts):\n"
        '        findings.add("W699", "the update runs twice", rule.body[-1].span, help="remove one of them")\n\n\n',
    )
    checkout.insert("checker/warn.py", "    _first_step(", "    _twice(rule, findings)\n")
    out = checkout.run(f"""
        import sys
        from optlang.cli.app import main
        assert [d.code for d in optlang.check({rule!r})] == ["W699"]
        sys.argv = ["optlang", "explain", "W699"]
        main()
    """)
    assert "The same update runs twice." in out


def test_a_pass_is_a_file_and_a_line(checkout: Checkout) -> None:
    checkout.write(
        "ir/passes/unhurried.py",
        '''
        """Unhurried: the parameter stays what it was."""

        from dataclasses import replace

        from optlang.ir.program import Program


        def run(program: Program) -> Program:
            """Return the program without the store to the parameter."""
            return replace(program, stores=tuple(s for s in program.stores if s.target != "p"))
        ''',
    )
    checkout.insert("ir/passes/__init__.py", "\nfrom optlang.ir.program", "\nfrom optlang.ir.passes import unhurried")
    checkout.insert("ir/passes/__init__.py", '    ("hoist"', '    ("unhurried", unhurried.run),\n')
    checkout.run("""
        p, grads, result = steps("optimizer X\\nhyper lr = 0.1\\nstate m\\nm = g\\np -= lr*m", "eager")
        assert torch.equal(p, result)
    """)


def test_a_backend_is_a_file(checkout: Checkout) -> None:
    shutil.copy(ROOT / "tests/support/numpy_backend.py", checkout.root / "optlang/backends/numpy.py")
    checkout.run("""
        p, grads, result = steps("optimizer X\\nhyper lr = 0.1\\np -= lr*tanh(g)", "numpy")
        torch.testing.assert_close(result, p - 0.1*sum(map(torch.tanh, grads)))
    """)


FORMAT = '''
"""``even8``: whole numbers under the largest of their block, with scales in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optlang.storage.blocks import BY_ELEMENT, Blocks, divided


@dataclass(frozen=True)
class Even8(Blocks):
    """Whole numbers from -127 to 127."""

    name: ClassVar[str] = "even8"
    codes: ClassVar[str] = "int8"
    second: ClassVar[str] = "bfloat16"
    vanishes: ClassVar[str] = "numbers below 1/254 of the largest of their block"
    half_code: ClassVar[float] = 1 / 254
    cpp: ClassVar[str] = """\\
  static float scale_of(float largest) { return std::max(largest, 2e-36f) / 127.0f; }
  static float decoded(code c, float scale) { return static_cast<float>(c) * scale; }
  static code encoded(float x, float scale, float, uint32_t) {
    return static_cast<code>(static_cast<int32_t>(std::nearbyint(x / scale)));
  }
""" + BY_ELEMENT
    triton: ClassVar[str] = """\\
def even8_scale(largest):
    return triton_divide(tl.where(largest < 2e-36, 2e-36, largest), 127.0)

def even8_decoded(codes, scale):
    return codes.to(tl.float32)*scale

def even8_encoded(x, scale, random):
    return ((triton_divide(x, scale) + 12582912.0) - 12582912.0).to(tl.int32).to(tl.int8)
"""

    def scale_of(self, largest):
        return divided(largest.clamp_min(2e-36), 127.0)

    def encoded(self, x, scale, random):
        import torch

        return (x / scale).round().to(torch.int8)

    def decoded(self, codes, scale):
        return codes.float() * scale
'''


@pytest.mark.compiler
def test_a_storage_format_is_a_file_and_a_name(checkout: Checkout) -> None:
    checkout.write("storage/even8.py", FORMAT)
    checkout.insert("storage/named.py", "from optlang.storage.formats", "from optlang.storage.even8 import Even8\n")
    checkout.insert("storage/named.py", "Fp8, Log8, Int8", "Even8, ")
    checkout.run("""
        import io
        def run(backend):
            torch.manual_seed(0)
            p = torch.randn(70, 100).requires_grad_()
            store = {"momentum_buffer": "even8"}
            optimizer = optlang.compile("SGD", backend=backend)([p], lr=0.1, momentum=0.9, store=store)
            for _ in range(3):
                p.grad = torch.randn(70, 100)
                optimizer.step()
            return optimizer, p
        (eager, p), (compiled, q) = run("eager"), run("cpp")
        one, other = eager.state[p], compiled.state[q]
        assert one["momentum_buffer"].dtype is torch.int8 and one["momentum_buffer.scale"].dtype is torch.bfloat16
        for key in one:
            assert torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])), (key, one[key], other[key])
        torch.testing.assert_close(p, q)
    """)


def test_a_target_is_a_file(checkout: Checkout) -> None:
    checkout.write(
        "targets/listing.py",
        '''
        """A rule as a list of what it keeps."""

        from optlang.targets import Order

        SUFFIX = ".txt"


        def emit(order: Order) -> str:
            """Return the list."""
            return "".join(f"{state.name}\\n" for state in order.compiled.rule.states)
        ''',
    )
    assert checkout.run('print(optlang.export("Adam", "listing"), end="")').split() == ["m", "v", "vmax"]


def test_a_statement_that_others_can_say_is_a_grammar_rule_and_a_method(checkout: Checkout) -> None:
    grammar = "../grammars/optlang.lark"
    checkout.insert(grammar, "repeat: REPEAT", "unless: UNLESS expr _body\n")
    checkout.insert(grammar, " | every\n", " | unless")
    checkout.insert(grammar, "EVERY.2:", "UNLESS.2: /unless(?!\\w)(?![ \\t]*(?:[-+*\\/^]?=|[,.\\[]))/\n")
    checkout.insert(
        "syntax/build_formulas.py",
        "    def repeat(self",
        "    def unless(self, pieces: Pieces) -> tree.If:\n"
        '        opposite = tree.Unary(span(pieces), "not", pieces[1])\n'
        "        return tree.If(span(pieces), ((opposite, statements(pieces[-1])),), None)\n\n",
    )
    checkout.run("""
        p, grads, result = steps("optimizer X\\nhyper lr = 0.1\\nunless t == 2: p -= lr*g\\n", "eager")
        torch.testing.assert_close(result, p - 0.1*(grads[0] + grads[2]))
        (found,) = optlang.check("hyper lr = 0.1\\nunless lr + x: p -= lr*g\\n")
        assert found.code == "E201", found
    """)
