"""What a kind of store does for reading. Each method is one request, or as few as the store allows."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from ptsave.core.address import Address
from ptsave.errors import (
    MissingFileError,
    OutOfReachError,
    RefusedError,
    UnreadableError,
    UsageError,
    install,
)

KINDS = {
    "http": "http.HttpStore",
    "https": "http.HttpStore",
    "s3": "s3.S3Store",
    "gs": "gcs.GcsStore",
    "az": "azure.AzureStore",
    "hf": "hub.HubStore",
}
"""Scheme → the module here and the class in it. Every other scheme is asked of fsspec."""
OTHERS = "fs.FsspecStore"


@dataclass(frozen=True)
class Version:
    """What tells one content of an object from another."""

    size_bytes: int
    tag: str = ""
    """Its ETag, generation or commit, quotes included; empty where the store has none."""
    modified: str = ""
    """When it was written, as the store says it."""

    @property
    def can_be_asked_for(self) -> bool:
        """Whether the tag is a strong one, which a later request can insist on; without quotes it is none."""
        return self.tag.startswith('"')

    def is_same(self, other: Version) -> bool:
        """Whether both are one content, as far as the store tells: by the tags, else by time and size."""
        if self.tag or other.tag:
            return (self.tag, self.size_bytes) == (other.tag, other.size_bytes)
        return (self.modified, self.size_bytes) == (other.modified, other.size_bytes)


@dataclass
class Answer:
    """What a store answers to a request for a range: its head; the body is read from it."""

    version: Version
    begin: int
    """Of the object, the offset of the body's first byte."""
    end: int
    """And that after its last, as the answer's head says."""
    read: Callable[[int], bytes]
    """At most so many of the next bytes, as they come; empty at the end."""
    close: Callable[[], None]
    """Give the connection back, or break it off where the body was not read to its end."""


@dataclass(frozen=True)
class Listed:
    """One name in a folder."""

    name: str
    size_bytes: int
    is_folder: bool = False
    tag: str = ""
    """Of an object, as in its `Version`; empty where lists do not say it."""


class Passing(Exception):  # noqa: N818 (it is not an error yet)
    """What may be over when it is tried again: an overloaded server, a broken connection."""

    def __init__(self, what: str, after_s: float | None = None) -> None:
        """`after_s`: when the server asks to be tried again, in seconds."""
        super().__init__(what)
        self.what = what
        self.after_s = after_s


class Unreachable(Passing):
    """Nobody takes the connection: the server is down for a moment, or the address is wrong."""


class Faulty(Passing):
    """An answer that contradicts itself: a broken proxy may do better, a broken server will not."""


class Unsatisfiable(Faulty):
    """The store refuses a range of an object that has some of it, as some do when it ends past the object."""

    def __init__(self, size_bytes: int) -> None:
        """`size_bytes`: of the object, -1 where the store does not say."""
        super().__init__("the server refuses the range that it was asked for")
        self.size_bytes = size_bytes


class ChangedError(UnreadableError):
    """The object is another one than when it was opened."""


class NoAccessError(MissingFileError, OutOfReachError):
    """The store does not let us read it."""


class ForbiddenError(NoAccessError):
    """The store knows who we are, and does not let us do that, or know whether it is there."""


class Store(ABC):
    """A kind of store, and what it knows of one bucket, repository or host."""

    has_folders: bool = True
    """Whether names can be listed."""
    num_at_once: int = 16
    """How many requests are under way at a time, at most."""

    def pinned(self, address: Address, timeout_s: float) -> Address:
        """`address` at what its branch is now, where a store has branches. May take a request.

        Raises: as `get`.
        """
        return address

    def local(self, address: Address) -> Path | None:
        """Where a copy of it lies on this disk that is known to be the same, as a store's own tools keep it.

        Raises: MissingFileError where nothing but a copy may be read, and there is none.
        """
        return None

    @abstractmethod
    def get(
        self, address: Address, begin: int, end: int, version: Version | None, timeout_s: float
    ) -> Answer:
        """Ask once for the bytes from `begin` to `end` (not included) of an object.

        `version`: what was opened, to be insisted on where the store can; None for whatever is there. An
        answer may have fewer bytes than were asked for (the object's end), or be of the whole object, where
        a server does not know ranges. `timeout_s`: for each wait of the connection.

        Raises: Passing; ChangedError when it is not `version`; MissingFileError; UnreadableError.
        """

    def list(self, address: Address, timeout_s: float) -> Iterator[Listed]:
        """The names directly in the folder at `address`, in any order.

        Raises: Passing, MissingFileError, UnreadableError.
        """
        raise MissingFileError(
            "a folder on a web server cannot be listed", str(address), "name a file, or a folder's index file"
        )

    def close(self) -> None:
        """Close idle connections."""
        return


@cache
def _module(name: str) -> object:
    return import_module(f"ptsave.storage.remote.{name}")


def store_of(address: Address) -> Store:
    """The store that an address is in.

    Raises: UsageError for a scheme that nothing here knows; RefusedError when its library is not installed.
    """
    module, _, name = KINDS.get(address.scheme, OTHERS).partition(".")
    store: Store = getattr(_module(module), name)(address)
    return store


@contextlib.contextmanager
def library(address: Address, extra: str) -> Iterator[None]:
    """In the block, a library is imported that ptsave's `extra` installs.

    Raises: RefusedError that names the command which installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise RefusedError(
            f"to read {address.scheme}:// takes a library that is not installed: {error.name}",
            str(address),
            install(extra),
        ) from None


def missing(address: Address, hint: str = "check the address") -> MissingFileError:
    """The error for an object that is not there."""
    return MissingFileError("no such object", str(address), hint)


def no_access(address: Address, what: str, hint: str) -> NoAccessError:
    """The error for an object that the store does not let us read."""
    return NoAccessError(f"no permission to read: {what}", str(address), hint)


def forbidden(address: Address, what: str, right: str, hint: str) -> ForbiddenError:
    """The error for what takes `right`, which whoever we are has not got."""
    return ForbiddenError(f"no permission to read: {what}", str(address), f"it takes {right}; {hint}")


def changed(address: Address) -> ChangedError:
    """The error for an object that was replaced while it was read."""
    return ChangedError(
        "was changed while it was read", str(address), "try again when nothing writes to it any more"
    )


def unknown_scheme(address: Address) -> UsageError:
    """The error for an address of a kind that is not known."""
    return UsageError(
        f"addresses that begin with {address.scheme}:// are not known",
        str(address),
        "known are s3, gs, az, hf, http, https and what fsspec has (sftp, memory, …)",
    )
