"""Fuzzes the readers: coverage-guided with atheris, and with the tests' hypothesis strategies.

scripts/fuzz --seconds 600                  pickles, zip and safetensors, alone and beside the real readers
scripts/fuzz --seconds 60 --target dcp      one reader; --help lists them
scripts/fuzz --costs --kind "st_*"          what small files cost: every kind of them through every command

Findings are kept in fuzz-findings/. Exit code 1 when there are any.
"""

from __future__ import annotations

import subprocess
import sys

from environment import ROOT, environ, make_venv, python_of

if __name__ == "__main__":
    venv = make_venv("test", "fuzz")
    command = [str(python_of(venv)), "-m", "fuzz.main", *sys.argv[1:]]
    sys.exit(subprocess.run(command, env=environ(venv) | {"PYTHONPATH": str(ROOT)}).returncode)
