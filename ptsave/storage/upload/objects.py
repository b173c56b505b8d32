"""Files and folders in stores that take parts: what is asked first, and the block that makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ptsave.core.address import Address
from ptsave.errors import WriteError
from ptsave.storage.reads import refuse_input_address
from ptsave.storage.upload.file import UploadFile, exists
from ptsave.storage.upload.folder import UploadFolder
from ptsave.storage.upload.store import (
    Found,
    UploadStore,
    asked,
    store_with_conditions,
    unless_unseen,
    upload_store,
)
from ptsave.storage.upload.stream import data_stream as data_stream


def check_file(address: Address, *, overwrite: bool = False) -> tuple[UploadStore, Found | None]:
    """The store to write `address` to, and what writing would replace.

    Raises: RefusedError where it was read, or nothing can be written there; ExistsError; WriteError.
    """
    store = upload_store(address)
    if not address.key.strip("/") or address.key.endswith("/"):
        raise WriteError("the address names no object", str(address), "name a file in it")
    refuse_input_address(address)
    seen = unless_unseen(lambda: asked(address, lambda: store.look(address), is_first=True))
    if seen is not None and not overwrite:
        raise exists(address)
    names = unless_unseen(lambda: asked(address, lambda: store.names(address))) if seen is None else None
    if names:
        raise WriteError("the destination is a folder", str(address), "name a file in it")
    return store, seen


@contextmanager
def replacing_file(
    address: Address,
    num_bytes: int,
    *,
    overwrite: bool = False,
    before_rename: Callable[[], None] | None = None,
) -> Iterator[UploadFile]:
    """A new object of `num_bytes` bytes that becomes `address` when the block ends without an error.

    On any error, an interrupt included, what was sent is removed and the old object stands. `before_rename`:
    what is called last, and may still refuse.

    Raises: ExistsError; WriteError.
    """
    store, seen = check_file(address, overwrite=overwrite)
    output = UploadFile(store, address, num_bytes, seen)
    try:
        yield output
        output.finish(before_rename)
    finally:
        output.abort()


def check_folder(
    address: Address, *, overwrite: bool = False
) -> tuple[UploadStore, Address, dict[str, Found]]:
    """The store to write the folder `address` to, its address without a slash, and what is in it.

    Data that no object names are not there for anybody: a writer that was killed has left them.

    Raises: RefusedError where something in it was read; ExistsError; WriteError.
    """
    store = upload_store(address)
    address = replace(address, key=address.key.strip("/"))
    if address.key and asked(address, lambda: store.look(address), is_first=True) is not None:
        raise WriteError(
            "the destination is a file, and the format is a folder", str(address), "remove it first"
        )
    listed = dict(asked(address, lambda: store.names(address), is_first=True))
    if not overwrite:
        for name in sorted(listed, reverse=True):  # an index comes after its shards then
            one = address / name
            found = None if name.endswith("/") else asked(one, partial(store.look, one))
            if found is None or found.label is None or not found.label.is_data:
                raise exists(address)
    for name in listed:
        refuse_input_address(address / name)
    return store, address, listed


def check_shared(address: Address) -> None:
    """Raises: RefusedError where several processes cannot write one folder."""
    store_with_conditions(address)


@contextmanager
def replacing_folder(
    address: Address,
    *,
    overwrite: bool = False,
    before_commit: Callable[[], None] | None = None,
) -> Iterator[UploadFolder]:
    """A folder of objects that becomes, or is updated in, `address`.

    The block must end with `commit`. On any error before it, what was written is removed, and the old set
    is untouched. `before_commit`: what is called right before readers see the new set, and may still refuse.

    Raises: ExistsError; WriteError.
    """
    store, address, listed = check_folder(address, overwrite=overwrite)
    folder = UploadFolder(store, address, listed, before_commit)
    try:
        yield folder
    finally:
        folder.undo()
