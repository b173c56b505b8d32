"""The README is what the program prints, says how every command is used, and names only what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Command

COMMANDS = ("save", "load", "inspect", "convert", "verify")


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_readme_is_what_the_program_prints(root: Path, clean_env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/readme.py", "--check"],
        cwd=root,
        env=clean_env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_section_and_an_example(command: str, readme: str) -> None:
    assert f"### {command}\n" in readme
    assert re.search(rf"^\$ ptsave {command} ", readme, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_stands_in_its_help_in_the_readme(
    command: str, readme: str, ptsave: Command
) -> None:
    flags = set(re.findall(r"--[a-z][a-z-]+", ptsave(command, "--help").stdout)) - {"--help"}
    assert flags
    assert {flag for flag in flags if flag not in readme} == set()


def test_every_flag_in_the_readme_exists(readme: str, ptsave: Command) -> None:
    known = set()
    for command in ((), *((name,) for name in COMMANDS)):
        known |= set(re.findall(r"--[a-z][a-z-]+", ptsave(*command, "--help").stdout))
    used = set()
    for line in re.findall(r"ptsave [^\n]*", readme):
        used |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line))
    assert used <= known


def test_every_path_in_the_readme_exists(readme: str, root: Path) -> None:
    paths = set(re.findall(r"`((?:scripts|configs|benchmarks|docs|tests|ptsave)/[\w./-]*)`", readme))
    assert paths
    assert {path for path in paths if not (root / path).exists()} == set()
