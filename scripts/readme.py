"""Keeps the README true: its sessions and tables are produced by the program.

    scripts/readme.py            rewrite README.md
    scripts/readme.py --check    fail, with the difference, when it is not what the program prints

Every ```console block is a session: its `$ ` lines are run, in order, in one folder that lasts for the
whole document, and what they print replaces what stands there (less the versions and the platform of the
machine at hand, which become an ellipsis). A command may fail only where the next
line is `$ echo $?`. `<!-- run: COMMAND -->` runs without being shown. `<!-- begin: NAME -->` …
`<!-- end -->` holds a table made by a function of TABLES.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptsave.formats.writers import Writer

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
sys.path.insert(0, str(ROOT))

PIECE = re.compile(
    r"(?P<console>^```console\n(?P<body>.*?)^```$)"
    r"|(?P<hidden>^<!-- run: (?P<command>.*?) -->$)"
    r"|(?P<table>^<!-- begin: (?P<name>.*?) -->\n.*?^<!-- end -->$)",
    re.MULTILINE | re.DOTALL,
)


def render(text: str) -> str:
    """`text` with every session run again and every table made again."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder))

        def replace(match: re.Match[str]) -> str:
            if match["console"]:
                return f"```console\n{session.replay(match['body'])}```"
            if match["hidden"]:
                session.run(match["command"])
                session.expect_success(match["command"])
                return match.group()
            name = match["name"]
            return f"<!-- begin: {name} -->\n{TABLES[name]()}<!-- end -->"

        return PIECE.sub(replace, text)


class Session:
    """A shell session in one folder, where `configs/` lies as in the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = 0
        """Exit code of the last command."""
        shutil.copytree(ROOT / "configs", folder / "configs")
        self.env = {key: value for key, value in os.environ.items() if key not in AMBIENT} | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

        self.run(f"'{sys.executable}' '{ROOT}/scripts/readme_files.py'")
        self.expect_success("readme_files.py")

    def run(self, command: str) -> str:
        """What `command` prints, on both streams, as on a terminal."""
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.code}); {command}"],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.code = done.returncode
        self.output = MACHINE.sub(r"\1…", done.stdout)
        return self.output

    def expect_success(self, command: str) -> None:
        """Raises: SystemExit when the last command failed."""
        if self.code:
            sys.exit(f"error: `{command}` exited with {self.code}:\n{self.output}")

    def replay(self, body: str) -> str:
        """A block's text: its commands, each with what it prints now."""
        commands = re.findall(r"^\$ ((?:.*\\\n)*.*)\n", body, re.MULTILINE)
        text = ""
        for command, following in zip(commands, [*commands[1:], ""], strict=True):
            text += f"$ {command}\n" + re.sub(r"[ \t]+$", "", self.run(command), flags=re.MULTILINE)
            if following != "echo $?":
                self.expect_success(command)
            if not text.endswith("\n"):
                text += "\n"
        return text


MACHINE = re.compile(r"^((?:torch|python|platform|machine) +)'.*'$", re.MULTILINE)
"""The lines of a record that say where it was written."""

AMBIENT = ("CI", "GITHUB_ACTIONS", "FORCE_COLOR", "PTSAVE_DEBUG", "PYTHONDONTWRITEBYTECODE")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def exit_codes() -> str:
    """From the errors themselves."""
    from ptsave import errors

    meanings = {
        0: "done, or the verdict is yes",
        1: "the verdict is no: `verify`, or `inspect --diff` with differences; never anything else",
        errors.UsageError.exit_code: "the command line or the TOML is wrong",
        errors.UnreadableError.exit_code: "the input cannot be read: missing, unknown format, corrupt",
        errors.RefusedError.exit_code: "refused: unsafe, lossy, or would overwrite; "
        "the message names the flag that allows it where there is one",
        errors.RankError.exit_code: "a rank failed (under torchrun)",
        errors.EXIT_BUG: "a bug in ptsave; `PTSAVE_DEBUG=1` shows a traceback",
        errors.EXIT_INTERRUPTED: "interrupted",
    }
    return table(("code", "meaning"), ((f"`{code}`", text) for code, text in meanings.items()))


def formats() -> str:
    """From the registry."""
    from ptsave.formats import FILE_FORMATS, FOLDER_FORMATS
    from ptsave.formats.writers import BY_NAME

    return table(
        ("format", "shape", "read", "written"),
        (
            (f"`{known.name}`", shape, "yes", _written(BY_NAME.get(known.name)))
            for shape, group in (("file", FILE_FORMATS), ("folder", FOLDER_FORMATS))
            for known in group
        ),
    )


def _written(writer: Writer | None) -> str:
    if writer is None:
        return "no"
    suffixes = ", ".join(f"`{suffix}`" for suffix in writer.suffixes)
    return f"yes ({suffixes})" if suffixes else "yes"


def benchmarks() -> str:
    """From the last run of scripts/bench."""
    from benchmarks.report import markdown

    return markdown(ROOT / "benchmarks" / "results.json")


TABLES: dict[str, Callable[[], str]] = {
    "exit codes": exit_codes,
    "formats": formats,
    "benchmarks": benchmarks,
}


def main() -> int:
    """Exit code 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    arguments = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if before == after:
        return 0
    if not arguments.check:
        README.write_text(after, encoding="utf-8")
        return 0
    names = ("README.md", "what the program prints")
    sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), *names, n=1))
    print("\nerror: README.md is not what the program prints\nhint: python scripts/readme.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
