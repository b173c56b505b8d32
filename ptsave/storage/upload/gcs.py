"""Google Cloud Storage: writing.

What fits one part is one request. The parts of a larger object are objects beside it, in a folder of their
own, until a compose request that has the condition makes them one; then they are removed.

Why not otherwise: a resumable upload takes bytes in their order, and a file's header comes last; a multipart
upload of the XML API has no condition when it is completed.

Source: Cloud Storage JSON API v1: Objects insert, compose, get, list, delete;
https://cloud.google.com/storage/docs/composite-objects (at most 32 sources of one request; no limit to the
parts of an object), https://cloud.google.com/storage/docs/data-validation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, PtsaveError, UnreadableError, WriteError
from ptsave.storage.fetch import in_parallel
from ptsave.storage.remote.gcs import EXTRA, PARTS, GcsStore, no_bucket, path_of
from ptsave.storage.remote.http import json_of
from ptsave.storage.remote.request import WAIT_S, timeout_s
from ptsave.storage.remote.store import Faulty, Passing, Version, library
from ptsave.storage.upload.store import (
    MIB,
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
    asked,
    prefix_of,
)

MAX_SOURCES = 32
"""How many objects one compose request joins, at most."""
CRC32C = "CRC-32C"
_NUM_AT_ONCE = 8
_TIDY_S = 20.0
"""How long to try to remove parts that nobody needs any more."""
_KIND = "application/octet-stream"
_FIELDS = "size,generation,crc32c,metadata"
_RIGHTS = {
    "GET": "get",
    "POST": "create (and storage.objects.delete where an object is replaced)",
    "DELETE": "delete",
}
"""What each request takes; a list takes `list`. Source: Cloud Storage, "IAM permissions for JSON methods"."""
_DATA = "-data"
_MARK = "mark"
"""A part of no bytes, which tells whether parts may be read."""
_ID = re.compile(rf"[0-9a-f]{{32}}({_DATA})?")


class GcsUploads(UploadStore):
    """One bucket."""

    def __init__(self, address: Address) -> None:
        """Raises: RefusedError without the library."""
        with library(address, EXTRA):
            from google_crc32c import extend
        self._extend: Any = extend
        self._store = GcsStore(address, writes=True)
        self._is_unseen = False
        """Whether the store does not say what is there."""
        self._sent: set[Address] = set()
        """Parts that were sent and not removed."""

    def look(self, address: Address) -> Found | None:
        try:
            about = self._call(address, "GET", path_of(address), {"fields": _FIELDS})
        except MissingFileError:
            return None
        except NotAllowedError:
            self._is_unseen = True
            raise
        return _found(about)

    def names(self, address: Address) -> Mapping[str, Found]:
        listed = self._listed(address, prefix_of(address), delimiter="/")
        return {name: found for name, found in listed if name not in ("", f"{PARTS}/")}

    def put(self, address: Address, data: bytearray, crc32: int, label: Label, seen: Found | None) -> Stored:
        about = self._send(address, data, self._crc32c(data), label.metadata, _condition(seen))
        return Stored(_found(about).version, CRC32C)

    def begin(self, address: Address, label: Label) -> Upload:
        upload = Upload(address, f"{label.mark}{_DATA if label.is_data else ''}", label)
        if self._is_unseen:  # who may not read parts cannot have them joined: found out before they are sent
            part = self._part(upload, _MARK)
            self._send(part, bytearray(), 0, {}, {})
            self.look(part)
        return upload

    def put_part(self, upload: Upload, number: int, data: bytearray, crc32: int) -> Receipt:
        crc32c = self._crc32c(data)
        self._send(self._part(upload, f"{number:05}"), data, crc32c, {}, {})
        return Receipt(f"{crc32c:08x}", crc32, len(data), CRC32C)

    def complete(self, upload: Upload, parts: list[Receipt], crc32: int, seen: Found | None) -> Stored:
        """The whole is made beside its place, and compared, before it takes its name."""
        crc32c = 0
        for part in parts:
            crc32c = combined(crc32c, int(part.tag, 16), part.num_bytes)
        names, level = [f"{number:05}" for number in range(len(parts))], 0
        while len(names) > 1:
            level += 1
            groups = [names[at : at + MAX_SOURCES] for at in range(0, len(names), MAX_SOURCES)]
            names = [f"{level}-{number:05}" for number in range(len(groups))]
            made = [
                *in_parallel(
                    lambda made: self._join(upload, *made), [*zip(names, groups, strict=True)], _NUM_AT_ONCE
                )
            ]
        if made[0][1].get("crc32c") != _spelled(crc32c):
            raise WriteError(
                "the store's checksum is another one than ours",
                str(upload.address),
                "write it again; nothing was replaced",
            )
        try:
            about = self._compose(
                upload.address, [_part(upload, names[0])], upload.label.metadata, _condition(seen)
            )
            version = _found(about).version
        except Conflict:
            found = self.look(upload.address)  # an earlier try may have done it
            if found is None or found.label != upload.label:
                raise
            version = found.version
        with contextlib.suppress(PtsaveError):  # the next writer removes them
            asked(upload.address, lambda: self.abort(upload), _TIDY_S)
        return Stored(version, CRC32C)

    def _join(self, upload: Upload, name: str, sources: Sequence[str]) -> Mapping[str, Any]:
        return self._compose(self._part(upload, name), [_part(upload, source) for source in sources], {}, {})

    def _compose(
        self,
        address: Address,
        sources: Sequence[Address],
        metadata: Mapping[str, str],
        condition: Mapping[str, str],
    ) -> Mapping[str, Any]:
        wanted = {
            "destination": {"contentType": _KIND, "metadata": metadata},
            "sourceObjects": [{"name": source.key} for source in sources],
        }
        try:
            return self._call(
                address,
                "POST",
                f"{path_of(address)}/compose",
                {"fields": _FIELDS, **condition},
                "application/json",
                [json.dumps(wanted).encode()],
            )
        except MissingFileError:
            raise Gone from None

    def _part(self, upload: Upload, name: str) -> Address:
        """Where a part is about to be sent to."""
        self._sent.add(part := _part(upload, name))
        return part

    def abort(self, upload: Upload) -> None:
        of = _part(upload, "")
        parts = {part for part in self._sent if part.key.startswith(of.key)}
        with contextlib.suppress(NotAllowedError):  # who may not list them knows those that were sent here
            parts |= {replace(of, key=f"{of.key}{name}") for name, _ in self._listed(of, of.key)}
        for part, _ in in_parallel(self.remove, sorted(parts, key=str), _NUM_AT_ONCE):
            self._sent.discard(part)

    def abandoned(self, address: Address, own: str, *, is_folder: bool) -> Iterator[Upload]:
        where, name = _parts_of(address) if not is_folder else (f"{prefix_of(address)}{PARTS}/", "")
        for upload in self._begun(address, where, [name] if name else self._folders(address, where)):
            if upload.id != own and (upload.id.endswith(_DATA) or not is_folder):
                yield upload

    def abandoned_in(self, folder: Address, is_name: Callable[[str], bool]) -> Iterator[Upload]:
        where = f"{prefix_of(folder)}{PARTS}/"
        return self._begun(folder, where, filter(is_name, self._folders(folder, where)))

    def _begun(self, address: Address, where: str, names: Iterable[str]) -> Iterator[Upload]:
        """The uploads whose parts are in `where`, of the objects of these names."""
        for name in names:
            of = Address(address.scheme, address.host, f"{where.removesuffix(f'{PARTS}/')}{name}")
            for id in self._folders(address, f"{where}{name}/"):
                if _ID.fullmatch(id):
                    yield Upload(of, id)

    def _folders(self, address: Address, prefix: str) -> list[str]:
        """The names of the folders directly under `prefix`."""
        listed = self._listed(address, prefix, delimiter="/")
        return [name[:-1] for name, _ in listed if name.endswith("/")]

    def remove(self, address: Address, seen: Found | None = None) -> None:
        with contextlib.suppress(MissingFileError):
            self._call(address, "DELETE", path_of(address), None if seen is None else _condition(seen))

    def _crc32c(self, data: bytearray) -> int:
        crc32c = 0
        for at in range(0, len(data), MIB):
            crc32c = self._extend(crc32c, bytes(data[at : at + MIB]))  # it takes nothing that may change
        return crc32c

    def _send(
        self,
        address: Address,
        data: bytearray,
        crc32c: int,
        metadata: Mapping[str, str],
        condition: Mapping[str, str],
    ) -> Mapping[str, Any]:
        """Make `data` an object. Raises: Conflict; Passing; WriteError."""
        about = {"contentType": _KIND, "crc32c": _spelled(crc32c), "metadata": metadata}
        line = f"--{(boundary := os.urandom(16).hex())}"
        head = f"{line}\r\nContent-Type: application/json\r\n\r\n{json.dumps(about)}\r\n"
        head += f"{line}\r\nContent-Type: {_KIND}\r\n\r\n"
        try:
            made = self._call(
                address,
                "POST",
                f"/upload{path_of(replace(address, key=''))}",
                {"uploadType": "multipart", "fields": _FIELDS, **condition, "name": address.key},
                f"multipart/related; boundary={boundary}",
                [head.encode(), data, f"\r\n{line}--\r\n".encode()],
            )
        except MissingFileError:
            raise as_write_error(no_bucket(address)) from None
        if made.get("crc32c") != _spelled(crc32c):
            raise Passing("the bytes were damaged on the way")
        return made

    def _listed(self, address: Address, prefix: str, **options: str) -> Iterator[tuple[str, Found]]:
        """What begins with `prefix`, each by the rest of its name. Raises: Passing; WriteError."""
        wanted = {"prefix": prefix, "fields": "items(name,size,generation),prefixes,nextPageToken", **options}
        while True:
            try:
                page = self._call(address, "GET", path_of(replace(address, key="")), wanted)
            except MissingFileError:
                raise as_write_error(no_bucket(address)) from None
            try:
                for one in page.get("items", ()):
                    yield str(one["name"])[len(prefix) :], _found(one)
                for text in page.get("prefixes", ()):
                    yield str(text)[len(prefix) :], Found(Version(0))
            except (KeyError, TypeError):
                raise Passing("the store's list of objects is not one") from None
            if not page.get("nextPageToken"):
                return
            wanted["pageToken"] = str(page["nextPageToken"])

    def _call(
        self,
        address: Address,
        method: str,
        path: str,
        wanted: Mapping[str, str] | None = None,
        kind: str = "",
        body: Sequence[bytes | bytearray] = (),
    ) -> Mapping[str, Any]:
        """Ask once. Raises: Conflict; MissingFileError for 404; Passing; WriteError."""
        headers = {"Content-Type": kind, "Content-Length": str(sum(map(len, body)))} if body else {}
        right = _RIGHTS[method]
        if method == "GET" and path == path_of(replace(address, key="")):
            right = "list"
        try:
            response = self._store.request(
                address, path, wanted or {}, headers, min(WAIT_S, timeout_s()), method, body
            )
            if method == "DELETE" and response.status in (200, 204):
                response.close()
                return {}
            if response.status not in (200, 400):
                response.close()
                if response.status == 412:
                    raise Conflict
                self._store.refuse(address, response.status, response.headers, right=right)
            about = json_of(response)
            if response.status == 400 and "crc32c" in json.dumps(about).lower():
                raise Passing("the bytes were damaged on the way")
            self._store.refuse(address, response.status, response.headers, right=right)
        except Faulty as faulty:
            raise Passing(faulty.what) from None
        except UnreadableError as error:
            if type(error) is MissingFileError:
                raise
            raise as_write_error(error) from None
        if not isinstance(about, dict):
            raise Passing("the store's answer is not one")
        return about


def combined(first: int, second: int, num_bytes: int) -> int:
    """The CRC-32C of what has `first`, followed by `num_bytes` bytes that have `second`."""
    return _times(_power(num_bytes), first) ^ second


@lru_cache(maxsize=64)
def _power(num_bytes: int) -> int:
    """x to the power of 8 * `num_bytes`, modulo the polynomial; the highest bit is x to the power of 0."""
    power, square = 1 << 31, 1 << 23
    while num_bytes:
        if num_bytes & 1:
            power = _times(power, square)
        square = _times(square, square)
        num_bytes >>= 1
    return power


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo that of CRC-32C. Source: RFC 3720, appendix B.4."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (0x82F63B78 if b & 1 else 0)
    return product


def _spelled(crc32c: int) -> str:
    return b64encode(crc32c.to_bytes(4, "big")).decode()


def _found(about: Mapping[str, Any]) -> Found:
    """What the store says of an object. Raises: Passing."""
    try:
        return Found(
            Version(int(about["size"]), str(about["generation"])), Label.of(about.get("metadata", {}))
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Passing("the store's answer about an object is not one") from None


def _condition(seen: Found | None) -> dict[str, str]:
    return {"ifGenerationMatch": "0" if seen is None else seen.version.tag}


def _parts_of(address: Address) -> tuple[str, str]:
    """Where the parts of all objects of the folder are, and the object's name in it."""
    folder, slash, name = address.key.rpartition("/")
    return f"{folder}{slash}{PARTS}/", name


def _part(upload: Upload, name: str) -> Address:
    where, of = _parts_of(upload.address)
    return replace(upload.address, key=f"{where}{of}/{upload.id}/{name}")
