"""Every error that ptsave raises on purpose, and the exit code of each.

PtsaveError                     what, where, hint
├── VerdictError            1   the verdict is no: only of Verdict.raise_for_no()
├── UsageError              2   the command line or the TOML asks for something that is not there
├── UnreadableError         3   the input cannot be read
│   ├── MissingFileError        there is no such file, or no permission to read it
│   ├── UnknownFormatError      not a checkpoint, or one of a kind that ptsave names but does not read
│   ├── CorruptError            a checkpoint whose content contradicts itself
│   ├── LimitError              a cap was exceeded; the message names it
│   └── OutOfReachError         a store does not answer, or lets nobody in
├── RefusedError            4   it could be done, but something would be lost
│   ├── ExistsError             it would overwrite
│   ├── UnsafeError             it would run or import what a file names
│   ├── LossyError              it would drop or change data
│   ├── AmbiguousError          it could mean more than one thing, and nothing says which
│   └── WriteError              the destination cannot be written (no permission, a failing disk)
│       └── NoRoomError             the disk or the quota is full
└── RankError               5   a rank failed

A bug in ptsave is any other exception: exit 70. An interrupt is exit 130.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

EXIT_OK = 0
EXIT_NO = 1
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


_IS_WINDOWS = sys.platform == "win32"


def quoted(text: str) -> str:
    """`text` as one word of the shell at hand: to Windows' cmd, a single quote is a letter like others."""
    if not _IS_WINDOWS:
        return shlex.quote(text)
    return text if re.fullmatch(r"[\w.:/\\=,+-]+", text) else '"' + text.replace('"', '\\"') + '"'


class Option(NamedTuple):
    """An option of a command, which a Python function has as a parameter; each spells it in its own way."""

    key: str
    """As Python spells it: `allow_missing`."""
    value: str | bool = ""
    """What to give it: `KEY.PATH`; True for a switch; empty where only the option is named."""
    lead: str = ""
    """The words before it and `tail`, those after it, that go with it."""
    tail: str = ""
    otherwise: str = ""
    """What a function says instead that has no such parameter: nothing, without the words around it."""

    @property
    def flag(self) -> str:
        """`--select KEY.PATH`."""
        name = "-c" if self.key == "config" and self.value else f"--{self.key.replace('_', '-')}"
        return f"{name} {quoted(self.value)}" if self.value and isinstance(self.value, str) else name

    @property
    def argument(self) -> str:
        """`select="KEY.PATH"`."""
        return (
            f'{self.key}="{self.value}"'
            if self.value and self.value is not True
            else (f"{self.key}={self.value}")
        )

    def spelled(self, parameters: Collection[str] | None) -> str:
        """For the command line, or for a function with these parameters."""
        if parameters is None:
            return f"{self.lead}{self.flag}{self.tail}"
        is_alone = not (self.lead or self.tail or self.otherwise)
        if self.key in parameters or is_alone:
            return f"{self.lead}{self.argument}{self.tail}"
        return self.otherwise


Text = str | Option | tuple[str | Option, ...]
"""Words, and the options that they name."""


class _Spelled:
    """An attribute that is set to a Text, and read as the words in which its reader spells options."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __set__(self, error: PtsaveError, text: Text) -> None:
        setattr(error, self._name, text)

    def __get__(self, error: PtsaveError, owner: type) -> str:
        text: Text = getattr(error, self._name)
        parts = (text,) if isinstance(text, (str, Option)) else text
        return "".join(part if isinstance(part, str) else part.spelled(error.parameters) for part in parts)


class PtsaveError(Exception):
    """A failure that a user can understand and act on."""

    exit_code = EXIT_BUG
    parameters: Collection[str] | None = None
    """Those of the Python function that raises it; None for a command, which spells options as flags."""

    what = _Spelled()
    where = _Spelled()
    hint = _Spelled()

    def __init__(self, what: Text, where: Text = "", hint: Text = "", **details: object) -> None:
        """Say `what` is wrong, `where`, and what to do next, the `hint`; `details` go into the JSON."""
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override,unused-ignore]
        """The hint, and what `add_note` adds: a traceback shows them below the error, from Python 3.11 on."""
        notes: list[str] = self.__dict__.setdefault("_notes", [])
        others = [note for note in notes if not note.startswith(_HINT)]
        notes[:] = [f"{_HINT}{self.hint}", *others] if self.hint else others
        return notes


_HINT = "hint: "


class VerdictError(PtsaveError):
    exit_code = EXIT_NO


class UsageError(PtsaveError):
    exit_code = 2


class UnreadableError(PtsaveError):
    exit_code = 3


class MissingFileError(UnreadableError):
    pass


class UnknownFormatError(UnreadableError):
    pass


class CorruptError(UnreadableError):
    pass


class LimitError(UnreadableError):
    """A cap on what a file may claim was exceeded.

    The cap's name goes into the message so that a user can tell a limit of ptsave from damage.
    """

    def __init__(self, cap: str, limit: int, found: int | str, where: str = "") -> None:
        super().__init__(
            f"the input exceeds the cap {cap} = {limit} (found {found})",
            where,
            "caps keep small files from using much time and memory; if the file is intact and you trust its "
            "source, open it with its own library and save it in another form",
        )
        self.cap = cap


class OutOfReachError(UnreadableError):
    """A store does not answer, or lets nobody in, which says nothing of what is there."""


class RefusedError(PtsaveError):
    exit_code = 4


class ExistsError(RefusedError):
    pass


class UnsafeError(RefusedError):
    pass


class LossyError(RefusedError):
    pass


class AmbiguousError(RefusedError):
    pass


class WriteError(RefusedError):
    pass


class NoRoomError(WriteError):
    pass


class RankError(PtsaveError):
    exit_code = 5


@contextmanager
def options_of(parameters: Collection[str]) -> Iterator[None]:
    """While open, errors name options as arguments of a Python function that has these parameters."""
    try:
        yield
    except PtsaveError as error:
        error.parameters = frozenset(parameters)
        raise


LIBRARIES = ("torch", "numpy", "safetensors", "xxhash", "blake3", "isal", "rich", "tomli")
"""What ptsave imports when it is needed."""


def install(extra: str) -> str:
    """The command that installs what an extra of ptsave needs."""
    return f"pip install {quoted(f'ptsave[{extra}]')}"


def not_installed(error: ImportError) -> RefusedError | None:
    """The error for one of LIBRARIES that is not there, or that cannot be imported here; None for another."""
    library = (error.name or "").partition(".")[0]
    if library not in LIBRARIES:
        return None
    what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported: {error}"
    hint = f"pip install {library}"
    if library == "torch":
        hint = f"{install('torch')}; pytorch.org/get-started has the smaller build for CPUs alone"
    problem = RefusedError(f"this needs {library}, which {what}", "", hint)
    problem.__cause__ = error
    return problem
