"""What a kind of store does for writing. Each method is one request, or as few as the store allows."""

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
    """What an object says of its own making, beside its bytes."""

    mark: str = field(default_factory=lambda: os.urandom(16).hex())
    """Of the one upload that made it: an answer that was lost is told by it from someone else's object."""
    is_data: bool = False
    """Whether it is part of a folder, in which another object names it."""

    @property
    def metadata(self) -> dict[str, str]:
        """What goes with the object to say it."""
        return {_MARK_KEY: self.mark} | ({_DATA_KEY: "1"} if self.is_data else {})

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Label | None:
        """What the metadata of an object say of its making."""
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
    """An object that is sent in parts, and not there yet."""

    address: Address
    id: str
    label: Label = Label("")
    sums_whole: bool = False
    """Whether the store compares a checksum of the whole when it is complete."""


@dataclass(frozen=True)
class Receipt:
    """What a store says of one part."""

    tag: str
    crc32: int
    num_bytes: int
    checked: str = ""
    """By which checksum the store and we know it as the same; empty where the store has none."""


@dataclass(frozen=True)
class Stored:
    """What a store says of a new object."""

    version: Version
    checked: str = ""
    """By which checksum of the whole the store and we know it as the same; empty where the store has none."""


class Conflict(Exception):  # noqa: N818 (what it means depends on what was to be replaced)
    """The condition does not hold: another object is there, or another than the one that was seen."""


class Gone(Exception):  # noqa: N818 (it may be that an earlier try has completed it)
    """There is no such upload: it was completed, or somebody has removed it."""


class NotAllowedError(WriteError):
    """The store lets us not do that: put an object there, or be told what is there."""


class UploadStore(ABC):
    """A kind of store, and what it knows of one bucket or container."""

    min_part_bytes: int = 8 * MIB
    max_parts: int = 9_900
    part_unit_bytes: int = MIB
    has_conditions: bool = True
    """Whether an object can be replaced and removed on the condition that it is a certain version."""

    @abstractmethod
    def look(self, address: Address) -> Found | None:
        """What is there; None for nothing. Raises: Passing; WriteError."""

    @abstractmethod
    def names(self, address: Address) -> Mapping[str, Found]:
        """What is directly in a folder, by name, folders included. Their labels are not asked for.

        Raises: Passing; WriteError.
        """

    @abstractmethod
    def put(self, address: Address, data: bytearray, crc32: int, label: Label, seen: Found | None) -> Stored:
        """Make `data` the object in one request, if `seen` is there still (None: nothing).

        Raises: Conflict; Passing; WriteError.
        """

    @abstractmethod
    def begin(self, address: Address, label: Label) -> Upload:
        """Begin an object that is sent in parts. Raises: Passing; WriteError."""

    @abstractmethod
    def put_part(self, upload: Upload, number: int, data: bytearray, crc32: int) -> Receipt:
        """Send the part `number`, from 0 on. Raises: Gone; Passing; WriteError."""

    @abstractmethod
    def complete(self, upload: Upload, parts: list[Receipt], crc32: int, seen: Found | None) -> Stored:
        """Make the parts the object, if `seen` is there still (None: nothing). `crc32`: of the whole.

        Raises: Conflict; Gone; Passing; WriteError.
        """

    @abstractmethod
    def abort(self, upload: Upload) -> None:
        """Remove the parts of an object that will not be. Raises: Passing; WriteError."""

    def abandoned(self, address: Address, own: str, *, is_folder: bool) -> Iterator[Upload]:
        """Uploads by ptsave that are not completed, but for `own`: of the object, or of data in the folder.

        Raises: Passing; WriteError.
        """
        return iter(())

    def abandoned_in(self, folder: Address, is_name: Callable[[str], bool]) -> Iterator[Upload]:
        """Uploads by ptsave that are not completed, of objects in a folder whose names `is_name` takes.

        Raises: Passing; WriteError.
        """
        return iter(())

    @abstractmethod
    def remove(self, address: Address, seen: Found | None = None) -> None:
        """Remove an object, if `seen` is there still (None: whatever is). It is no error that there is none.

        Raises: Conflict; Passing; WriteError.
        """


def asked(
    address: Address, action: Callable[[], T], seconds: float | None = None, *, is_first: bool = False
) -> T:
    """What `action` returns, tried again while what keeps it from that may pass, for at most `seconds`.

    `is_first`: whether nothing was asked there before, so that nobody may answer at all.

    Raises: what `action` raises; WriteError when the deadline or the number of tries is over.
    """
    deadline = Deadline.begin(address, writes=True, is_first=is_first)
    if seconds is not None and seconds < deadline.seconds:
        deadline = replace(deadline, seconds=seconds, end=time.monotonic() + seconds)
    return retried(lambda _: action(), deadline)


def unless_unseen(action: Callable[[], T]) -> T | None:
    """What `action` says is there; None also where we may put, and not look.

    The condition of the put is the store's own then. S3 answers 403 for an object that is not there, too.
    Source: Amazon S3 API Reference, HeadObject: "Permissions".
    """
    try:
        return action()
    except NotAllowedError:
        return None


def prefix_of(address: Address) -> str:
    """What the keys of all objects in the folder `address` begin with."""
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
    """The store that `address` is in, to write to.

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
    """The store that `address` is in, for what several processes write.

    Raises: as `upload_store`; RefusedError where it has no conditions.
    """
    store = upload_store(address)
    if not store.has_conditions:
        what = (
            f"{address.scheme}:// has no conditions, by which several processes do not overwrite each other"
        )
        raise RefusedError(what, str(address), "use a path, or s3://, gs:// or az://")
    return store
