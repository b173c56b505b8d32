"""What formats read from: input files and folders, wherever they lie.

They are opened once and read by position, never through a path again. Those on a disk are in `local/`, those
in stores in `remote/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, UnreadableError

Extent = tuple[int, int]
"""Some bytes of a file: the offset and their number."""
OUTSIDE_HINT = "a checkpoint's files lie beside each other; copy them into one folder"
"""What to do where a folder's file lies elsewhere."""


class InputFile(ABC):
    """A file open for reading, wherever it lies; every read names its position, so threads can share it.

    What was read is of one version: a file that changes between its opening and a read is refused.
    """

    path: Location
    """For messages only: it is never opened a second time."""
    size_bytes: int
    fd: int = -1
    """Its descriptor, so that the kernel can move and map its bytes; -1 where there is none."""
    fd_offset_bytes: int = 0
    """Where this file begins in the file of the descriptor; not 0 for a member of an archive."""
    whole: Storage | None = None
    """All bytes of the file, where the archive around it records their CRC-32."""
    is_remote: bool = False
    """Whether each read may take a round trip to another machine."""
    memo: dict[str, object]
    """Results about the file that several readers need, by name; cleared when the file is closed."""

    @property
    def stored_bytes(self) -> int:
        """The bytes that the file takes as it is stored (fewer when compressed); caps grow with them."""
        return self.size_bytes

    @abstractmethod
    def read_at(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` bytes from `offset_bytes`.

        Raises: CorruptError when the file is shorter than that; UnreadableError when it has changed.
        """

    @abstractmethod
    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes) from `offset_bytes`.

        Raises: CorruptError at the end of the file; UnreadableError when it cannot be read, or has changed.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """Insist that all that was read is of one version.

        Raises: UnreadableError.
        """

    @abstractmethod
    def check_in_place(self) -> None:
        """Insist that its path still leads to this file, unchanged.

        Raises: UnreadableError.
        """

    def expect(self, extents: Iterable[Extent]) -> None:
        """Announce what will be read, so that a remote file can request neighbours together and ahead."""
        return

    def forget(self, extents: Iterable[Extent]) -> None:
        """Announce that these will not be read again, so that a remote file can let go of them."""
        return

    def share(self, num_files: int) -> None:
        """Announce that `num_files` files, this one included, are read in turn, a little at a time."""
        return

    def holds(self, offset_bytes: int, num_bytes: int) -> bool:
        """Whether these bytes can be read without a request to another machine."""
        return not self.is_remote

    def before_tensors(self, check: Callable[[], None]) -> None:
        """Call `check` before any tensor's bytes are used: now, or at the first read if it asks for bytes."""
        check()

    def too_short(self, offset_bytes: int, num_bytes: int) -> UnreadableError:
        """The error for a read past the end."""
        return CorruptError(
            f"truncated: needs {num_bytes} bytes at offset {offset_bytes}, the file has {self.size_bytes}",
            str(self.path),
            "copy or download the file again",
        )

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def changed(path: Location) -> UnreadableError:
    """The error for a file that somebody has written to while it was read."""
    return UnreadableError(
        "was changed while it was read", str(path), "try again when nothing writes to it any more"
    )


@contextmanager
def unchanged(file: InputFile) -> Iterator[None]:
    """What is found out about `file` in the block is found out about one version of it.

    Raises: UnreadableError where it was written to meanwhile, whatever the block made of the mix.
    """
    try:
        yield
    except UnreadableError:
        file.check_unchanged()
        raise
    file.check_unchanged()


class InputFolder(ABC):
    """A folder open for reading, wherever it lies; its files are opened by bare name, and none outside it."""

    path: Location
    """For messages only: it is never opened a second time."""
    names: Sequence[str]
    """The names of its files (and of a local folder's folders), sorted."""
    num_at_once: int = 1
    """How many of its files to open at the same time."""

    is_remote: bool = False
    """Whether each read of its files may take a round trip to another machine."""
    is_glanced_at: bool = False
    """Whether no tensor will be read, so that checks which take a request for each file may be left out."""
    is_read_in_part: bool = False
    """Whether some tensors will be read, or parts of them, so that files need not be opened before that."""

    def num_side_by_side(self, num_bytes: int) -> int:
        """How many of its files to read at the same time, where `num_bytes` of each are expected."""
        return 1

    _opened: list[tuple[str, Any]]
    """The files that were opened, and their names."""

    @cached_property
    def memo(self) -> dict[str, object]:
        """What readers have found out about it, by who did."""
        return {}

    @property
    def size_bytes(self) -> int:
        """The bytes of all files that were opened."""
        return sum(file.size_bytes for _, file in self._opened)

    @property
    def stored_bytes(self) -> int:
        """The bytes of all opened files as they are stored: files in a folder are never compressed."""
        return self.size_bytes

    @property
    def opened(self) -> set[str]:
        """The names of the files that were opened."""
        return {name for name, _ in self._opened}

    @abstractmethod
    def open(self, name: str, first_bytes: int = 0) -> InputFile:
        """Open the file `name` in this folder. `first_bytes`: about how many will be read at its beginning,
        where that is known, so that a remote file comes with them.

        Raises: CorruptError when `name` is not a bare file name, or leads out of the folder;
        MissingFileError when it is not there.
        """

    @abstractmethod
    def size_of(self, name: str) -> int | None:
        """The size in bytes of the file `name`, without opening it; None where there is no such file."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders in it, sorted."""

    @abstractmethod
    def inside(self, name: str, *, follows_links: bool = True) -> InputFolder:
        """List the folder `name` in this one.

        `follows_links`: whether it may be a symbolic link, which may lead anywhere.

        Raises: MissingFileError; UnreadableError; CorruptError for a link that is not followed.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """Insist that all that was read is of one version.

        Raises: UnreadableError.
        """

    @abstractmethod
    def check_in_place(self) -> None:
        """Insist that its path still leads to the files that were opened.

        Raises: UnreadableError.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the folder; its files stay open."""

    def check_name(self, name: str) -> None:
        """Raise CorruptError when `name` is not a bare file name."""
        if name in ("", ".", "..") or "\0" in name or Path(name).name != name or "\\" in name:
            raise CorruptError(f"names a file outside its folder: {name!r}", str(self.path), OUTSIDE_HINT)

    def __enter__(self) -> InputFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def files_of(checkpoint: Checkpoint) -> list[Location]:
    """Where the files are that a checkpoint was read from."""
    files: list[Location] = []
    for held in checkpoint.held:
        if isinstance(held, InputFile):
            files.append(held.path)
        elif isinstance(held, InputFolder):
            files += [held.path / name for name in sorted(held.opened)]
    return files
