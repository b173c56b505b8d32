"""The virtual environment of this checkout, filled at the tested versions. Needs the standard library alone.

PTSAVE_VENV   the environment's folder (default: .venv in the checkout)
PYTHON        the interpreter that makes it (default: python3.11, the tested one, or else the one at hand)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 10)
VERSIONED = ("pyproject.toml", "constraints.txt", "requirements-no-deps.txt")
"""What decides what is installed."""
NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME")
"""The first makes an editable install compile itself at every start; the others bring the user's packages."""


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def die(what: str, hint: str = "") -> SystemExit:
    """What to raise: exit code 1, with an error and what to do about it."""
    return SystemExit(f"error: {what}" + (f"\nhint: {hint}" if hint else ""))


def environ(venv: Path | None = None) -> dict[str, str]:
    """The environment variables of what runs; with `venv`, its programs come first."""
    env = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    env |= {"PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if venv is not None:
        env["PATH"] = os.pathsep.join([str(programs(venv)), env.get("PATH", "")])
    return env


def programs(venv: Path) -> Path:
    """The folder of an environment's programs."""
    return venv / ("Scripts" if os.name == "nt" else "bin")


def python_of(venv: Path) -> Path:
    """An environment's interpreter."""
    return programs(venv) / ("python.exe" if os.name == "nt" else "python")


def quietly(what: str, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path = ROOT) -> None:
    """Run `command` with one line of progress. Raises: SystemExit with what it printed, when it fails."""
    print(f"{what} … ", end="", file=sys.stderr, flush=True)
    begin = time.monotonic()
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if not done.returncode:
        say(f"done ({time.monotonic() - begin:.0f} s)")
        return
    output = done.stdout.decode(errors="replace")
    say(f"failed\n{output}")
    errors = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    hint = "what it printed is above"
    if errors:
        hint = f"{errors[-1].removeprefix('ERROR: ')}; see above, or try another Python: PYTHON=python3.11"
    raise die(f"'{' '.join(map(str, command))}' failed", hint)


def find_python() -> str:
    """The interpreter that makes the environment. Raises: SystemExit where none is new enough."""
    able = f"import sys, venv, ensurepip; sys.exit(sys.version_info < {OLDEST})"
    for candidate in filter(None, (os.environ.get("PYTHON"), "python3.11", sys.executable)):
        found = shutil.which(candidate)
        if found and not subprocess.run([found, "-c", able], stderr=subprocess.DEVNULL).returncode:
            return found
    raise die(
        f"no Python {OLDEST[0]}.{OLDEST[1]} or newer with the venv module was found",
        "install one (on Debian: apt-get install python3-venv), or name it: PYTHON=/path/to/python3",
    )


def make_venv(*extras: str) -> Path:
    """The environment, with this checkout installed in it for editing and with `extras`; gives its folder.

    Raises: SystemExit.
    """
    venv = Path(os.environ.get("PTSAVE_VENV") or ROOT / ".venv").resolve()
    if not python_of(venv).exists():
        python = find_python()
        version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip()
        quietly(f"Making a virtual environment with {version}", [python, "-m", "venv", venv], environ())
    texts = [str(ROOT), *((ROOT / name).read_text(encoding="utf-8") for name in VERSIONED)]
    wanted = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    stamp = venv / f".ptsave-{'-'.join(extras)}"
    if not stamp.exists() or stamp.read_text() != wanted:
        _install(venv, extras)
        stamp.write_text(wanted)
    return venv


def _install(venv: Path, extras: Sequence[str]) -> None:
    # Constraints given this way hold in build environments too. Relative: pip splits it at spaces.
    env = environ(venv) | {"PIP_CONSTRAINT": "constraints.txt"}
    pip: list[str | Path] = [python_of(venv), "-m", "pip", "install"]
    # torch first and alone: its exact version, so that no other package's range picks another build.
    (torch,) = (line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
    quietly("Installing torch", [*pip, torch], env)
    more = " and what the tests need" if "test" in extras else ""
    quietly(f"Installing ptsave{more}", [*pip, "-e", f".[{','.join(extras)}]"], env)
    if "test" in extras:
        alone = [*pip, "--no-deps", "-r", "requirements-no-deps.txt"]
        quietly("Installing packages that the tests use alone", alone, env)
