"""Keeps the README and the docs true: their sessions and tables are produced by the program.

    scripts/docs.py [FILE…]            rewrite README.md and docs/, or these files alone
    scripts/docs.py --check [FILE…]    fail, with the difference, when one is not what the program prints

Every ```console block is a session: its `$ ` lines are run, in order, in one folder that lasts for the
whole document, and what they print replaces what stands there (less the versions and the platform of the
machine at hand, which become an ellipsis). A command may fail only where the next
line is `$ echo $?`. `<!-- run: COMMAND -->` runs without being shown. `<!-- begin: NAME -->` …
`<!-- end -->` holds a table made by a function of TABLES.
"""

from __future__ import annotations

import argparse
import difflib
import json
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
sys.path.insert(0, str(ROOT))

PIECE = re.compile(
    r"(?P<console>^```console\n(?P<body>.*?)^```$)"
    r"|(?P<hidden>^<!-- run: (?P<command>.*?) -->$)"
    r"|(?P<table>^<!-- begin: (?P<name>.*?) -->\n.*?^<!-- end -->$)",
    re.MULTILINE | re.DOTALL,
)


def render(text: str, files: Path) -> str:
    """`text` with every session run again in a copy of the folder `files`, and every table made again."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder) / "session", files)

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
    """A shell session in a new folder, which begins with what is in another."""

    def __init__(self, folder: Path, files: Path) -> None:
        self.folder = folder
        self.code = 0
        """Exit code of the last command."""
        shutil.copytree(files, folder)
        self.env = {key: value for key, value in os.environ.items() if key not in AMBIENT} | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

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
            (f"`{known.name}`", shape, "yes", _written(known.name, BY_NAME.get(known.name)))
            for shape, group in (("file", FILE_FORMATS), ("folder", FOLDER_FORMATS))
            for known in group
        ),
    )


def _written(name: str, writer: Writer | None) -> str:
    from ptsave.formats.writers import PROGRAMS

    if writer is None:
        return "from a model (`-c`)" if name in PROGRAMS else "no"
    suffixes = ", ".join(f"`{suffix}`" for suffix in writer.suffixes)
    return f"yes ({suffixes})" if suffixes else "yes"


def benchmarks() -> str:
    """From the last run of scripts/bench."""
    from benchmarks.report import markdown

    return markdown(ROOT / "benchmarks" / "results.json")


def at_a_glance() -> str:
    """Some rows of the last run of scripts/bench."""
    from benchmarks.report import some

    return some(ROOT / "benchmarks" / "results.json")


def scale() -> str:
    """From the last run of benchmarks.scale."""
    from benchmarks.scale_report import table

    return table(json.loads((ROOT / "benchmarks" / "scale.json").read_text(encoding="utf-8")))


TABLES: dict[str, Callable[[], str]] = {
    "exit codes": exit_codes,
    "formats": formats,
    "benchmarks": benchmarks,
    "speed at a glance": at_a_glance,
    "figures": scale,
}


def main() -> int:
    """Exit code 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    parser.add_argument("files", nargs="*", type=Path, help="README.md and every page of docs/")
    arguments = parser.parse_args()
    differing = []
    with tempfile.TemporaryDirectory() as made:
        files = Path(made)
        shutil.copytree(ROOT / "configs", files / "configs")
        subprocess.run([sys.executable, ROOT / "scripts" / "docs_files.py"], cwd=files, check=True)
        for path in arguments.files or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
            before = path.read_text(encoding="utf-8")
            after = render(before, files) if PIECE.search(before) else before
            if before == after:
                continue
            if not arguments.check:
                path.write_text(after, encoding="utf-8")
                continue
            name = str(path.resolve().relative_to(ROOT))
            differing.append(name)
            lines = before.splitlines(True), after.splitlines(True)
            sys.stdout.writelines(difflib.unified_diff(*lines, name, "what the program prints", n=1))
    if not differing:
        return 0
    print(f"\nerror: not what the program prints: {', '.join(differing)}\nhint: python scripts/docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
