"""What fsspec has besides: `sftp://`, `memory://`, … Reading, as far as the promises can be kept.

A file system of fsspec cannot be asked for a version. So a file is looked at before and after each range, by
what is told of it: its ETag or version, else its size and time. A change that leaves both is not seen.

Source: fsspec's `AbstractFileSystem`: `info`, `cat_file`, `ls`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from ptsave.core.address import Address
from ptsave.errors import OutOfReachError, PtsaveError, RefusedError
from ptsave.storage.remote.store import (
    Answer,
    Listed,
    Passing,
    Store,
    Version,
    changed,
    library,
    missing,
    no_access,
    unknown_scheme,
)

EXTRA = "fs"
_TAGS = ("ETag", "etag", "version", "version_id", "generation", "checksum")
_TIMES = ("mtime", "modified", "LastModified", "last_modified", "created")


_turns: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""A lock of each file system; fsspec gives out one for an address again and again."""


class FsspecStore(Store):
    """One of fsspec's file systems."""

    num_at_once = 4

    def __init__(self, address: Address) -> None:
        """Raises: UsageError for a scheme that fsspec does not know; RefusedError without its library."""
        with library(address, EXTRA):
            import fsspec
        if address.scheme not in fsspec.available_protocols():
            raise unknown_scheme(address)
        user = f"{address.user}@" if address.user else ""
        url = f"{address.scheme}://{user}{address.host}/{address.key}"  # never shown
        try:
            self.fs: Any = fsspec.core.url_to_fs(url)[0]
        except ImportError as error:
            raise RefusedError(
                f"to read {address.scheme}:// takes a library that is not installed: {error.name or '?'}",
                str(address),
                f"install what fsspec's {address.scheme} file system takes",
            ) from None
        except OSError as error:
            raise OutOfReachError(
                f"cannot read: no connection to the server ({type(error).__name__})",
                str(address),
                "check the address and the network",
            ) from None
        except Exception as error:
            raise no_access(
                address, f"no connection ({type(error).__name__})", "check the address and your rights"
            ) from None

        self.turn: AbstractContextManager[Any] = nullcontext()
        """Held while the file system is asked: but for those made for it, they mix up threads' answers."""
        if not self.fs.async_impl:
            self.turn = _turns.setdefault(self.fs, RLock())

    def path(self, address: Address) -> str:
        """What the file system calls it."""
        return str(self.fs._strip_protocol(f"{address.scheme}://{address.host}/{address.key}"))

    def get(
        self, address: Address, begin: int, end: int, version: Version | None, timeout_s: float
    ) -> Answer:
        path = self.path(address)
        try:
            with self.turn:
                return self._read(address, path, begin, end, version)
        except Exception as error:
            raise failed(address, error) from None

    def _read(self, address: Address, path: str, begin: int, end: int, version: Version | None) -> Answer:
        found = version_of(address, self.fs.info(path))
        if version is not None and not version.is_same(found):
            raise changed(address)
        end = min(end, found.size_bytes)
        data = self.fs.cat_file(path, start=begin, end=end) if begin < end else b""
        if not found.is_same(version_of(address, self.fs.info(path))):
            raise changed(address)
        return Answer(found, begin, begin + len(data), io.BytesIO(data).read, lambda: None)

    def list(self, address: Address, timeout_s: float) -> Iterator[Listed]:
        for name, info in self.infos(address):
            yield Listed(name, int(info.get("size") or 0), info.get("type") == "directory")

    def infos(self, address: Address) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The names in a folder, and what is told of each. Raises: as `list`."""
        try:
            with self.turn:
                found = self.fs.ls(self.path(address), detail=True)
        except Exception as error:
            raise failed(address, error) from None
        for one in found:
            name = str(one["name"]).rstrip("/").rpartition("/")[2]
            if name:
                yield name, one


def version_of(address: Address, info: Mapping[str, Any]) -> Version:
    """The version of a file, as far as the file system tells. Raises: MissingFileError for a folder."""
    if info.get("type") == "directory" or info.get("size") is None:
        raise missing(address)
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
    time = next((info[key] for key in _TIMES if info.get(key)), "")
    time = time.timestamp() if isinstance(time, datetime) else time  # as lists of memory:// say it
    return Version(int(info["size"]), tag, str(time))


def failed(address: Address, error: Exception) -> Exception:
    """What an error of the file system means, or of its library; nothing of its text is shown."""
    if isinstance(error, (PtsaveError, Passing)):
        return error
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return missing(address)
    if isinstance(error, PermissionError):
        return no_access(address, "the store refuses", "check your rights")
    return Passing(f"the store fails ({type(error).__name__})")
