"""Try a built wheel from outside the checkout: ``python tests/project/wheel.py dist/*.whl``.

The wheel is installed into an environment of its own, which borrows the dependencies of the one that runs
this, but not the checkout. Run by ``make wheel-test``; not collected by pytest.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

TRAINING = """
import pickle, sys
import torch
import optlang

assert {checkout!r} not in optlang.__file__, optlang.__file__
torch.manual_seed(0)
ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((20, 30), (7,))]
theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
one, other = optlang.rules.AdamW(ours), torch.optim.AdamW(theirs)
for step in range(5):
    for a, b in zip(ours, theirs):
        a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
        b.grad = a.grad.clone()
    one.step()
    other.step()
apart = max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs))
assert apart < 1e-6, apart
pickle.loads(pickle.dumps(one)).step()
print(f"5 steps of AdamW, compiled, differ from torch.optim.AdamW by {{apart:.1e}}")
"""


def main(wheel: str) -> None:
    checkout = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="optlang-wheel-") as folder:
        environment = Path(folder, "env")
        venv.create(environment, with_pip=False, symlinks=os.name != "nt")
        binaries = environment / ("Scripts" if os.name == "nt" else "bin")
        python = binaries / "python"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
        run([*pip, "install", "--quiet", "--no-deps", str(Path(wheel).resolve())], folder)
        borrow_dependencies(environment)

        place = run([str(python), "-c", "import optlang; print(optlang.__file__)"], folder)
        assert str(environment) in place, place
        command = str(binaries / "optlang")
        for arguments, expected in (
            (["--version"], "optlang "),
            (["check", "adamw", "-"], "adamw.opt: ok (AdamW)"),
            (["list"], "torch.optim.AdamW"),
            (["explain"], "E901"),
            (["new", "MyRule"], "wrote MyRule.opt"),
            (["format", "--check", "MyRule.opt"], ""),
            (["emit", "MyRule.opt"], "def update("),
        ):
            out = run([command, *arguments], folder, stdin="p -= lr*g")
            assert expected in out, f"optlang {' '.join(arguments)} printed:\n{out}"
        print(run([str(python), "-c", TRAINING.format(checkout=checkout)], folder), end="")
    print(f"{Path(wheel).name}: ok")


def borrow_dependencies(environment: Path) -> None:
    """Let an environment see this one's packages, but not what their .pth files add: the checkout."""
    inner = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (inner / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


def run(command: list[str], folder: str, stdin: str = "") -> str:
    """Run a command in a folder, without the settings of this environment, and return what it prints."""
    cleared = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    finished = subprocess.run(
        command, cwd=folder, env=cleared, input=stdin, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{finished.stdout}{finished.stderr}")
    return finished.stdout


if __name__ == "__main__":
    main(sys.argv[1])
