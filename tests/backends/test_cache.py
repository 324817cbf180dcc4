"""The cache of kernels: whose folder it is, what is taken from it, and what is said where it does not serve."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import optlang.rules
from optlang.backends.loading import library, slow, toolchain, variants
from optlang.cache import folders, sealed
from optlang.compiler import compile_source
from optlang.source import Source
from optlang.syntax import parse

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are POSIX's")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and a folder for temporary files beside it."""
    monkeypatch.setenv("OPTLANG_CACHE", str(tmp_path / "kernels"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(folders, "_said", set())
    monkeypatch.setattr(folders, "_tidied", set())
    folders._of_this_process.cache_clear()
    yield folders.folder()
    folders._of_this_process.cache_clear()


def put(name: str, content: bytes, tmp_path: Path) -> Path:
    built = tmp_path / "built"
    built.write_bytes(content)
    return sealed.install(built, name)


# what is in it ------------------------------------------------------------------------------------------------


@posix
def test_it_is_private_and_notices_damage(kept: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    target = put("kernel.so", b"machine code" * 100, tmp_path)
    assert sealed.read("kernel.so") == b"machine code" * 100
    assert [path.name for path in kept.iterdir()] == ["kernel.so"]
    whole = target.read_bytes()
    assert whole.startswith(b"machine code")
    for damaged in (whole[:-1], whole[:100], b"", b"x" + whole[1:]):
        target.write_bytes(damaged)
        assert sealed.read("kernel.so") is None
        assert not target.exists()
    target.write_bytes(whole)
    target.chmod(0o777)
    assert sealed.read("kernel.so") is None
    assert sealed.read("absent.so") is None


def test_a_file_under_another_name_is_not_sound(kept: Path, tmp_path: Path) -> None:
    for other in (os.replace, shutil.copy2, os.link, os.symlink):
        one = put("one.so", b"one", tmp_path)
        (kept / "two.so").unlink(missing_ok=True)
        other(one, kept / "two.so")
        assert sealed.read("two.so") is None
        assert not os.path.lexists(kept / "two.so")
    assert sealed.read("one.so") == b"one"


@posix
def test_neither_pipes_nor_links_nor_folders_stand_in_the_way(kept: Path, tmp_path: Path) -> None:
    os.mkfifo(kept / "pipe.so")
    outside = put("link.so", b"code", tmp_path).rename(tmp_path / "link.so")
    (kept / "link.so").symlink_to(outside)
    (kept / "folder.so").mkdir()
    (kept / "folder.so" / "file").touch()
    for name in ("pipe.so", "link.so", "folder.so"):
        assert sealed.read(name) is None
        put(name, b"code", tmp_path)
        assert sealed.read(name) == b"code"


def test_two_rules_do_not_take_each_others_variants(kept: Path) -> None:
    texts = [f"optimizer Same\nhyper lr = 0.1\np {sign}= lr*g\n" for sign in "-+"]
    found = {}
    for text in texts:
        compiled = compile_source(Source(text))
        variant = compiled.variant({"lr": 0.1}, toy_facts())
        compiled.keep(variant)
        found[text] = variant
    one, two = sorted(kept.glob("*.variant"))
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    for text, variant in found.items():
        assert variants.find(text, "Same", variant.key) is None
        variants.keep(text, variant)
        again = variants.find(text, "Same", variant.key)
        assert again is not None and again.source == variant.source


def test_a_kernel_from_disk_is_written_in_other_languages_as_well(kept: Path) -> None:
    source = Source("optimizer Later\nhyper lr = 0.1\nstate m\nm = 0.9*m + g\np -= lr*m\n")

    def kernel_of(compiled: Any) -> Any:
        return compiled.variant({"lr": 0.1}, toy_facts()).kernel

    first, second, third = (compile_source(source) for _ in range(3))
    first.keep(first.variant({"lr": 0.1}, toy_facts()))
    written, found = kernel_of(first), kernel_of(second)
    assert found is not written and found.texts == {} and found._program is None
    assert found.text("cpp_source") == written.text("cpp_source") != ""
    second.keep(second.variant({"lr": 0.1}, toy_facts()))
    assert kernel_of(third).texts == {("cpp_source",): written.text("cpp_source")}


def toy_facts() -> Any:
    import torch

    from optlang.runtime.tensors import facts_of

    return facts_of(torch.empty(3))


def test_what_is_pickled_there_is_not_trusted_before_it_is_checked(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps(Path("anything"))
    monkeypatch.setattr(variants, "_file_name", lambda *_: "odd.variant")
    put("odd.variant", content, tmp_path)
    assert variants.find("", "", ()) is None  # sound, but no variant
    monkeypatch.setattr(variants.pickle, "loads", lambda _: pytest.fail("read unchecked"))
    (kept / "odd.variant").write_bytes(content)
    assert variants.find("", "", ()) is None


def test_long_names_are_cut(kept: Path, tmp_path: Path) -> None:
    name = sealed.file_name("Ä" * 300, sealed.key("x"), "-full.so")
    put(name, b"code", tmp_path)
    assert sealed.read(name) == b"code"


@pytest.mark.compiler
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("descriptors", [True, False])
def test_libraries_are_loaded_as_they_were_checked(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: bool
) -> None:
    """A descriptor's number is used again and again; each library must still be its own."""
    if not descriptors:
        monkeypatch.setattr(sealed.os.path, "exists", lambda path: not str(path).startswith("/proc/"))
    loaded = []
    for number in range(4):
        source, built = tmp_path / "library.c", tmp_path / "library.so"
        source.write_text(f"int number(void) {{ return {number}; }}")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
        sealed.install(built, f"{number}.so")

        def exchanging(path: str, number: int = number) -> Any:
            # Whatever comes under the name between the check and the loading is not what is loaded.
            (kept / f"{number}.so").unlink()
            (kept / f"{number}.so").write_bytes(b"not a library")
            return ctypes.CDLL(path)

        library = sealed.load(f"{number}.so", exchanging)
        assert library is not None
        loaded.append(library)
        assert library.number() == number
    assert [library.number() for library in loaded] == [0, 1, 2, 3]
    assert not list(kept.glob(".load-*"))


def _build_alone(folder: str, log: str) -> None:
    os.environ["OPTLANG_CACHE"] = folder
    with sealed.alone("kernel.so"):
        if sealed.read("kernel.so") is None:
            with open(log, "a", encoding="ascii") as file:
                file.write("built\n")
            time.sleep(0.2)
            put("kernel.so", b"code", Path(folder).parent)


def test_processes_build_a_kernel_once(kept: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        processes = [context.Process(target=_build_alone, args=(str(kept), str(log))) for _ in range(3)]
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"


def test_where_nothing_can_be_locked_each_builds(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    entered = []
    with sealed.alone("kernel.so"):
        entered.append(True)
    with pytest.raises(KeyError), sealed.alone("kernel.so"):
        raise KeyError
    assert entered == [True]


def test_keys_tell_parts_apart() -> None:
    assert sealed.key("ab", "c") != sealed.key("a", "bc")
    assert sealed.key("a") == sealed.key("a")


# where it is --------------------------------------------------------------------------------------------------


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTLANG_CACHE", str(tmp_path / "somewhere"))
    assert folders.location() == tmp_path / "somewhere"
    monkeypatch.chdir(tmp_path)
    for relative in (".", "here"):
        monkeypatch.setenv("OPTLANG_CACHE", relative)
        assert folders.location() == tmp_path / relative
    monkeypatch.delenv("OPTLANG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folders.location() == tmp_path / "xdg" / "optlang"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folders.location() == tmp_path / "home" / ".cache" / "optlang"


@posix
def test_a_folder_that_others_can_write_to_is_refused(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = tmp_path / "temporary" / f"optlang-{os.getuid()}"
    put("kernel.so", b"theirs", tmp_path)
    for shared, mode in ((kept, 0o777), (kept, 0o1777), (kept, 0o702), (tmp_path, 0o777)):
        monkeypatch.setattr(folders, "_said", set())
        before = stat.S_IMODE(shared.stat().st_mode)
        shared.chmod(mode)
        with pytest.warns(RuntimeWarning, match=f"others may write to {re.escape(str(shared))}; .*") as caught:
            if shared == tmp_path:  # its folder for temporary files can be exchanged as well
                assert folders.folder().parent == tmp_path / "temporary"
                assert folders.folder().name != fallback.name
            else:
                assert folders.folder() == fallback
                assert folders.location() == fallback
                assert stat.S_IMODE(fallback.stat().st_mode) == 0o700
            assert sealed.read("kernel.so") is None
            put("other.so", b"ours", tmp_path)
            assert sealed.read("other.so") == b"ours"
        assert len(caught) == 1 and "set OPTLANG_CACHE" in str(caught[0].message)
        shared.chmod(before)
    assert folders.folder() == kept and sealed.read("kernel.so") == b"theirs"


@posix
def test_a_sticky_folder_may_hold_it(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o1777)
    assert folders.danger(kept) is None
    tmp_path.chmod(0o770)
    monkeypatch.setattr(folders, "_is_own_group", lambda _: False)
    assert folders.danger(kept) == f"others may write to {tmp_path}"
    monkeypatch.setattr(folders, "_is_own_group", lambda _: True)
    assert folders.danger(kept) is None
    tmp_path.chmod(0o700)


@posix
def test_a_folder_of_somebody_else_is_refused(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(kept, 12345, -1)
    else:
        monkeypatch.setattr(folders.os, "getuid", lambda: os.stat(kept).st_uid + 1)
    assert folders.danger(kept) is not None and "belongs to another user" in str(folders.danger(kept))


@posix
def test_links_lead_to_the_folder_that_is_judged(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(kept)
    monkeypatch.setenv("OPTLANG_CACHE", str(tmp_path / "link"))
    assert folders.folder() == kept
    kept.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others may write"):
        assert folders.folder() != kept


@posix
def test_without_a_home_it_is_among_the_temporary_files(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(*_: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("OPTLANG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(folders.Path, "home", homeless)
    fallback = tmp_path / "temporary" / f"optlang-{os.getuid()}"
    assert folders.location() == fallback
    with pytest.warns(RuntimeWarning, match="there is no home folder"):
        assert folders.folder() == fallback
    put("kernel.so", b"code", tmp_path)
    assert sealed.read("kernel.so") == b"code"


@posix
def test_where_it_cannot_be_made_it_is_elsewhere(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPTLANG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="cannot be") as caught:
        assert folders.folder() == tmp_path / "temporary" / f"optlang-{os.getuid()}"
    put("kernel.so", b"code", tmp_path)
    assert sealed.read("kernel.so") == b"code"
    assert len(caught) == 1
    # What others, or root, have put there before may still be read.
    monkeypatch.setenv("OPTLANG_CACHE", str(kept))
    put("ready.so", b"ready", tmp_path)
    monkeypatch.setattr(folders, "_could_be_written", lambda path: path != kept)
    assert sealed.read("ready.so") == b"ready" and sealed.read("kernel.so") == b"code"


def test_what_killed_processes_left_goes_after_a_day(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young = time.time() - 2 * folders.DAY, time.time() - folders.DAY / 2
    (kept / "outside").mkdir()
    for name, age in (("old", old), ("young", young)):
        for path in (kept / f".build-{name}", kept / f".kernel.{name}.part", kept / f".kernel-{name}.lock"):
            path.mkdir() if "build" in path.name else path.touch()
            if "build" in path.name:
                (path / "kernel.cpp").touch()
            os.utime(path, (age, age))
    (kept / ".build-link").symlink_to(kept / "outside")
    os.utime(kept / ".build-link", (old, old), follow_symlinks=False)
    monkeypatch.setattr(folders, "_tidied", set())
    folders.folder()
    left = sorted(path.name for path in kept.iterdir())
    assert left == [".build-young", ".kernel-young.lock", ".kernel.young.part", "outside"]


HOMELESS = """
import sys
try:
    import torch, optlang
except (ImportError, OSError):
    sys.exit(77)
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
optlang.compile("p -= lr*g", name="Homeless")([p], lr=0.5).step()
print(p.tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become somebody unknown")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
def test_a_user_that_the_system_does_not_know_makes_a_step() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        os.chmod(temporary, 0o1777)
        environment = {"PATH": os.environ["PATH"], "CXX": "none", "TMPDIR": temporary}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        command = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", sys.executable, "-c", HOMELESS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=temporary)
    if done.returncode == 77:
        pytest.skip("others cannot read this environment")
    assert done.stdout == "[0.5, 0.5, 0.5]\n", done.stderr


# the tables of the parser -------------------------------------------------------------------------------------


def test_the_tables_of_the_parser_are_kept_and_made_again_if_damaged(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Any:
        raise AssertionError("computed again")

    source = Source(optlang.rules.path("AdamW").read_text(encoding="utf-8"), "adamw.opt")
    expected = parse.parse(source)
    try:
        parse.parser.cache_clear()
        assert parse.parse(source) == expected
        (tables,) = kept.glob("grammar-*.tables")
        content = tables.read_bytes()
        parse.parser.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(parse, "_made", refused)
            assert parse.parse(source) == expected
        tables.write_bytes(content[:100] + b"x" + content[101:])
        tables.chmod(0o700)
        parse.parser.cache_clear()
        assert parse.parse(source) == expected
        assert sealed.read(tables.name) is not None
    finally:  # examples of mistakes are told by the states of the parser that they were made with
        parse.parser.cache_clear()
        parse._examples.cache_clear()


# how it is built ----------------------------------------------------------------------------------------------


@pytest.mark.compiler
@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["with blanks", 'it\'s $HOME; "x" `y` \\z', "δ", "-o"])
def test_a_path_may_have_any_character(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    built = library.compiled('extern "C" int number() { return 7; }\n', library.flags(), (), folder)
    assert ctypes.CDLL(str(built)).number() == 7
    with pytest.raises(RuntimeError, match="the C\\+\\+ compiler failed") as caught:
        library.compiled("nonsense", library.flags(), (), folder)
    assert re.search(r"RuntimeError: the C\+\+ compiler failed; .*error: .*nonsense", slow.cause(caught.value))


def test_inductor_gets_a_folder_that_it_can_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(variable, str(tmp_path))
    with toolchain.plain_paths():
        assert os.environ[variable] == str(tmp_path)
    for odd in (tmp_path / "a b", tmp_path / "a'b"):
        monkeypatch.setenv(variable, str(odd))
        with toolchain.plain_paths():
            inside = os.environ[variable]
            assert re.fullmatch(r"[\w./-]+", inside) and Path(inside).is_dir()
        assert os.environ[variable] == str(odd) and not Path(inside).exists()
    monkeypatch.delenv(variable)
    monkeypatch.setattr(toolchain.tempfile, "tempdir", str(tmp_path / "a b"))
    with toolchain.plain_paths():
        assert " " not in os.environ[variable]
    assert variable not in os.environ


# what is said -------------------------------------------------------------------------------------------------


def test_a_slower_way_is_said_with_its_cause_and_log(kept: Path) -> None:
    try:
        raise ValueError("C++ compile error\n\nOutput:\nkernel.cpp:1:1: error: no such thing\nmore")
    except ValueError as problem:
        error = problem
    with pytest.warns(RuntimeWarning) as caught:
        slow.warn("A is slow", error)
    text = str(caught[0].message)
    assert text.startswith("A is slow: ValueError: C++ compile error; kernel.cpp:1:1: error: no such thing (more in ")
    log = Path(text.rpartition("(more in ")[2].rstrip(")"))
    assert log.parent == kept
    assert "Traceback" in log.read_text() and "raise ValueError" in log.read_text()
