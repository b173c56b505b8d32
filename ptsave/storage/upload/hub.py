"""Repositories on the Hugging Face Hub: a file or a folder is written by one commit.

The Hub asks for a large file's SHA-256 before its bytes, so each file is made in a temporary one on this
disk, sent from there, and gone when it is sent. Nothing is seen before the commit, and the commit is made on
top of the one that was there at the beginning, or not at all: a branch that moved meanwhile is told.

Source: huggingface_hub, `hf_api.py` (`preupload_lfs_files`, `create_commit`) and `_commit_api.py`.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, PtsaveError, RefusedError, WriteError
from ptsave.storage.output import LocalOutputFile, OutputFile, OutputFolder
from ptsave.storage.remote.http import passes
from ptsave.storage.remote.hub import COMMIT, HubStore
from ptsave.storage.remote.store import Listed, Passing
from ptsave.storage.upload.file import exists
from ptsave.storage.upload.store import Conflict, asked

_OF_THE_HUB = frozenset((".gitattributes", "README.md"))
"""What the Hub itself puts into a new repository."""
_CHECKED = "reading it back before it is sent, and the Hub's SHA-256"
_TELLING = ("_commit_api", "hf_api", "lfs", "utils._http")
T = TypeVar("T")


class Commit:
    """A commit in the making, on top of the one that its branch is at, or was at when it was read."""

    def __init__(self, address: Address) -> None:
        """Raises: RefusedError; WriteError where the repository or the branch is not there."""
        self.branch = address.branch or address.revision or "main"
        self.address = replace(address, revision=self.branch, branch="")
        if COMMIT.fullmatch(self.branch):
            raise RefusedError("a commit can only be read", str(address), "name a branch in its place")
        self.store = HubStore(address)
        if self.store.is_offline:
            raise RefusedError("HF_HUB_OFFLINE is set", str(address), "unset it to write to the Hub")
        import huggingface_hub

        self._library = huggingface_hub
        self._api = huggingface_hub.HfApi(
            endpoint=self.store.endpoint, token=self.store.token or False, library_name="ptsave"
        )
        self.parent = address.revision if address.branch else self._head()
        self._added: list[Any] = []
        """`CommitOperationAdd`: those of large files, whose bytes are at the Hub, have none any more."""
        self._deleted: list[str] = []

    def names(self, folder: Address) -> Mapping[str, Listed]:
        """What is in a folder of the parent, by name."""
        at = folder.at(self.parent)
        try:
            return {one.name: one for one in self._asked(lambda: [*self.store.list(at, 30.0)])}
        except MissingFileError:
            return {}

    def add(self, path: str, file: BinaryIO) -> None:
        """Add what `file` holds as `path`, and send it where it is large.

        Raises: WriteError.
        """
        file.seek(0)
        operation = self._library.CommitOperationAdd(path, file)
        self._send(operation)
        if operation.path_or_fileobj is file:  # a small one goes with the commit
            file.seek(0)
            operation.path_or_fileobj = file.read()

    def add_bytes(self, path: str, data: bytes) -> None:
        """Add `data` as `path`. Raises: WriteError."""
        self._send(self._library.CommitOperationAdd(path, data))

    def _send(self, operation: Any) -> None:
        def send() -> None:
            with _quiet():
                self._api.preupload_lfs_files(
                    self.store.repo, [operation], repo_type=self.store.kind, revision=self.branch
                )

        self._asked(send)
        self._added.append(operation)

    def remove(self, path: str, *, is_there: bool) -> None:
        """Remove the file `path`, which the parent has, or which was only to stand there for a moment."""
        self._added = [one for one in self._added if one.path_in_repo != path]
        if is_there:
            self._deleted.append(path)

    def make(self, message: str) -> None:
        """Make the commit, and see that the Hub has in it what was sent.

        Raises: WriteError when the branch moved meanwhile.
        """

        def make() -> str:
            with _quiet():
                made = self._api.create_commit(
                    self.store.repo,
                    [*self._added, *map(self._library.CommitOperationDelete, self._deleted)],
                    commit_message=message,
                    repo_type=self.store.kind,
                    revision=self.branch,
                    parent_commit=self.parent,
                )
            return str(made.oid)

        try:
            commit = self._asked(make)
        except (Conflict, WriteError) as error:
            commit = self._head()  # an answer may have been lost: then it is there
            if commit == self.parent or self._missing(commit):
                if isinstance(error, WriteError):
                    raise
                raise WriteError(
                    f"the branch {self.branch!r} was written to by somebody else meanwhile",
                    str(self.address),
                    "look at what is there now, and write again; nothing was replaced",
                ) from None
            return
        if missing := self._missing(commit):
            raise WriteError(
                f"the Hub's new commit does not have what was sent: {missing}",
                str(self.address),
                "see whether the repository's .gitignore leaves it out",
            )

    def _missing(self, commit: str) -> str:
        """The first path of which `commit` does not have what was sent; empty where it has all."""
        paths = [*(one.path_in_repo for one in self._added), *self._deleted]
        found: dict[str, Any] = {}
        for first in range(0, len(paths), 100):
            some = paths[first : first + 100]
            entries = self._asked(
                partial(
                    self._api.get_paths_info,
                    self.store.repo,
                    some,
                    repo_type=self.store.kind,
                    revision=commit,
                )
            )
            found |= {entry.path: entry for entry in entries}
        for one in self._added:
            entry = found.get(one.path_in_repo)
            lfs = getattr(entry, "lfs", None)
            if lfs is not None:
                is_there = lfs.sha256 == one.upload_info.sha256.hex()
            else:
                is_there = getattr(entry, "blob_id", "") == _name_in_git(one.path_or_fileobj)
            if not is_there:
                return str(one.path_in_repo)
        return next((path for path in self._deleted if path in found), "")

    def _head(self) -> str:
        where = self.address
        try:
            return self._asked(lambda: self.store.commit(where, 30.0), is_first=True)
        except MissingFileError as error:
            raise WriteError(
                error.what, str(where), f"{error.hint}; a new one: hf repo create {self.store.repo}"
            ) from None

    def _asked(self, action: Callable[[], T], *, is_first: bool = False) -> T:
        def once() -> T:
            try:
                return action()
            except (PtsaveError, Passing):
                raise
            except Exception as error:
                raise self._judged(error) from None

        return asked(self.address, once, is_first=is_first)

    def _judged(self, error: Exception) -> Exception:
        """What an error of the library means. Its text is not shown: there may be a signed address in it."""
        where = str(self.address)
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # of one file
        response = getattr(error, "response", None)
        if response is None:
            if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests"):
                return Passing(f"no answer from the Hub ({type(error).__name__})")
            if isinstance(error, ValueError):
                return WriteError("the Hub does not take it", where, "check the path")
            return error
        status = int(response.status_code)
        if status in (409, 412):
            return Conflict()
        if status in (401, 403):
            return WriteError(
                f"no right to write there ({status})",
                where,
                "log in (hf auth login) or set HF_TOKEN to a token that may write to the repository",
            )
        if passes(status):
            return Passing(f"the Hub answers {status}")
        return WriteError(f"the Hub answers {status}", where, "check the repository, the branch and the path")


def check_file(address: Address, *, overwrite: bool = False) -> Commit:
    """The commit that will have the file `address`.

    Raises: RefusedError; ExistsError; WriteError.
    """
    if not address.key:
        raise WriteError("the address names no file", str(address), "name a file in the repository")
    commit = Commit(address)
    found = commit.names(address.parent).get(address.name)
    if found is not None and found.is_folder:
        raise WriteError("the destination is a folder", str(address), "name a file in it")
    if found is not None and not overwrite:
        raise exists(address)
    return commit


@contextmanager
def replacing_file(
    address: Address,
    num_bytes: int,
    *,
    overwrite: bool = False,
    before_rename: Callable[[], None] | None = None,
) -> Iterator[OutputFile]:
    """A new file of `num_bytes` bytes that becomes `address` by one commit when the block ends.

    Raises: ExistsError; WriteError.
    """
    commit = check_file(address, overwrite=overwrite)
    with _temporary(address, num_bytes) as (file, output):
        yield output
        commit.add(address.key, file)
        if before_rename is not None:
            before_rename()
        commit.make(f"Upload {address.name} with ptsave")
        output.checked = output.checked and _CHECKED


def check_folder(address: Address, *, overwrite: bool = False) -> tuple[Commit, Mapping[str, Listed]]:
    """The commit that will have the folder `address`, and what is there now.

    Raises: RefusedError; ExistsError; WriteError.
    """
    commit = Commit(address)
    if address.key:
        found = commit.names(address.parent).get(address.name)
        if found is not None and not found.is_folder:
            raise WriteError(
                "the destination is a file, and the format is a folder", str(address), "remove it first"
            )
    listed = commit.names(address)
    if not overwrite and (set(listed) if address.key else set(listed) - _OF_THE_HUB):
        raise exists(address)
    return commit, listed


def check_shared(address: Address) -> NoReturn:
    """Raises: RefusedError: a commit is made by one process."""
    raise RefusedError(
        "a folder on the Hub is written by one process",
        str(address),
        "write it elsewhere, then convert that",
    )


def data_stream(folder: Address, name: str, about_bytes: int) -> NoReturn:
    """Raises: RefusedError."""
    check_shared(folder)


@contextmanager
def replacing_folder(
    address: Address,
    *,
    overwrite: bool = False,
    before_commit: Callable[[], None] | None = None,
) -> Iterator[OutputFolder]:
    """A folder that becomes, or is updated in, `address` by one commit, which the block must end with.

    Raises: ExistsError; WriteError.
    """
    yield HubFolder(address, *check_folder(address, overwrite=overwrite), before_commit)


class HubFolder(OutputFolder):
    """A folder of a repository being written: all of it is there at once, or nothing."""

    def __init__(
        self,
        address: Address,
        commit: Commit,
        listed: Mapping[str, Listed],
        before_commit: Callable[[], None] | None,
    ) -> None:
        self.destination: Address = address
        self.place = address
        self.taken = set(listed)
        self.made: list[str] = []
        self._commit, self._before_commit = commit, before_commit

    def fresh(self, names: Callable[[int], Sequence[str]]) -> Sequence[str]:
        """The first of them: old and new files of one name are never seen together."""
        return names(1)

    @contextmanager
    def data_file(self, name: str, num_bytes: int) -> Iterator[OutputFile]:
        with _temporary(self.destination / name, num_bytes) as (file, output):
            yield output
            self._commit.add((self.destination / name).key, file)
            output.checked = output.checked and _CHECKED
        self.made.append(name)

    def small_file(self, name: str, data: bytes) -> None:
        self._commit.add_bytes((self.destination / name).key, data)
        self.made.append(name)

    def commit(
        self, main: tuple[str, bytes], beside: Iterable[tuple[str, bytes]] = (), old: Sequence[str] = ()
    ) -> None:
        for name, data in (main, *beside):
            self.small_file(name, data)
        for name in old:
            self._commit.remove((self.destination / name).key, is_there=name in self.taken)
        if self._before_commit is not None:
            self._before_commit()
        self._commit.make(f"Upload {self.destination.name} with ptsave")


def _name_in_git(data: bytes) -> str:
    """Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def _temporary(address: Address, num_bytes: int) -> Iterator[tuple[BinaryIO, LocalOutputFile]]:
    """A file without a name on this disk, and how it is written."""
    place = Path(tempfile.gettempdir(), address.name)
    # on Windows what tempfile gives only wraps a file, which the library does not take
    with tempfile.TemporaryFile() as made, open(made.fileno(), "r+b", closefd=False) as file:
        yield file, LocalOutputFile(file.fileno(), place, place, num_bytes, sync=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """In the block the library shows no bars and tells nothing: of a retry it tells a signed address."""
    import huggingface_hub

    utils: Any = huggingface_hub.utils

    def is_told(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(f"huggingface_hub.{name}") for name in _TELLING]
    for logger in loggers:
        logger.addFilter(is_told)
    is_asked_for = huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    has_bars = not is_asked_for and not utils.are_progress_bars_disabled()
    if has_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if has_bars:
            utils.enable_progress_bars()
        for logger in loggers:
            logger.removeFilter(is_told)
