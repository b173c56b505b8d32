"""Does all the set-up, runs every check and every test. Needs the standard library alone.

python scripts/test.py                 everything
python scripts/test.py -k legacy -x    only these tests: arguments go to pytest
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from environment import ROOT, environ, make_venv, python_of, quietly, say

AZURITE = "3.35.0"
"""Azure's own emulator; the newest that Node 20 runs."""
TOOLS = [
    ("strace", "strace", "kill and fail a process at every system call"),
    ("mkfs.ext4", "e2fsprogs", "cut the power under a mounted ext4"),
    ("mkfs.xfs", "xfsprogs", "cut the power under a mounted XFS"),
    ("chromium", "chromium", "open a report in a browser"),
    ("chromedriver", "chromium-driver", "open a report in a browser"),
]
"""What some tests drive: the command, Debian's package, what these tests do."""


def attempt(what: str, *command: str) -> bool:
    """Whether `command` succeeded; without a network, the other tests still run."""
    try:
        quietly(what, command, environ())
    except (SystemExit, OSError) as error:
        say(str(error))
        return False
    return True


def warn(*lines: str) -> None:
    """Say it so that it is seen."""
    say("\n".join(("*" * 80, *lines, "*" * 80)))


def install_tools() -> None:
    """Install what is missing where that is allowed; say loudly what is not there."""
    missing = [tool for tool in TOOLS if not shutil.which(tool[0])]
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if missing and is_root and shutil.which("apt-get"):
        attempt("Reading the lists of packages", "apt-get", "update")
        for command, package, _ in missing:
            if not shutil.which(command):
                attempt(
                    f"Installing {package}", "apt-get", "install", "-y", "--no-install-recommends", package
                )
    for command, package, tests in missing:
        if not shutil.which(command):
            warn(
                f"{command} is missing and could not be installed here. SKIPPED: the tests that",
                f"{tests}. On Debian: sudo apt-get install {package}",
            )


def install_azurite() -> None:
    """In node_modules of the user's cache, where tests/servers/stores.py finds it."""
    folder = Path.home() / ".cache" / "ptsave" / "azurite"
    stamp = folder / ".version"
    if stamp.exists() and stamp.read_text().strip() == AZURITE:
        return
    npm = shutil.which("npm")
    if npm:
        folder.mkdir(parents=True, exist_ok=True)
        flags = ("--no-audit", "--no-fund", "--no-save", f"azurite@{AZURITE}")
        if attempt("Installing Azurite", npm, "install", "--prefix", str(folder), *flags):
            stamp.write_text(AZURITE)
            return
    warn(
        "Azurite could not be installed here (with npm). SKIPPED: the tests that write to",
        "Azure's blobs. On Debian: sudo apt-get install npm",
    )


def main() -> int:
    """Exit code 0 when all passed."""
    venv = make_venv("test", "check")
    install_azurite()
    install_tools()
    python, env = str(python_of(venv)), environ(venv)
    processes = os.environ.get("PTSAVE_TEST_PROCESSES", "2")
    check = [python, str(ROOT / "scripts" / "check.py")]
    pytest = [python, "-m", "pytest", "-n", processes, *sys.argv[1:]]
    codes = [subprocess.run(command, cwd=ROOT, env=env).returncode for command in (check, pytest)]
    say("scripts/test: FAILED" if any(codes) else "scripts/test: all passed")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
