"""Lint, docstrings, format, types, imports, the sameness of README and docs, file sizes.

scripts/test.py runs it first, in the environment of the interpreter at hand, or else in the checkout's.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from environment import ROOT, environ, make_venv, python_of, say

MAX_FILE_BYTES = 1024 * 1024
PLATFORMS = ("darwin", "win32")  # the package alone: the benchmarks measure processes as Unix counts them


def commands(python: str) -> list[tuple[str, Sequence[str]]]:
    """What is run, by name."""
    found: list[tuple[str, Sequence[str]]] = [
        ("lint and docstrings (ruff check)", ("ruff", "check", ".")),
        ("format (ruff format)", ("ruff", "format", "--check", ".")),
        ("types (mypy --strict)", ("mypy",)),
        ("imports (lint-imports)", ("lint-imports", "--no-cache")),
    ]
    for platform in PLATFORMS:
        options = ("--platform", platform, "--cache-dir", f".mypy_cache/{platform}", "-p", "ptsave")
        found.append((f"types on {platform}", ("mypy", *options)))
    found.append(("README and docs (scripts/docs.py --check)", (python, "scripts/docs.py", "--check")))
    return found


def large_files() -> str:
    """No tracked file is above 1 MiB: checkpoints are made by the tests, not kept."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = [path for path in paths if path.is_file() and path.stat().st_size > MAX_FILE_BYTES]
    return "".join(f"tracked and larger than 1 MiB: {path}\n" for path in large)


def oldest_python() -> str | None:
    """Python 3.10 on the path, or one that pyenv keeps off it."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(map(str, pyenv.glob("versions/3.10*/bin/python3.10")))
    for candidate in (shutil.which("python3.10"), *kept):
        if candidate and not subprocess.run([candidate, "--version"], capture_output=True).returncode:
            return candidate
    return None


def main() -> int:
    """Exit code 0 when all is well."""
    if importlib.util.find_spec("mypy") is None or importlib.util.find_spec("ptsave") is None:
        python = python_of(make_venv("test", "check"))
        return subprocess.run([python, __file__], env=environ()).returncode
    env = environ(Path(sys.prefix))
    failed = []

    def report(name: str, output: str, is_bad: bool) -> None:
        say(f"{'FAIL' if is_bad else 'ok  '}  {name}")
        if is_bad:
            failed.append(name)
            say("".join(f"      {line}\n" for line in output.splitlines()))

    def run(name: str, command: Sequence[str], **more: str) -> None:
        done = subprocess.run(command, cwd=ROOT, env=env | more, capture_output=True, text=True)
        report(name, done.stdout + done.stderr, bool(done.returncode))

    for name, command in commands(sys.executable):
        run(name, (shutil.which(command[0], path=env["PATH"]) or command[0], *command[1:]))
    large = large_files()
    report("file sizes", large, bool(large))
    oldest = oldest_python()
    if oldest is None:
        say("SKIP  syntax of Python 3.10: there is no python3.10 here")
    else:
        with tempfile.TemporaryDirectory() as caches:
            compile_all = (oldest, "-m", "compileall", "-q", "ptsave", "scripts", "benchmarks")
            run("syntax of Python 3.10", compile_all, PYTHONPYCACHEPREFIX=caches)
    say(f"scripts/check: FAILED: {', '.join(failed)}" if failed else "scripts/check: all passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
