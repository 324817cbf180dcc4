"""The command line: what each command prints, where, and its exit codes."""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

import optlang
from optlang.cli import app, bench, check, format, output
from optlang.cli.highlight import RuleLexer
from optlang.codes import entries
from optlang.source import Source

GOOD = "optimizer Plain\n\nhyper lr = 0.1 >= 0\n\np -= lr * g\n"
BAD = "optimizer Plain\n\nhyper lr = 0.1 >= 0\n\np -= lrr*g\n"
WARNS = "optimizer Plain\n\nhyper lr = 0.1 >= 0, unused = 1\n\np -= lr*g\n"
UGLY = "optimizer   Plain\nhyper lr=0.1>=0   # step\np -= lr * g\n"
BARE = "v = beta*v + g; p -= lr*v\n"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command line in an empty folder; ``stdin`` is what it reads as standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: str, stdin: str | bytes = "") -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        with pytest.raises(SystemExit) as stop:
            app.main(arguments)
        captured = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in {"good": GOOD, "bad": BAD, "warns": WARNS, "ugly": UGLY, "bare": BARE}.items():
        (tmp_path / f"{name}.opt").write_text(text)
    return tmp_path


# check ------------------------------------------------------------------------------------------------------


def test_check_of_a_good_rule(run: Run, files: Path) -> None:
    assert run("check", "good.opt") == (0, "good.opt: ok (Plain)\n", "")


def test_check_of_a_bad_rule_points_at_the_place(run: Run, files: Path) -> None:
    code, out, _ = run("check", "bad.opt")
    assert code == 1
    assert "bad.opt:5:6" in out
    assert "unknown name `lrr`" in out and "`lr`" in out
    assert out.endswith("1 rule checked: 1 error\n")


def test_warnings_fail_a_strict_check_only(run: Run, files: Path) -> None:
    assert run("check", "warns.opt").code == 0
    strict = run("check", "--strict", "warns.opt")
    assert strict.code == 1
    assert "warning[" in strict.out and "1 rule checked: 1 warning" in strict.out


def test_check_says_what_it_inferred(run: Run, files: Path) -> None:
    code, out, _ = run("check", "bare.opt")
    assert code == 0
    assert "`v`" in out and "state" in out
    assert "`beta`" in out and "`lr`" in out


def test_check_reads_standard_input_and_the_library(run: Run) -> None:
    code, out, _ = run("check", "-", "adamw", stdin=GOOD)
    assert code == 0
    assert "<stdin>: ok (Plain)" in out and "adamw.opt: ok (AdamW)" in out
    assert "2 rules checked: 0 errors" in out


def test_check_as_json(run: Run, files: Path) -> None:
    code, out, _ = run("check", "--json", "bad.opt", "bare.opt")
    bad, bare = json.loads(out)
    assert code == 1
    assert bad["ok"] is False and bad["diagnostics"][0]["line"] == 5
    assert bare["ok"] is True and len(bare["inferred"]) >= 2


def test_check_starts_quickly(files: Path) -> None:
    """What takes long to import is not, and the work of a check is counted in calls."""
    program = (
        "import sys; from optlang.cli.app import main; from work import calls\n"
        "def run():\n    try: main()\n    except SystemExit: pass\n"
        "print(calls(run), *{'torch', 'sympy', 'numpy'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", program, "check", str(files / "good.opt")]
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    count, *heavy = done.stdout.splitlines()[-1].split()
    assert int(count) < 2_000_000 and not heavy


# what cannot be read ----------------------------------------------------------------------------------------


def test_missing_files_and_unknown_rules_are_one_line(run: Run, files: Path) -> None:
    code, out, err = run("check", "./god.opt")
    assert (code, out) == (2, "")
    assert err == "optlang: no such file: ./god.opt; did you mean good.opt?\n"
    code, out, err = run("check", "adamv")
    assert (code, out) == (2, "")
    assert err.startswith("optlang: no file and no library rule is called 'adamv'; did you mean Ada")


def test_directories_and_other_bytes_are_one_line(run: Run, files: Path) -> None:
    assert run("check", ".") == (2, "", "optlang: . is a directory, not a rule file\n")
    (files / "latin.opt").write_bytes("p -= lr*g  # é".encode("latin-1"))
    assert run("check", "latin.opt") == (2, "", "optlang: latin.opt is not UTF-8 text (byte 13)\n")
    assert run("check", "-", stdin=b"\xff\xfe") == (2, "", "optlang: <stdin> is not UTF-8 text (byte 0)\n")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything is readable")
def test_unreadable_files_are_one_line(run: Run, files: Path) -> None:
    (files / "good.opt").chmod(0)
    assert run("check", "good.opt") == (2, "", "optlang: cannot read good.opt: Permission denied\n")


def test_a_byte_order_mark_is_no_part_of_the_rule(run: Run, files: Path) -> None:
    (files / "mark.opt").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert run("check", "mark.opt").code == 0


def test_usage_errors_exit_with_2(run: Run) -> None:
    for arguments in (
        ["check"],
        ["check", "--nonsense", "x.opt"],
        ["nonsense"],
        ["emit", "-", "--stage", "soup"],
    ):
        assert run(*arguments).code == 2


def test_an_internal_failure_is_reported_as_one(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(check, "_print_result", fail)
    code, out, err = run("check", "good.opt")
    assert (code, out) == (3, "")
    assert "this is a bug in optlang" in err and "Traceback" not in err
    kept = Path(err.split(" with the traceback in ")[1].strip())
    assert "deep inside" in kept.read_text()
    kept.unlink()
    code, _, err = run("--debug", "check", "good.opt")
    assert code == 3 and "deep inside" in err and "Traceback" in err


# emit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["tree", "rule", "program", "source", "cpp"])
def test_emit_prints_every_stage(run: Run, files: Path, stage: str) -> None:
    code, out, err = run("emit", "good.opt", "--stage", stage)
    assert (code, err) == (0, "")
    assert "lr" in out


def test_emit_prints_python_that_runs(run: Run, files: Path) -> None:
    code, out, _ = run("emit", "good.opt", "-o", "out.py")
    assert (code, out) == (0, "")
    text = (files / "out.py").read_text()
    assert text == run("emit", "good.opt").out
    names: dict[str, object] = {}
    exec(compile(text, "out.py", "exec"), names)
    assert callable(names["update"])


def test_emit_of_a_variant(run: Run) -> None:
    plain, amsgrad = (run("emit", "adamw", *more).out for more in ([], ["--set", "amsgrad=true"]))
    assert "vmax" not in plain and "vmax" in amsgrad


def test_emit_of_a_bad_rule(run: Run, files: Path) -> None:
    code, out, err = run("emit", "bad.opt")
    assert (code, out) == (1, "")
    assert "bad.opt:5:6" in err


def test_emit_refuses_settings_that_mean_nothing(run: Run) -> None:
    code, out, err = run("emit", "adamw", "--set", "amsgrad")
    assert (code, out, err) == (2, "", "optlang: --set expects NAME=VALUE, got 'amsgrad'\n")
    code, _, err = run("emit", "adamw", "--set", "amsgrat=true")
    assert code == 2 and "amsgrat" in err and len(err.splitlines()) == 1


def test_emit_takes_the_keys_of_the_param_group(run: Run) -> None:
    whole = run("emit", "adamw", "--target", "plain", "--set", "betas=0.8,0.95").out
    assert whole == run("emit", "adamw", "--target", "plain", "--set", "beta1=0.8", "--set", "beta2=0.95").out
    assert "0.95" in whole
    code, _, err = run("emit", "adamw", "--set", "betas=0.8")
    assert (code, err) == (2, "optlang: --set: 'betas' expects 2 values (beta1, beta2), got 1\n")


def test_emit_has_a_stage_or_a_target(run: Run) -> None:
    code, out, err = run("emit", "adamw", "--stage", "tree", "--target", "plain")
    assert (code, out) == (2, "") and "give only one of them" in err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=1e-3", 1e-3),
        ("x = TRUE", True),
        ("x=false", False),
        ("x=none", None),
        ("x=l2", "l2"),
        ("x='3a'", "3a"),
        ("x=0.8, 0.9", (0.8, 0.9)),
        ("x=(1,none)", (1.0, None)),
    ],
)
def test_settings(text: str, value: object) -> None:
    parsed = output.parse_setting(text)
    assert parsed == ("x", value)
    assert type(parsed[1]) is type(value)


# format -----------------------------------------------------------------------------------------------------


def test_format_rewrites_what_is_not_canonical(run: Run, files: Path) -> None:
    code, out, err = run("format", "good.opt", "ugly.opt")
    assert (code, out, err) == (0, "reformatted ugly.opt\n", "1 file reformatted, 1 already formatted\n")
    assert "# step" in (files / "ugly.opt").read_text()
    assert (files / "good.opt").read_text() == GOOD
    assert run("format", "--check", "ugly.opt").code == 0


def test_format_check_and_diff_write_nothing(run: Run, files: Path) -> None:
    code, out, _ = run("format", "--check", "ugly.opt")
    assert (code, out) == (1, "would reformat ugly.opt\n")
    code, out, _ = run("format", "--diff", "ugly.opt")
    assert code == 1
    assert "-optimizer   Plain" in out and "+optimizer Plain" in out
    assert (files / "ugly.opt").read_text() == UGLY


def test_format_of_standard_input(run: Run) -> None:
    code, out, _ = run("format", "-", stdin=UGLY)
    assert code == 0
    assert out.startswith("optimizer Plain\n")


def test_format_leaves_a_broken_file_alone_and_does_the_others(run: Run, files: Path) -> None:
    (files / "broken.opt").write_text("p -= (lr*g\n")
    code, out, err = run("format", "broken.opt", "ugly.opt")
    assert (code, out) == (1, "reformatted ugly.opt\n")
    assert "broken.opt:1:" in err
    assert (files / "broken.opt").read_text() == "p -= (lr*g\n"


def test_format_never_touches_the_library(run: Run) -> None:
    assert run("format", "adamw").err == "optlang: no such file: adamw\n"


def test_format_refuses_to_write_what_would_change_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(["p -= g\n", "p -= g \n"])
    monkeypatch.setattr("optlang.syntax.unparse.format_tree", lambda _: next(calls))
    with pytest.raises(AssertionError, match="twice"):
        format._formatted(Source("p-=g"))


# the library, codes, new rules ------------------------------------------------------------------------------


def test_list_has_every_rule(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert len(out.splitlines()) == len(optlang.rules.names())
    assert any(line.split()[:2] == ["AdamW", "torch.optim.AdamW"] for line in out.splitlines())
    rows = json.loads(run("list", "--json").out)
    assert all(row["summary"] for row in rows)


def test_list_transforms_has_every_transform(run: Run) -> None:
    code, out, _ = run("list", "transforms")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == optlang.transforms.names()
    rows = {row["name"]: row for row in json.loads(run("list", "transforms", "--json").out)}
    assert rows["nesterov"]["signature"] == "nesterov(beta=0.9)" and rows["nesterov"]["summary"]
    path = optlang.transforms.path("nesterov")
    assert run("show", "nesterov").out == path.read_text()
    assert run("check", "--strict", str(path)).code == 0


def test_emit_plain_writes_the_pieces_out(run: Run) -> None:
    code, out, _ = run("emit", "--stage", "plain", "-", stdin="hyper lr = 0.1\np -= lr*(g |> momentum(0.9) |> sign)\n")
    assert code == 0 and out.endswith("p -= lr * sign(momentum)\n")
    assert "state momentum_b as momentum.b\n" in out


def test_show_prints_the_file(run: Run) -> None:
    path = Path(run("show", "adamw", "--path").out.strip())
    assert run("show", "AdamW").out == path.read_text()
    code, out, err = run("show", "adamv")
    assert (code, out) == (2, "") and "did you mean" in err


def test_explain_knows_every_code(run: Run) -> None:
    code, out, _ = run("explain")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(entries())
    for name, entry in entries().items():
        code, out, _ = run("explain", name.lower())
        assert code == 0 and out.startswith(name) and entry.title in out


def test_explain_of_an_unknown_code(run: Run) -> None:
    code, out, err = run("explain", "E99999")
    assert (code, out) == (2, "") and "there is no diagnostic 'E99999'" in err


@pytest.mark.parametrize("arguments", [[], ["--from", "adamw"], ["--from", "bare.opt"]])
def test_a_new_rule_passes_its_check(run: Run, files: Path, arguments: list[str]) -> None:
    assert run("new", "my_rule", *arguments).code == 0
    code, out, _ = run("check", "--strict", "my_rule.opt")
    expected = 1 if "bare.opt" in arguments else 0  # what was inferred must now be declared
    assert code == expected, out
    assert "optimizer MyRule" in (files / "my_rule.opt").read_text()
    if not arguments:
        assert run("format", "--check", "my_rule.opt").code == 0


def test_new_never_overwrites(run: Run, files: Path) -> None:
    code, _, err = run("new", "good")
    assert code == 2 and "good.opt exists" in err
    assert (files / "good.opt").read_text() == GOOD


def test_new_refuses_odd_names(run: Run) -> None:
    for name in ("1st", "a-b", "../x", "class", ""):
        code, _, err = run("new", name)
        assert code == 2 and "not a valid rule name" in err


# bench ------------------------------------------------------------------------------------------------------


def test_bench_times_a_rule_against_its_reference(run: Run) -> None:
    rule = GOOD.replace("Plain", "Plain  # reference: torch.optim.SGD")
    short = ["--shapes", "mlp", "--rounds", "2", "--steps", "1", "--backend", "eager", "--set", "lr=0.5"]
    code, out, err = run("bench", "-", *short, "--json", stdin=rule)
    (row,) = map(json.loads, out.splitlines())
    assert (code, err, row["peer"]) == (0, "[1/1] Plain mlp\n", "torch.optim.SGD (fused)")
    assert len(row["ours"]) == 2 and row["difference"] < 1e-5
    code, out, _ = run("bench", "-", *short, stdin=rule)
    assert code == 0 and "mlp (6 tensors, 0.1 M)" in out


def test_bench_refuses_what_it_cannot_compare(run: Run, files: Path) -> None:
    assert run("bench", "adamw", "--shapes", "gpt3").err.startswith("optlang: --shapes: gpt3 is not one of")
    assert run("bench", "good.opt").err.startswith("optlang: Plain names no reference")
    assert run("bench", "good.opt", "--dtype", "int8").code == 2
    assert run("bench", "good.opt", "--backend", "none").code == 2
    assert run("bench", "adamw", "--set", "lrr=1").err == "optlang: --set lrr: AdamW has no such hyperparameter\n"
    code, _, err = run("bench", "adamw", "--save", "x.xyz")
    assert code == 2 and ("no .xyz" in err or "matplotlib" in err)
    assert run("bench", "bad.opt").code == 1


def test_bench_says_what_fails_and_does_the_rest(run: Run, files: Path) -> None:
    (files / "deep.opt").write_text(GOOD.replace("p -= ", "require ndim == 3\np -= ").replace("Plain", "Deep"))
    short = ["--shapes", "mlp", "--rounds", "1", "--steps", "1", "--backend", "eager", "--against", "torch.optim:SGD"]
    code, out, err = run("bench", "deep.opt", "good.opt", *short, "--json")
    failed, made = map(json.loads, out.splitlines())
    assert code == 1 and "does not suit the rule" in failed["refused"] and made["ratio"] > 0
    assert err == "[1/2] Deep mlp\n[2/2] Plain mlp\n"


def test_bench_offers_what_there_is() -> None:
    from optlang.backends.loading import registry
    from optlang.bench.plan import DTYPES

    assert sorted(bench.BackendChoice) == registry.names()
    assert [*bench.Type] == [*DTYPES]


# what goes wrong with the output ----------------------------------------------------------------------------


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    optlang = f"{shlex.quote(sys.executable)} -m optlang"
    return subprocess.run(
        ["bash", "-c", command.replace("optlang", optlang, 1)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_no_bug() -> None:
    done = shell("optlang list > /dev/full")
    assert done.returncode == 2 and done.stderr == "optlang: [Errno 28] No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("flags", ["", "PYTHONUNBUFFERED=1"])
def test_a_closed_pipe_is_no_rule_with_errors(flags: str) -> None:
    done = shell(f"{flags} optlang list | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_the_output_does_not_have_are_spelled(files: Path, encoding: str) -> None:
    (files / "greek.opt").write_text("optimizer Γ\nhyper lr = 0.1\np -= lr*βx\n", encoding="utf-8")
    done = shell(f"optlang check {shlex.quote(str(files / 'greek.opt'))}", PYTHONIOENCODING=encoding)
    assert done.returncode == 1 and "unknown name `\\u03b2x`" in done.stdout and done.stderr == ""


def test_check_as_json_goes_on_behind_what_it_cannot_read(run: Run, files: Path) -> None:
    code, out, err = run("check", "--json", "x/absent.opt", "good.opt", ".")
    absent, good, folder = json.loads(out)
    assert code == 2 and good["ok"] and not absent["ok"] and not folder["ok"]
    assert absent["unreadable"] == "no such file: x/absent.opt" and "unreadable" not in good
    assert err == "optlang: no such file: x/absent.opt\noptlang: . is a directory, not a rule file\n"
    code, out, _ = run("check", "x/absent.opt", "bad.opt")
    assert code == 2 and "unknown name `lrr`" in out


# the rest ---------------------------------------------------------------------------------------------------


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("optlang")


def test_the_version_of_what_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    code, out, _ = run("--version")
    assert code == 0 and "not installed" in out


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("check", "emit", "format", "list", "show", "explain", "new", "bench"):
        assert f" {command} " in out
        assert run(command, "--help").code == 0


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert output.use_color(Terminal()) and not output.use_color(io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert output.use_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.use_color(Terminal())


def test_the_lexer_knows_the_language() -> None:
    tokens = {text: str(kind) for kind, text in RuleLexer().get_tokens(optlang.rules.path("adamw").read_text())}
    assert tokens["optimizer"] == "Token.Keyword.Declaration"
    assert tokens["sqrt"] == "Token.Name.Function"
    assert tokens["if"] == "Token.Keyword"
    assert tokens["p"] == "Token.Name.Builtin"
    assert not any("Error" in kind for kind in tokens.values())


def test_show_says_how_states_are_kept(run: Run) -> None:
    lines = run("show", "adamw", "--store", "8bit").out.splitlines()
    assert [line.split() for line in lines] == [
        ["exp_avg", "fp8,", "blocks", "of", "256", "1.02", "bytes", "per", "element"],
        ["exp_avg_sq", "log8,", "blocks", "of", "256", "1.02", "bytes", "per", "element"],
        ["together", "2.03", "bytes", "per", "element"],
    ]
    assert "bfloat16" in run("show", "lion", "--store", "exp_avg=bf16").out
    assert run("show", "adamw", "--store", "8bit(least=1024)").out.splitlines() == lines
    both = run("show", "adamw", "--store", "exp_avg=fp8(block=128, least=1024),exp_avg_sq=log8").out
    assert "fp8, blocks of 128" in both and "log8, blocks of 256" in both
    slow = run("show", "ademamix", "--store", "8bit").out.splitlines()[1]
    assert slow.split(maxsplit=1)[0] == "exp_avg_slow" and "bfloat16, rounded at random" in slow
    code, _, err = run("show", "lion", "--store", "4bit")
    assert code == 2 and "store must be one of" in err
