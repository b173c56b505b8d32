"""Azure's blobs: writing.

An object is sent as blocks, which nobody sees until a list of them gives it its name. That list, and a blob
of one request, drop all blocks that were sent to that name and are not in it; nothing else removes them
before the store itself does, after a week.

Source: https://learn.microsoft.com/rest/api/storageservices: "Put Blob", "Put Block", "Put Block List",
"Specifying conditional headers for Blob service operations".
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ptsave.core.address import Address
from ptsave.errors import WriteError
from ptsave.storage.remote.azure import CONNECT_S, EXTRA, AzureStore, code_of, tag_of
from ptsave.storage.remote.request import WAIT_S, timeout_s
from ptsave.storage.remote.store import Passing, Version, library
from ptsave.storage.upload.store import (
    Conflict,
    Found,
    Gone,
    Label,
    NotAllowedError,
    Receipt,
    Stored,
    Upload,
    UploadStore,
    as_write_error,
    prefix_of,
)

MD5 = "MD5"
_CONFLICTS = frozenset(("BlobAlreadyExists", "BlobNotFound", "ConditionNotMet", "TargetConditionNotMet"))
"""What an answer says where a condition does not hold."""
_RIGHTS = {"get_blob_properties": "read (r)", "walk_blobs": "list (l)", "delete_blob": "delete (d)"}
"""What requests take that do not write.

Source: https://learn.microsoft.com/rest/api/storageservices/create-service-sas, "Permissions for a blob".
"""


class AzureUploads(UploadStore):
    """One container."""

    def __init__(self, address: Address) -> None:
        """Raises: RefusedError without the library; UsageError when no account is named."""
        with library(address, EXTRA):
            from azure.core import MatchConditions
            from azure.storage.blob import BlobBlock
        self._store = AzureStore(address)
        self._match: Any = MatchConditions
        self._block: Any = BlobBlock

    def look(self, address: Address) -> Found | None:
        try:
            about = self._call(address, "get_blob_properties")
        except Conflict:
            return None
        metadata = {name.lower().replace("_", "-"): text for name, text in (about.metadata or {}).items()}
        return Found(Version(about.size, tag_of(about.etag)), Label.of(metadata))

    def names(self, address: Address) -> Mapping[str, Found]:
        prefix = prefix_of(address)
        found: dict[str, Found] = {}
        try:
            for one in self._store.container.walk_blobs(name_starts_with=prefix, **_waits()):
                if name := one.name[len(prefix) :]:
                    version = Version(0) if name.endswith("/") else Version(one.size, tag_of(one.etag))
                    found[name] = Found(version)
        except Exception as error:
            raise self._refused(address, error, "walk_blobs") from None
        return found

    def put(self, address: Address, data: bytearray, crc32: int, label: Label, seen: Found | None) -> Stored:
        md5 = _md5(data)
        try:
            about = self._call(
                address,
                "upload_blob",
                bytes(data),
                overwrite=seen is not None,
                metadata=_metadata(label),
                headers={"Content-MD5": md5},
                **self._condition(seen),
            )
        except Conflict:
            try:
                is_there = seen is not None or self.look(address) is not None
            except NotAllowedError:
                is_there = True
            if is_there:
                raise
            # blocks of a writer that was killed are there, which Azurite takes for an object, but not here
            upload = self.begin(address, label)
            parts = [self.put_part(upload, 0, data, crc32)] if data else []
            return replace(self.complete(upload, parts, crc32, seen), checked=MD5)
        return Stored(Version(len(data), tag_of(about["etag"])), _checked(about, md5))

    def begin(self, address: Address, label: Label) -> Upload:
        return Upload(address, label.mark, label)

    def put_part(self, upload: Upload, number: int, data: bytearray, crc32: int) -> Receipt:
        name, md5 = f"{upload.id}{number:06}", _md5(data)
        about = self._call(upload.address, "stage_block", name, data, len(data), headers={"Content-MD5": md5})
        return Receipt(name, crc32, len(data), _checked(about, md5))

    def complete(self, upload: Upload, parts: list[Receipt], crc32: int, seen: Found | None) -> Stored:
        about = self._call(
            upload.address,
            "commit_block_list",
            [self._block(part.tag) for part in parts],
            metadata=_metadata(upload.label),
            **self._condition(seen),
        )
        return Stored(Version(sum(part.num_bytes for part in parts), tag_of(about["etag"])))

    def abort(self, upload: Upload) -> None:
        """Leave the blocks to the store: no request removes them that leaves alone what is there."""

    def remove(self, address: Address, seen: Found | None = None) -> None:
        try:
            self._call(address, "delete_blob", **({} if seen is None else self._condition(seen)))
        except Conflict:
            if seen is not None and self.look(address) is not None:
                raise

    def _condition(self, seen: Found | None) -> dict[str, Any]:
        if seen is None:
            return {"match_condition": self._match.IfMissing}
        return {"match_condition": self._match.IfNotModified, "etag": seen.version.tag}

    def _call(self, address: Address, operation: str, *wanted: Any, **options: Any) -> Any:
        """Ask once. Raises: Conflict; Gone; Passing; WriteError."""
        blob = self._store.container.get_blob_client(address.key)
        try:
            return getattr(blob, operation)(*wanted, **options, **_waits())
        except Exception as error:
            raise self._refused(address, error, operation) from None

    def _refused(self, address: Address, error: Exception, operation: str) -> Exception:
        status, code = getattr(error, "status_code", 0), code_of(error)
        if code in _CONFLICTS or (status == 404 and not code):
            return Conflict()
        if code == "ContainerNotFound":
            hint = f"the store says {code}: check the container's name and the account"
            return WriteError("no such container", str(address), hint)
        if code == "InvalidBlockList":
            return Gone()
        if code == "Md5Mismatch":
            return Passing("the bytes were damaged on the way")
        if code == "InvalidBlobOrBlock":
            return WriteError(
                "another tool has begun to send an object of this name",
                str(address),
                "end that upload, or write under another name: the store drops its blocks after a week",
            )
        if status in (400, 409, 412):
            return WriteError(
                f"the store answers {status} {code}",
                str(address),
                "a lease, a policy or another tool may hold the object: look at it with the store's own tool",
            )
        right = _RIGHTS.get(operation, "create (c) or write (w)")
        return as_write_error(self._store.failed(address, error, right=right))


def _metadata(label: Label) -> dict[str, str]:
    """Names of metadata are identifiers here: they have no hyphen."""
    return {name.replace("-", "_"): text for name, text in label.metadata.items()}


def _waits() -> dict[str, float]:
    wait_s = min(WAIT_S, timeout_s())
    return {"read_timeout": wait_s, "connection_timeout": min(CONNECT_S, wait_s)}


def _md5(data: bytearray) -> str:
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _checked(about: Mapping[str, Any], md5: str) -> str:
    """The store takes no bytes that have not the MD5 that came with them, and may say theirs as well.

    Raises: Passing when it says another one.
    """
    said = about.get("content_md5")
    if said and b64encode(bytes(said)).decode() != md5:
        raise Passing("the bytes were damaged on the way")
    return MD5
