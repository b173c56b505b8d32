"""A device or a library that is not there is said with what to do about it; it is never a bug of ptsave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from ptsave.cli import main
from tests.support import Command

SIMPLE = Path(__file__).parents[1] / "configs" / "simple_net.toml"
ABSENT = [
    *(["cuda", "cuda:0"] if not torch.cuda.is_available() else ["cuda:99"]),
    *("mps", "xpu", "gpu", "tpu", "cpu:7x", "meta"),
]
if torch.backends.mps.is_available():
    ABSENT.remove("mps")
if torch.xpu.is_available():
    ABSENT.remove("xpu")


LINES = (
    "verify net.pt --trust-recorded",
    "verify net.pt --against {0}",
    "load net.pt -c {0}",
    "save {0} other.pt",
)


@pytest.mark.parametrize(
    ("line", "device"),
    [*(("verify net.pt -c {0}", device) for device in ABSENT), *((line, ABSENT[0]) for line in LINES)],
)
def test_a_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str, device: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["save", str(SIMPLE), "net.pt", "-q"]) == 0
    code = main.run([*line.format(SIMPLE).split(), "--device", device])
    err = capfd.readouterr().err
    assert code == 2, err
    assert "device" in err
    assert "\nhint: --device cpu" in err
    assert not Path("other.pt").exists()


@pytest.mark.slow
def test_without_torch(ptsave: Command, tmp_path: Path, root: Path, clean_env: dict[str, str]) -> None:
    """All that is installed but torch, for a Python that looks nowhere else."""
    ptsave("save", SIMPLE, "net.pt")
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for path in Path(typer.__file__).parents[1].iterdir():
        if not path.name.startswith(("torch", "functorch")):
            (libraries / path.name).symlink_to(path)
    (libraries / "ptsave").unlink(missing_ok=True)
    (libraries / "ptsave").symlink_to(root / "ptsave")

    def run(*words: object) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-S", "-m", "ptsave", *map(str, words)],
            cwd=tmp_path,
            env=clean_env | {"PYTHONPATH": os.fspath(libraries)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    assert run("inspect", "net.pt", "--stats")[0] == 0
    assert run("convert", "net.pt", "b.safetensors")[0] == 0
    assert run("verify", "net.pt")[0] == 0
    for words in (
        ["load", "net.pt", "-c", SIMPLE],
        ["save", SIMPLE, "c.pt"],
        ["verify", "net.pt", "-c", SIMPLE],
        ["verify", "net.pt", "--trust-recorded"],
        ["verify", "--list-checks"],
    ):
        code, said = run(*words)
        assert code == 4, said
        assert "this needs torch, which is not installed" in said
        assert "hint: pip install 'ptsave[torch]'" in said
