"""The interface of a kind of store, for writing. A method sends one request where the store allows that."""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import TypeVar

from ptsave.core.address import HUB, WEB, Address
from ptsave.errors import RefusedError, UnreadableError, WriteError
from ptsave.storage.remote.request import Deadline, retried
from ptsave.storage.remote.store import ForbiddenError, Version

KINDS = {
    "s3": "s3.S3Uploads",
    "gs": "gcs.GcsUploads",
    "az": "azure.AzureUploads",
    "sftp": "fs.SftpUploads",
    "ssh": "fs.SftpUploads",
    "memory": "fs.MemoryUploads",
}
"""Scheme → the module here and the class in it."""
MIB = 1024 * 1024
T = TypeVar("T")
_MARK_KEY, _DATA_KEY = "ptsave-upload", "ptsave-data"


@dataclass(frozen=True)
class Label:
    """Metadata of an object that says which upload made it."""

    mark: str = field(default_factory=lambda: os.urandom(16).hex())
    """The ID of the upload. When an answer is lost, it tells our object from somebody else's."""
    is_data: bool = False
    """Whether the object is data of a folder, which the index of the folder names."""

    @property
    def metadata(self) -> dict[str, str]:
        """The label as the metadata of an object."""
        return {_MARK_KEY: self.mark} | ({_DATA_KEY: "1"} if self.is_data else {})

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Label | None:
        """The label in the metadata of an object; None where ptsave did not write it."""
        mark = metadata.get(_MARK_KEY, "")
        return cls(mark, _DATA_KEY in metadata) if mark else None


@dataclass(frozen=True)
class Found:
    """An object that is there."""

    version: Version
    label: Label | None = None
    """None where it was not written by ptsave."""


@dataclass(frozen=True)
class Upload:
    """An object that is being sent in parts. Readers do not see it yet."""

    address: Address
    id: str
    label: Label = Label("")
    sums_whole: bool = False
    """Whether the store compares a checksum of the whole object when the upload is completed."""


@dataclass(frozen=True)
class Receipt:
    """The answer of a store to one part."""

    tag: str
    crc32: int
    num_bytes: int
    checked: str = ""
    """The checksum by which the part was compared; empty where the store has none."""


@dataclass(frozen=True)
class Stored:
    """The answer of a store to a new object."""

    version: Version
    checked: str = ""
    """The checksum by which the whole object was compared; empty where the store has none."""


class Conflict(Exception):  # noqa: N818 (what it means depends on what was to be replaced)
    """The condition of a write failed: the destination is not what it was when we looked."""


class Gone(Exception):  # noqa: N818 (it may be that an earlier try has completed it)
    """The store does not know the upload: it was completed or removed."""


class NotAllowedError(WriteError):
    """The store denies permission to write an object, or to look at the one that is there."""


class UploadStore(ABC):
    """One bucket or container of a store."""

    min_part_bytes: int = 8 * MIB
    max_parts: int = 9_900
    part_unit_bytes: int = MIB
    has_conditions: bool = True
    """Whether replacing and removing an object can depend on its version."""

    @abstractmethod
    def look(self, address: Address) -> Found | None:
        """The object at `address`; None where there is none. Raises: Passing; WriteError."""

    @abstractmethod
    def names(self, address: Address) -> Mapping[str, Found]:
        """The objects and folders directly in a folder, by name, without their labels.

        Raises: Passing; WriteError.
        """

    @abstractmethod
    def put(self, address: Address, data: bytearray, crc32: int, label: Label, seen: Found | None) -> Stored:
        """Write `data` as the object in one request, if `seen` is still there (None: nothing).

        Raises: Conflict; Passing; WriteError.
        """

    @abstractmethod
    def begin(self, address: Address, label: Label) -> Upload:
        """Begin an upload in parts. Raises: Passing; WriteError."""

    @abstractmethod
    def put_part(self, upload: Upload, number: int, data: bytearray, crc32: int) -> Receipt:
        """Send the part `number`, from 0 on. Raises: Gone; Passing; WriteError."""

    @abstractmethod
    def complete(self, upload: Upload, parts: list[Receipt], crc32: int, seen: Found | None) -> Stored:
        """Join the parts to the object, if `seen` is still there (None: nothing). `crc32`: of the whole.

        Raises: Conflict; Gone; Passing; WriteError.
        """

    @abstractmethod
    def abort(self, upload: Upload) -> None:
        """Remove the parts of an upload that is given up. Raises: Passing; WriteError."""

    def abandoned(self, address: Address, own: str, *, is_folder: bool) -> Iterator[Upload]:
        """Unfinished uploads by ptsave, without `own`: of the object, or of data in the folder.

        Raises: Passing; WriteError.
        """
        return iter(())

    def abandoned_in(self, folder: Address, is_name: Callable[[str], bool]) -> Iterator[Upload]:
        """Unfinished uploads by ptsave of objects in a folder whose names `is_name` accepts.

        Raises: Passing; WriteError.
        """
        return iter(())

    @abstractmethod
    def remove(self, address: Address, seen: Found | None = None) -> None:
        """Remove an object, if `seen` is still there (None: whatever is there). A missing object is no error.

        Raises: Conflict; Passing; WriteError.
        """


def asked(
    address: Address, action: Callable[[], T], seconds: float | None = None, *, is_first: bool = False
) -> T:
    """Call `action`, again while it raises Passing, for at most `seconds`.

    `is_first`: whether this is the first request to the server, which may not exist.

    Raises: what `action` raises; WriteError after the deadline or the last try.
    """
    deadline = Deadline.begin(address, writes=True, is_first=is_first)
    if seconds is not None and seconds < deadline.seconds:
        deadline = replace(deadline, seconds=seconds, end=time.monotonic() + seconds)
    return retried(lambda _: action(), deadline)


def unless_unseen(action: Callable[[], T]) -> T | None:
    """What `action` finds; None also where we have permission to write and not to look.

    The store itself then checks the condition of the write. S3 answers 403 for a missing object, too.
    Source: Amazon S3 API Reference, HeadObject: "Permissions".
    """
    try:
        return action()
    except NotAllowedError:
        return None


def prefix_of(address: Address) -> str:
    """The prefix of the keys of all objects in the folder `address`."""
    return f"{address.key.strip('/')}/" if address.key.strip("/") else ""


def as_write_error(error: Exception) -> Exception:
    """An error of reading as one of writing."""
    if not isinstance(error, UnreadableError):
        return error
    what = re.sub(r"(permission to|may not) read", r"\1 write", error.what)
    kind = NotAllowedError if isinstance(error, ForbiddenError) else WriteError
    return kind(what, error.where, error.hint)


@cache
def _module(name: str) -> object:
    return import_module(f"ptsave.storage.upload.{name}")


def upload_store(address: Address) -> UploadStore:
    """The store of `address`, for writing.

    Raises: RefusedError where nothing can be written there, or the store's library is not installed.
    """
    elsewhere = f"write to a path, or to {', '.join(f'{scheme}://' for scheme in KINDS)}"
    if address.scheme in WEB:
        raise RefusedError("a web address can only be read", str(address), elsewhere)
    if address.revision:
        raise RefusedError(
            "an address of one version can only be read", str(address), "leave the version out of it"
        )
    if address.scheme == HUB:
        what = "no run is kept on the Hub: each checkpoint would be a commit, and none would ever go"
        raise RefusedError(what, str(address), elsewhere)
    if address.scheme not in KINDS:
        what = (
            f"{address.scheme}:// can only be read: it has no known way to make a file at once, where none is"
        )
        raise RefusedError(what, str(address), elsewhere)
    module, _, name = KINDS[address.scheme].partition(".")
    store: UploadStore = getattr(_module(module), name)(address)
    return store


def store_with_conditions(address: Address) -> UploadStore:
    """The store of `address`, for files that several processes write.

    Raises: as `upload_store`; RefusedError where it has no conditions.
    """
    store = upload_store(address)
    if not store.has_conditions:
        what = (
            f"{address.scheme}:// has no conditions, by which several processes do not overwrite each other"
        )
        raise RefusedError(what, str(address), "use a path, or s3://, gs:// or az://")
    return store
