"""The two streams: data on stdout, and on stderr what a person wants to know meanwhile.

Every text that came from a file passes `escape` on its way out, so that a terminal never obeys it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, TextIO

from ptsave import streams
from ptsave.core.names import escape
from ptsave.errors import WriteError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ptsave.errors import PtsaveError

PATIENCE_SECONDS = 1.0
"""How long a command works before it says on a terminal what it is doing."""
MAX_COLUMN_CHARS = 120
"""How wide a column of a table gets: a longer cell stands out, and does not widen every line."""

MIN_NAME_CHARS = 20
"""How much is left of a name that is cut to fit a terminal."""
GAP = "  "
"""Between two columns."""


@dataclass(frozen=True)
class Mode:
    """How a command talks."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


def out(line: str = "", end: str = "\n") -> None:
    """One line of data, or a piece of one, on stdout.

    Once a reader (`| head`) has what it wanted, the rest goes nowhere.

    Raises: WriteError when stdout does not take it.
    """
    try:
        print(line, end=end)
    except BrokenPipeError:
        streams.discard(sys.stdout)
    except OSError as error:
        raise streams.lost(error) from None


def document(fields: dict[str, Any]) -> None:
    """The one JSON object of a command, on stdout."""
    from ptsave.render import as_json  # a quarter of the time that --help takes

    for piece in as_json.pieces(as_json.versioned(fields)):
        out(piece, end="")
    out()


def say(line: str) -> None:
    """One line for a person, on stderr; where nobody can hear it, the work goes on."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def note(mode: Mode, line: str) -> None:
    """Something worth knowing, on stderr; not with `--quiet`."""
    if not mode.quiet:
        say(escape(line))


def warn(line: str) -> None:
    """Something that may be wrong, on stderr, whatever the mode."""
    say(f"{styled('warning:', '33', sys.stderr)} {escape(line)}")


def failure(problem: PtsaveError, *, json: bool) -> None:
    """A failure: `error:` and `hint:` on stderr, and with `json` the error object on stdout."""
    if json:
        from ptsave.render import as_json

        with suppress(WriteError):  # it is said on stderr as well
            document({"error": as_json.error(problem)})
    say(f"{styled('error:', '1;31', sys.stderr)} {escape(str(problem))}")
    if problem.hint:
        say(f"{styled('hint:', '36', sys.stderr)} {escape(problem.hint)}")


def styled(text: str, code: str, stream: TextIO | None = None) -> str:
    """`text` in the colour or weight of an SGR code where `stream`, by default stdout, is a terminal.

    NO_COLOR turns colour off, and FORCE_COLOR on where it would be off for another reason. Source:
    no-color.org and force-color.org: a variable that is there and not empty counts, whatever it says.
    """
    stream = stream or sys.stdout
    is_for_colour = bool(os.environ.get("FORCE_COLOR")) or (
        stream.isatty() and os.environ.get("TERM") != "dumb"
    )
    if os.environ.get("NO_COLOR") or not is_for_colour:
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


@contextmanager
def progress(mode: Mode, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar with bytes, rate and time left on a terminal's stderr, once the work has taken a while.

    Yields the function to call with the bytes done since the last call, from any thread.
    """
    if mode.quiet or not sys.stderr.isatty():
        yield lambda num_bytes: None
        return
    started, lock = time.monotonic(), Lock()
    bar: Progress | None = None
    task: Any = None
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal bar, task, done
        with lock:
            done += num_bytes
            if bar is None:
                if time.monotonic() - started < PATIENCE_SECONDS:
                    return
                bar = _bar()
                task = bar.add_task(label, total=total_bytes)
                bar.start()
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str] = (),
    right: Collection[int] = (),
    names: Collection[int] = (),
) -> None:
    """Aligned columns on stdout; the columns numbered in `right` align right.

    On a terminal, those in `names` lose the middle of what would not fit a line; elsewhere nothing is cut.
    """
    every = [header, *rows] if header else rows
    if not every:
        return
    widths = [min(max(map(len, column)), MAX_COLUMN_CHARS) for column in zip(*every, strict=True)]
    if names and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
        for column in sorted(names, key=lambda column: widths[column], reverse=True):
            narrower = max(min(widths[column], MIN_NAME_CHARS), widths[column] - max(excess, 0))
            excess -= widths[column] - narrower
            widths[column] = narrower
        every = [[_cut(c, widths[j]) if j in names else c for j, c in enumerate(row)] for row in every]
    for i, row in enumerate(every):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = GAP.join(cells).rstrip()
        out(styled(line, "1") if header and i == 0 else line)


def _cut(name: str, num_chars: int) -> str:
    """`name` in so many characters, without its middle where it is longer."""
    end = num_chars // 2
    return name if len(name) <= num_chars else f"{name[: num_chars - 1 - end]}…{name[-end:]}"


def section(title: str) -> None:
    """A heading on stdout, after an empty line."""
    out()
    out(styled(title, "1"))


def pairs(title: str, values: Mapping[str, str]) -> None:
    """A section of names and values; nothing where there are none."""
    if values:
        section(title)
        table(list(values.items()))
