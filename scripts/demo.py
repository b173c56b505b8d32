"""Does all the set-up on a fresh machine, then saves, inspects, converts, loads and verifies a small model.

Every command is shown and run for real, in a temporary folder. Needs the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from environment import ROOT, die, environ, make_venv, programs

IS_PLAIN = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
CONFIG = "configs/simple_net.toml"
STEPS = [
    (
        "Save: build the model, give it seeded weights, write them with their record.",
        f"ptsave save {CONFIG} simple_net.safetensors",
    ),
    (
        "Inspect: what is in the file? Nothing in it runs, and torch is not imported.",
        "ptsave inspect simple_net.safetensors",
    ),
    (
        "Convert: move the weights to a file that plain torch.load opens.",
        "ptsave convert simple_net.safetensors simple_net.pt",
    ),
    (
        "Load: rebuild the model and load the weights, strictly.",
        f"ptsave load simple_net.pt -c {CONFIG}",
    ),
    (
        "Verify: is it still the same model? Exit code 0 is yes, 1 is no.",
        f"ptsave verify simple_net.pt -c {CONFIG}",
    ),
]


def styled(text: str, code: int) -> str:
    """`text` in bold (1) or dim (2), on a terminal."""
    return text if IS_PLAIN else f"\033[{code}m{text}\033[0m"


def show(command: str, folder: Path, env: Mapping[str, str]) -> None:
    """Print the command and run it. Raises: SystemExit when it fails."""
    print(styled(f"$ {command}", 1), flush=True)
    program, *arguments = command.split()
    code = subprocess.run(
        [shutil.which(program, path=env["PATH"]) or program, *arguments], cwd=folder, env=env
    )
    if code.returncode:
        raise die(
            f"'{command}' exited with {code.returncode}",
            "this is a bug in ptsave or in its set-up: please report it",
        )


def main() -> None:
    """Raises: SystemExit when a step fails."""
    venv = make_venv("torch")
    env = environ(venv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "configs", folder / "configs")
        print(styled("\n# The architecture is a dotted path and its arguments, in a TOML file.", 2))
        print((folder / CONFIG).read_text(encoding="utf-8").rstrip())
        for note, command in STEPS:
            print(styled(f"\n# {note}", 2))
            show(command, folder, env)
    print(styled("\nDone: saved, inspected, converted, loaded and verified.", 1))
    activate = programs(venv) / "activate"
    print(f"To go on:  {activate}" if os.name == "nt" else f"To go on:  source '{activate}' && ptsave --help")


if __name__ == "__main__":
    main()
