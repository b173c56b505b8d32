"""Running a function of a test on the emulation of Windows, in a process of its own."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the emulation stands on Linux's /proc")


TORCH = ("torch", "torch._dynamo", "torch.export")
ONNX = (*TORCH, "onnx", "onnxruntime", "onnxscript", "torch.onnx")


def command(script: Path, libraries: Sequence[str] = ()) -> list[str]:
    """What runs `script` there, beside libraries that are loaded as Linux has them."""
    return [
        sys.executable,
        "-m",
        "tests.windows.machine",
        *(["--with", ",".join(libraries)] if libraries else []),
        str(script),
    ]


def environment() -> dict[str, str]:
    """The variables of a program whose output goes into a file there: its encoding is cp1252."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PTSAVE", "NO_COLOR"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252", "COLUMNS": "100"}


def written(scene: Callable[[], None], folder: Path) -> Path:
    """The script that calls `scene`, which imports what it needs."""
    path = folder / f".{scene.__name__}.py"
    path.write_text(f"{textwrap.dedent(inspect.getsource(scene))}\n\n{scene.__name__}()\n", encoding="utf-8")
    return path


def on_windows(
    scene: Callable[[], None], folder: Path, libraries: Sequence[str] = (), share: Path | None = None
) -> str:
    r"""What `scene` prints in `folder`; it must end without an error. `share` is called `\\server\share`."""
    done = subprocess.run(
        command(written(scene, folder), libraries),
        cwd=folder,
        env=environment() | ({"EMULATED_SHARE": str(share)} if share is not None else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
    )
    output = done.stdout.decode("cp1252") + done.stderr.decode("cp1252")
    assert done.returncode == 0, output
    return output
