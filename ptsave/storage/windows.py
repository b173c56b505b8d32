"""Storages and files that lie in files: parts of them as they are, and what was unpacked out of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ptsave.core.address import Location
from ptsave.core.storage import Storage
from ptsave.errors import PtsaveError
from ptsave.storage.files import Extent, InputFile
from ptsave.storage.local.file import DescriptorFile
from ptsave.storage.write_errors import write_error


class FileStorage(Storage):
    """Bytes that lie in a file as they are: readable at random, and movable by the kernel."""

    __slots__ = ("crc32", "file", "inner", "num_bytes", "offset_bytes")
    file: InputFile

    def __init__(
        self,
        file: InputFile,
        offset_bytes: int,
        num_bytes: int,
        crc32: int | None = None,
        inner: Storage | None = None,
    ) -> None:
        """`inner`: the whole that this is a part of, where only the whole has a known CRC."""
        self.file, self.offset_bytes, self.num_bytes = file, offset_bytes, num_bytes
        self.crc32 = crc32
        self.inner = file.whole if inner is None and crc32 is None else inner

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes < 0 or offset_bytes + len(buffer) > self.num_bytes:
            raise self.file.too_short(self.offset_bytes + offset_bytes, len(buffer))
        self.file.read_into(self.offset_bytes + offset_bytes, buffer)

    def window(self, offset_bytes: int, num_bytes: int) -> Storage:
        whole = self if self.crc32 is not None else self.inner
        return FileStorage(self.file, self.offset_bytes + offset_bytes, num_bytes, inner=whole)


class WindowFile(InputFile):
    """A part of an open file, as a file of its own: nothing is copied."""

    def __init__(
        self,
        outer: InputFile,
        path: Location,
        offset_bytes: int,
        num_bytes: int,
        crc32: int | None = None,
    ) -> None:
        """`path`: what messages call it. `outer` is left open when it is closed.

        Raises: CorruptError where it does not lie in `outer`.
        """
        if offset_bytes < 0 or num_bytes < 0 or offset_bytes + num_bytes > outer.size_bytes:
            raise outer.too_short(offset_bytes, num_bytes)
        self.path = path
        self.size_bytes = num_bytes
        self.fd, self.fd_offset_bytes = outer.fd, outer.fd_offset_bytes + offset_bytes
        self.is_remote = outer.is_remote
        self.memo = {}
        self.whole = None if crc32 is None else FileStorage(outer, offset_bytes, num_bytes, crc32)
        self._outer = outer
        self._offset_bytes = offset_bytes

    @property
    def stored_bytes(self) -> int:
        return min(self.size_bytes, self._outer.stored_bytes)

    def read_at(self, offset_bytes: int, num_bytes: int) -> bytes:
        if offset_bytes < 0 or num_bytes < 0 or offset_bytes + num_bytes > self.size_bytes:
            raise self.too_short(offset_bytes, num_bytes)
        return self._outer.read_at(self._offset_bytes + offset_bytes, num_bytes)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes < 0 or offset_bytes + len(buffer) > self.size_bytes:
            raise self.too_short(offset_bytes, len(buffer))
        self._outer.read_into(self._offset_bytes + offset_bytes, buffer)

    def check_unchanged(self) -> None:
        self._outer.check_unchanged()

    def check_in_place(self) -> None:
        self._outer.check_in_place()

    def expect(self, extents: Iterable[Extent]) -> None:
        self._outer.expect((self._offset_bytes + begin, size) for begin, size in extents)

    def holds(self, offset_bytes: int, num_bytes: int) -> bool:
        return self._outer.holds(self._offset_bytes + offset_bytes, num_bytes)

    def before_tensors(self, check: Callable[[], None]) -> None:
        self._outer.before_tensors(check)

    def close(self) -> None:
        self.memo.clear()
        self.fd = -1


class UnpackedFile(DescriptorFile):
    """What was compressed, in a temporary file without a name, which is gone when it is closed.

    It lies where `TMPDIR` says, and takes as much room as there are bytes.
    """

    def __init__(self, outer: InputFile, path: Location, stored_bytes: int, blocks: Iterator[bytes]) -> None:
        """Write all `blocks`, which come from `stored_bytes` bytes in `outer`; that is closed with it.

        Raises: NoRoomError, WriteError for the temporary file; what `blocks` raises. `outer` is open then.
        """
        self.path = path
        self._outer = outer
        self._stored_bytes = stored_bytes
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failure(error) from None
        try:
            for block in blocks:
                self._write(block)
            self.fd = self._file.fileno()
            self._opened(os.fstat(self.fd))
        except BaseException:
            self._file.close()
            raise

    def _write(self, block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> PtsaveError:
        """The error of ours that says what the system said about the temporary file."""
        place = Path(tempfile.tempdir or os.curdir, "unpacked")
        failed = write_error(place, error)
        failed.where = f"{self.path}, unpacked into {place.parent}"
        failed.hint = "set TMPDIR to a folder that has room and may be written to"
        return failed

    @property
    def stored_bytes(self) -> int:
        return min(self.size_bytes, self._stored_bytes)

    def check_in_place(self) -> None:
        self._outer.check_in_place()

    def close(self) -> None:
        self.memo.clear()
        if self.fd >= 0:
            self.fd = -1
            self._file.close()
        self._outer.close()
