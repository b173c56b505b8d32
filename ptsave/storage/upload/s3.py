"""Amazon S3, and what speaks its language: writing.

Source: Amazon S3 API Reference: PutObject, CreateMultipartUpload, UploadPart, CompleteMultipartUpload,
ListMultipartUploads, ListParts; User Guide: "How to prevent object overwrites with conditional writes",
"Checking object integrity".
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from isal.isal_zlib import crc32 as crc32_of

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, Option, PtsaveError, UnreadableError, WriteError
from ptsave.storage.remote.s3 import S3Store, ask, listed, pages, refused, version_of
from ptsave.storage.remote.store import Faulty, Passing, Version
from ptsave.storage.upload.store import (
    Conflict,
    Found,
    Gone,
    Label,
    Receipt,
    Stored,
    Upload,
    UploadStore,
    as_write_error,
    prefix_of,
)

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

MARK_PART = 10_000
"""The number of a part that no object has. It says of an upload that it is ours: a label is seen only when it
is complete. Parts that are not named at the completion are removed by the store."""
_MARKS = {False: b"An upload by ptsave.", True: b"An upload by ptsave of data in a folder."}
"""The bytes of that part; whether it is of data in a folder."""
_OUR_KIND = ("CRC32", "FULL_OBJECT")
"""The checksum that our uploads ask for, and few others' do."""
_CODES_PASSING = frozenset(
    (
        "BadDigest",
        "ConditionalRequestConflict",
        "InvalidDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    )
)
"""What passes beside what passes at reading: bytes that were damaged on the way, and a race."""
CRC32, MD5 = "CRC-32", "MD5"


class S3Uploads(UploadStore):
    """One bucket."""

    max_parts = MARK_PART - 1

    def __init__(self, address: Address) -> None:
        self._store = S3Store(address)
        self._unheard: set[Address] = set()
        """Where a try to begin an upload may have begun one without our hearing of it."""
        self._has_md5 = True
        """Whether each ETag so far was the MD5 of the bytes, which takes longer to sum up than to send."""

    def look(self, address: Address) -> Found | None:
        try:
            about = self._call(address, "head_object", Bucket=address.host, Key=address.key)
        except MissingFileError:
            return None
        try:
            return Found(version_of(about), Label.of(about.get("Metadata", {})))
        except Faulty as faulty:
            raise Passing(faulty.what) from None

    def names(self, address: Address) -> Mapping[str, Found]:
        names = listed(address, lambda **wanted: self._call(address, "list_objects_v2", **wanted))
        try:
            return {
                f"{one.name}/" if one.is_folder else one.name: Found(Version(one.size_bytes, one.tag))
                for one in names
            }
        except Faulty as faulty:
            raise Passing(faulty.what) from None

    def put(self, address: Address, data: bytearray, crc32: int, label: Label, seen: Found | None) -> Stored:
        about = self._call(
            address,
            "put_object",
            Bucket=address.host,
            Key=address.key,
            Body=data,
            ChecksumAlgorithm="CRC32",
            ChecksumCRC32=_spelled(crc32),
            Metadata=label.metadata,
            **_condition(seen),
        )
        return Stored(Version(len(data), about.get("ETag", "")), self._checked(about, crc32, data))

    def begin(self, address: Address, label: Label) -> Upload:
        try:
            about = self._call(
                address,
                "create_multipart_upload",
                Bucket=address.host,
                Key=address.key,
                ChecksumAlgorithm=_OUR_KIND[0],
                ChecksumType=_OUR_KIND[1],
                Metadata=label.metadata,
            )
        except Passing:
            self._unheard.add(address)
            raise
        upload = Upload(address, about["UploadId"], label, about.get("ChecksumType") == "FULL_OBJECT")
        mark = bytearray(_MARKS[label.is_data])
        try:
            self.put_part(upload, MARK_PART - 1, mark, crc32_of(mark))
        except BaseException:  # it is begun again, or not at all
            with suppress(Passing, PtsaveError):
                self.abort(upload)
            raise
        return upload

    def put_part(self, upload: Upload, number: int, data: bytearray, crc32: int) -> Receipt:
        about = self._call(
            upload.address,
            "upload_part",
            **_named(upload),
            PartNumber=number + 1,
            Body=data,
            ChecksumAlgorithm="CRC32",
            ChecksumCRC32=_spelled(crc32),
        )
        return Receipt(about["ETag"], crc32, len(data), self._checked(about, crc32, data))

    def complete(self, upload: Upload, parts: list[Receipt], crc32: int, seen: Found | None) -> Stored:
        listed = [
            {"PartNumber": number, "ETag": part.tag}
            | ({"ChecksumCRC32": _spelled(part.crc32)} if part.checked == CRC32 else {})
            for number, part in enumerate(parts, 1)
        ]
        num_bytes = sum(part.num_bytes for part in parts)
        whole = {"ChecksumCRC32": _spelled(crc32), "ChecksumType": "FULL_OBJECT"} if upload.sums_whole else {}
        about = self._call(
            upload.address,
            "complete_multipart_upload",
            **_named(upload),
            MultipartUpload={"Parts": listed},
            MpuObjectSize=num_bytes,
            **whole,
            **_condition(seen),
        )
        composed = crc32_of(b"".join(part.crc32.to_bytes(4, "big") for part in parts))
        said = about.get("ChecksumCRC32", "")
        if said and said not in (_spelled(crc32), f"{_spelled(composed)}-{len(parts)}", _spelled(composed)):
            raise WriteError(
                "the store's checksum is another one than ours",
                str(upload.address),
                ("write it again with ", Option("overwrite", True)),
            )
        return Stored(Version(num_bytes, about.get("ETag", "")), CRC32 if said else "")

    def abort(self, upload: Upload) -> None:
        try:
            self._call(upload.address, "abort_multipart_upload", **_named(upload))
        except Gone:
            return

    def abandoned(self, address: Address, own: str, *, is_folder: bool) -> Iterator[Upload]:
        prefix = prefix_of(address) if is_folder else address.key
        for upload, is_like_ours in self._begun(address, prefix):
            rest = upload.address.key[len(prefix) :]
            if upload.id == own or ("/" in rest if is_folder else rest):
                continue
            marks = [_MARKS[True]] if is_folder else [*_MARKS.values()]
            if self._is_ours(upload, marks, or_empty=is_like_ours and not is_folder):
                yield upload

    def abandoned_in(self, folder: Address, is_name: Callable[[str], bool]) -> Iterator[Upload]:
        prefix = prefix_of(folder)
        for upload, is_like_ours in self._begun(folder, prefix):
            is_it = is_name(upload.address.key[len(prefix) :])
            if is_it and self._is_ours(upload, [*_MARKS.values()], or_empty=is_like_ours):
                yield upload

    def _begun(self, address: Address, prefix: str) -> Iterator[tuple[Upload, bool]]:
        """The uploads of keys with a prefix, and whether each is like ours as far as the list says."""

        def ask(**wanted: str) -> Mapping[str, Any]:
            return self._call(address, "list_multipart_uploads", **wanted)

        wanted = {"Bucket": address.host, "Prefix": prefix}
        try:
            for page in pages(ask, wanted, "KeyMarker", "UploadIdMarker"):
                for one in page.get("Uploads", ()):
                    upload = Upload(Address(address.scheme, address.host, one["Key"]), one["UploadId"])
                    is_of_our_kind = (one.get("ChecksumAlgorithm"), one.get("ChecksumType")) == _OUR_KIND
                    yield upload, is_of_our_kind or upload.address in self._unheard
        except (Faulty, KeyError):
            raise Passing("the store's list of uploads is not one") from None

    def _is_ours(self, upload: Upload, marks: Sequence[bytes], *, or_empty: bool) -> bool:
        """Whether one of `marks` is there; with `or_empty` also, whether no part is there at all.

        Then its writer was killed before it had sent the mark, or never heard that it had begun.
        """
        try:
            last = self._parts(upload, PartNumberMarker=MARK_PART - 1, MaxParts=2)
            if any(_is_mark(part, mark) for part in last for mark in marks):
                return True
            first = self._parts(upload)  # to some servers the marker is a count
            return any(_is_mark(part, mark) for part in first for mark in marks) or (or_empty and not first)
        except Gone:
            return False

    def _parts(self, upload: Upload, **which: int) -> Sequence[Mapping[str, Any]]:
        about = self._call(upload.address, "list_parts", **_named(upload), **which)
        found: Sequence[Mapping[str, Any]] = about.get("Parts", ())
        return found

    def remove(self, address: Address, seen: Found | None = None) -> None:
        condition = {} if seen is None else {"IfMatch": seen.version.tag}
        self._call(address, "delete_object", Bucket=address.host, Key=address.key, **condition)

    def _checked(self, about: Mapping[str, Any], crc32: int, data: bytes | bytearray) -> str:
        """By which checksum the store has the same bytes as we, where it says one.

        An ETag is the MD5 of the bytes in many stores, and something else in others: only its agreement says
        something.

        Raises: Passing when it has others.
        """
        said = about.get("ChecksumCRC32", "")
        if said:
            if said != _spelled(crc32):
                raise Passing("the bytes were damaged on the way")
            return CRC32
        if self._has_md5:
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            self._has_md5 = about.get("ETag", "").strip('"') == md5
        return MD5 if self._has_md5 else ""

    def _call(self, address: Address, operation: str, **wanted: Any) -> Mapping[str, Any]:
        """Ask once. Raises: Conflict; Gone; MissingFileError; Passing; WriteError; RefusedError."""
        client = self._store.client
        from botocore.exceptions import ClientError

        try:
            return ask(client, address, operation, **wanted)
        except ClientError as error:
            raise self._refused(address, operation, error) from None
        except Faulty as faulty:
            raise Passing(faulty.what) from None
        except UnreadableError as error:
            raise as_write_error(error) from None

    def _refused(self, address: Address, operation: str, error: ClientError) -> Exception:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status == 412 or code == "PreconditionFailed":
            return Conflict()
        if code in _CODES_PASSING:
            return Passing(f"the store answers {status} {code}")
        if code == "NoSuchUpload":
            return Gone()
        if code == "NoSuchKey" and operation in ("put_object", "complete_multipart_upload"):
            return Conflict()  # If-Match, and the object is gone
        if code == "NotImplemented":
            return WriteError(
                "the store does not know what makes writing safe: conditional puts",
                str(address),
                "write to a path, and copy it with the store's own tool",
            )
        found = refused(address, error)
        if isinstance(found, MissingFileError) and operation == "head_object" and status == 404:
            return found
        return as_write_error(found)


def _condition(seen: Found | None) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen.version.tag}


def _named(upload: Upload) -> dict[str, str]:
    return {"Bucket": upload.address.host, "Key": upload.address.key, "UploadId": upload.id}


def _is_mark(part: Mapping[str, Any], mark: bytes) -> bool:
    md5 = hashlib.md5(mark, usedforsecurity=False).hexdigest()
    is_it = part.get("ETag", "").strip('"') == md5 or part.get("ChecksumCRC32") == _spelled(crc32_of(mark))
    return is_it and (part["PartNumber"], part["Size"]) == (MARK_PART, len(mark))


def _spelled(crc32: int) -> str:
    return b64encode(crc32.to_bytes(4, "big")).decode()
