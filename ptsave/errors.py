"""Every error that ptsave raises on purpose, and the exit code of each.

PtsaveError                     what, where, hint
├── UsageError              2   the command line or the TOML asks for something that is not there
├── UnreadableError         3   the input cannot be read
│   ├── MissingFileError        there is no such file, or no permission to read it
│   ├── UnknownFormatError      not a checkpoint, or one of a kind that ptsave names but does not read
│   ├── CorruptError            a checkpoint whose content contradicts itself
│   └── LimitError              a cap was exceeded; the message names it
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

EXIT_OK = 0
EXIT_NO = 1
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class PtsaveError(Exception):
    """A failure that a user can understand and act on."""

    exit_code = EXIT_BUG

    def __init__(self, what: str, where: str = "", hint: str = "", **details: object) -> None:
        """What is wrong, where, and what to do next; `details` go into the JSON (`missing`, …)."""
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what


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
