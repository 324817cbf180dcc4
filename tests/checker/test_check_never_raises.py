"""`optlang.check` has findings for whatever it gets, and takes time in proportion to its length."""

import os
from pathlib import Path

import mutated
import pytest
from work import calls

import optlang

FEW = {
    "a chain": lambda n: "x0 = g\n" + "".join(f"x{i + 1} = x{i}*x{i}\n" for i in range(n)) + f"p -= lr*x{n}\n",
    "rules taken over": lambda n: "use AdamW\n" * n,
    "mistakes": lambda n: "hyper lr = 0.1\n" + "p -= lr* *g\n" * n,
    "hyperparameters": lambda n: "".join(f"hyper h{i} = 0.1\n" for i in range(n)) + "p -= h0*g\n",
    "states": lambda n: (
        "".join(f"state s{i}\n" for i in range(n)) + "".join(f"s{i} = 0.9*s{i} + g\n" for i in range(n))
    ),
    "functions": lambda n: (
        "def f0(x) = x\n" + "".join(f"def f{i + 1}(x) = f{i}(x) + f{i}(x)\n" for i in range(n)) + "p -= g\n"
    ),
    "transforms": lambda n: "hyper lr = 0.1\n" + "p -= lr*(g |> momentum(0.9))\n" * n,
    "choices": lambda n: 'hyper m = "a0" in {' + ", ".join(f'"a{i}"' for i in range(n)) + '}\nif m == "a1": p -= g\n',
    "long names": lambda n: f"hyper lr = 0.1\n{'x' * n} = g\np -= lr*{'x' * n}\n",
    "brackets": lambda n: f"p -= {'(' * n}g{')' * n}\n",
    "signs": lambda n: f"p -= {'-' * n}g\n",
    "a sum": lambda n: f"p -= {' + '.join(['g'] * n)}\n",
    "blocks": lambda n: "".join(f"{' ' * i}if t > {i}:\n" for i in range(n)) + " " * n + "p -= g\n",
    "digits": lambda n: f"p -= g*{'9' * n}\n",
    "comments": lambda n: "p -= 0.1*g\n" + "# c\n" * n,
    "text": lambda n: f'"""{"x" * n}"""\np -= 0.1*g\n',
    "lines": lambda n: "p -= 0.1*g\n" * n,
}


@pytest.mark.parametrize("text", FEW)
def test_work_grows_with_the_text(text: str) -> None:
    optlang.check(FEW[text](3))  # what is made once
    few, many = (calls(lambda n=n: optlang.check(FEW[text](n))) for n in (30, 120))
    assert many < 4 * 1.5 * few + 20_000, (few, many)


@pytest.mark.parametrize("text", FEW)
def test_long_texts_have_findings(text: str) -> None:
    for finding in optlang.check(FEW[text](500 if text == "blocks" else 10_000)):  # whose length grows with the square
        assert finding.render()


@pytest.mark.parametrize("seed", range(3))
def test_changed_rules_have_findings(seed: int) -> None:
    for text in mutated.mutated(seed, 40):
        try:
            found = optlang.check(text) if len(text.split()) > 1 else []
            assert all(finding.render() for finding in found)
        except Exception as error:
            raise AssertionError(f"check raises for {text!r}") from error


@pytest.mark.parametrize(
    "name",
    [
        "/dev/zero",
        "/dev/null",
        "/",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "/proc/self/mem",
        "latin.opt",
        "fifo.opt",
        "long.opt",
    ],
)
def test_what_is_no_rule_file_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "latin.opt").write_bytes(b"p -= g # \xe9\n")
    (tmp_path / "long.opt").write_bytes(b"p -= g\n" * 400_000)
    os.mkfifo(tmp_path / "fifo.opt")
    rule = tmp_path / "rule.opt"
    for line in (f'use "{name}"\n', f'inner b = "{name}"\nb(p, g)\n'):
        rule.write_bytes(line.encode("utf-8", "surrogatepass"))
        source = optlang.api.Source(line, str(rule))
        assert [finding.code for finding in optlang.check(source)][:1] == ["E215"]


def test_rules_of_rules_of_rules_end(tmp_path: Path) -> None:
    """Ten files, of which each takes the next one over ten times, would be ten thousand million rules."""
    for i in range(10):
        (tmp_path / f"r{i}.opt").write_text(f'use "r{i + 1}.opt"\n' * 10 if i < 9 else "p -= lr*g\n")
    assert [finding.code for finding in optlang.check(tmp_path / "r0.opt")] == ["E501"]
