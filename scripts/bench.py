"""Measures every budget side by side and keeps the figures, which scripts/docs.py makes tables of."""

from __future__ import annotations

import subprocess
import sys

from environment import ROOT, environ, make_venv, python_of

if __name__ == "__main__":
    venv = make_venv("test")  # with the peers that ptsave is measured against
    command = [str(python_of(venv)), "-m", "benchmarks.main", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environ(venv)).returncode)
