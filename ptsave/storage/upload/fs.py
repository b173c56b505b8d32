"""Writing to two of fsspec's file systems. A file takes its name when it is complete.

SFTP's own rename fails where the new name is taken, so the server itself checks that nothing is there.
OpenSSH's rename replaces a file, without a condition: ptsave looks at the old file right before, and a write
of somebody else between these two requests is lost. `memory://` belongs to this process alone.

ptsave writes to no other file system of fsspec. Most of them move a file by copying it, so that readers see
half of it, and none documents whether its rename is atomic and whether it replaces a file.

Source: draft-ietf-secsh-filexfer-02, section 6.5 (SSH_FXP_RENAME); OpenSSH's PROTOCOL, section 4.3
(posix-rename@openssh.com).
"""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, PtsaveError
from ptsave.storage.remote.fs import FsspecStore, failed, version_of
from ptsave.storage.remote.request import WAIT_S, timeout_s
from ptsave.storage.remote.store import NoAccessError, Passing, Version
from ptsave.storage.upload.store import (
    MIB,
    Conflict,
    Found,
    Gone,
    Label,
    Receipt,
    Stored,
    Upload,
    UploadStore,
    as_write_error,
)

_UNFINISHED = re.compile(r"\.(.*)\.ptsave-([0-9a-f]{32}(-data)?)", re.DOTALL)
"""The name of an unfinished file: its final name, and the ID of the upload."""
T = TypeVar("T")


class FsspecUploads(UploadStore):
    """One file system."""

    max_parts = 2**31
    has_conditions = False

    def __init__(self, address: Address) -> None:
        """Raises: as `FsspecStore`."""
        self._store = FsspecStore(address)
        self._fs: Any = self._store.fs

    def look(self, address: Address) -> Found | None:
        def found() -> Found:
            return Found(version_of(address, self._fs.info(self._store.path(address))))

        return self._or(address, None, found)

    def names(self, address: Address) -> Mapping[str, Found]:
        return {name: found for name, found in self._listed(address) if not _UNFINISHED.fullmatch(name)}

    def _listed(self, address: Address) -> list[tuple[str, Found]]:
        """What is directly in a folder, unfinished files included."""

        def found() -> list[tuple[str, Found]]:
            return [
                (f"{name}/", Found(Version(0)))
                if info.get("type") == "directory"
                else (name, Found(version_of(address / name, info)))
                for name, info in self._store.infos(address)
            ]

        return self._or(address, [], found)

    def _or(self, address: Address, nothing: T, action: Callable[[], T]) -> T:
        """What `action` returns; `nothing` where the file is missing. Raises: Passing; WriteError."""
        try:
            with self._store.turn:
                return action()
        except Exception as error:
            found = failed(address, error)
            if isinstance(found, MissingFileError) and not isinstance(found, NoAccessError):
                return nothing
            raise as_write_error(found) from None

    def _must_be(self, address: Address, seen: Found | None) -> None:
        """Raises: Conflict where the file is not the one that was seen."""
        if self.look(address) != seen:
            raise Conflict

    def complete(self, upload: Upload, parts: list[Receipt], crc32: int, seen: Found | None) -> Stored:
        address = upload.address
        with self._store.turn:
            self._must_be(address, seen)
            try:
                self._give_name(upload, parts, seen)
            except FileNotFoundError:
                raise Gone from None
            except Exception as error:
                self._must_be(address, seen)
                raise as_write_error(failed(address, error)) from None
            made = self.look(address)
        if made is None:
            raise Gone
        return Stored(made.version)

    @abstractmethod
    def _give_name(self, upload: Upload, parts: list[Receipt], seen: Found | None) -> None:
        """Make what was sent the file, in one step; `seen` is there, or nothing. May raise anything."""

    def put(self, address: Address, data: bytearray, crc32: int, label: Label, seen: Found | None) -> Stored:
        upload = self.begin(address, label)
        try:
            return self.complete(upload, [self.put_part(upload, 0, data, crc32)], crc32, seen)
        except BaseException:
            with contextlib.suppress(PtsaveError, Passing):
                self.abort(upload)
            raise


class SftpUploads(FsspecUploads):
    """An SFTP server, through paramiko."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._ftp: Any = self._fs.ftp
        self._ftp.get_channel().settimeout(min(WAIT_S, timeout_s()))

    def begin(self, address: Address, label: Label) -> Upload:
        upload = Upload(address, f"{label.mark}{'-data' if label.is_data else ''}", label)

        def make() -> None:
            self._fs.makedirs(self._store.path(address.parent), exist_ok=True)
            self._ftp.open(self._unfinished(upload), "wx").close()

        self._do(address, make)
        return upload

    def put_part(self, upload: Upload, number: int, data: bytearray, crc32: int) -> Receipt:
        def send() -> None:
            with self._ftp.open(self._unfinished(upload), "r+") as file:
                file.set_pipelined(True)
                file.seek(number * self.min_part_bytes)
                for at in range(0, len(data), MIB):
                    file.write(bytes(data[at : at + MIB]))

        self._do(upload.address, send)
        return Receipt(str(number), crc32, len(data))

    def _give_name(self, upload: Upload, parts: list[Receipt], seen: Found | None) -> None:
        rename = self._ftp.rename if seen is None else self._ftp.posix_rename
        rename(self._unfinished(upload), self._store.path(upload.address))

    def abort(self, upload: Upload) -> None:
        self._remove(upload.address, self._unfinished(upload))

    def abandoned(self, address: Address, own: str, *, is_folder: bool) -> Iterator[Upload]:
        folder = address if is_folder else address.parent
        for name, _ in self._listed(folder):
            parts = _UNFINISHED.fullmatch(name)
            if parts and parts[2] != own and (parts[3] if is_folder else parts[1] == address.name):
                yield Upload(folder / parts[1], parts[2])

    def remove(self, address: Address, seen: Found | None = None) -> None:
        self._remove(address, self._store.path(address))

    def _remove(self, address: Address, path: str) -> None:
        self._or(address, None, lambda: self._ftp.remove(path))

    def _unfinished(self, upload: Upload) -> str:
        """The path of an unfinished file."""
        return self._store.path(upload.address.parent / f".{upload.address.name}.ptsave-{upload.id}")

    def _do(self, address: Address, action: Callable[[], None]) -> None:
        """Raises: Gone where a file or its folder was removed; Passing; WriteError."""
        try:
            with self._store.turn:
                action()
        except FileNotFoundError:
            raise Gone from None
        except Exception as error:
            raise as_write_error(failed(address, error)) from None


class MemoryUploads(FsspecUploads):
    """Files that fsspec keeps in this process."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._parts: dict[str, dict[int, bytes]] = {}
        """The parts of unfinished uploads, by ID."""

    def begin(self, address: Address, label: Label) -> Upload:
        self._parts[label.mark] = {}
        return Upload(address, label.mark, label)

    def put_part(self, upload: Upload, number: int, data: bytearray, crc32: int) -> Receipt:
        self._parts[upload.id][number] = bytes(data)
        return Receipt(str(number), crc32, len(data))

    def _give_name(self, upload: Upload, parts: list[Receipt], seen: Found | None) -> None:
        sent = self._parts.get(upload.id, {})
        data = b"".join(sent[int(part.tag)] for part in parts)
        self._fs.pipe_file(self._store.path(upload.address), data)
        self.abort(upload)

    def abort(self, upload: Upload) -> None:
        self._parts.pop(upload.id, None)

    def remove(self, address: Address, seen: Found | None = None) -> None:
        self._or(address, None, lambda: self._fs.rm_file(self._store.path(address)))
