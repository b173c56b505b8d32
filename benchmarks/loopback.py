"""An S3 server that costs next to nothing, so that a row measures its clients: files in, files out.

It speaks what copying needs: ranges, puts, uploads in parts. No signature is checked; an ETag is a number
that grows. The tests use S3 servers of others (`tests/servers/`), whose own work would hide what is measured.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.servers.serving import PIECE_BYTES, Answer, Handler, Request

LOGIN = {
    "AWS_ACCESS_KEY_ID": "AKIABENCHBENCHBENCH0",
    "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-benchmarks",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
"""The environment of clients, less AWS_ENDPOINT_URL."""
MODIFIED = "Sun, 01 Nov 2026 00:00:00 GMT"
_WHOLE = "<IsTruncated>false</IsTruncated>"


@dataclass(frozen=True)
class Object:
    """What is under one name."""

    etag: str
    files: list[Path]
    """Its bytes, one file after the other."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Headers that were sent with it, and go with each answer about it."""

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


@dataclass
class Upload:
    """An object that is sent in parts, and not there yet."""

    path: str
    metadata: dict[str, str]
    parts: dict[int, Object] = field(default_factory=dict)


class S3:
    """Buckets and objects, each object in one file or in one a part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: dict[str, Object] = {}
        """By `/bucket/key`."""
        self._uploads: dict[str, Upload] = {}
        self._numbers = itertools.count(1)

    def add(self, path: str, *files: Path) -> None:
        """Serve `files`, one after the other, as the object `/bucket/key`."""
        self.objects[path] = self._made([*files], {})

    def _made(self, files: list[Path], metadata: dict[str, str]) -> Object:
        return Object(f'"{next(self._numbers):032x}"', files, metadata)

    @property
    def handler(self) -> Handler:
        return self._answer

    def _answer(self, request: Request) -> Answer:
        path, query = request.path, request.query
        if path.count("/") == 1:
            return self._answer_bucket(request)
        if request.method in ("GET", "HEAD"):
            return self._list_parts(query["uploadId"]) if "uploadId" in query else self._read(request)
        if request.method == "PUT" and "uploadId" in query:
            part = self._made([self._receive(request)], {})
            self._uploads[query["uploadId"]].parts[int(query["partNumber"])] = part
            return Answer.of(200, ETag=part.etag)
        if request.method == "PUT":
            made = self._made([self._receive(request)], _metadata(request))
            return self._replace(path, made, request) or Answer.of(200, ETag=made.etag)
        if request.method == "POST" and "uploads" in query:
            name = f"u{next(self._numbers)}"
            self._uploads[name] = Upload(path, _metadata(request))
            return _xml("InitiateMultipartUploadResult", f"<UploadId>{name}</UploadId>")
        if request.method == "POST" and "uploadId" in query:
            return self._complete(query["uploadId"], request)
        if request.method == "DELETE" and "uploadId" in query:
            _remove(self._uploads.pop(query["uploadId"]).parts.values())
            return Answer(204)
        if request.method == "DELETE":
            if path in self.objects and _refused(request, self.objects[path]):
                return Answer.of(412)
            _remove([self.objects.pop(path)] if path in self.objects else [])
            return Answer(204)
        return Answer.of(400)

    def _answer_bucket(self, request: Request) -> Answer:
        if request.method != "GET":
            return Answer.of(200 if request.method == "PUT" else 400)
        return self._list_uploads(request) if "uploads" in request.query else self._list(request)

    def _complete(self, name: str, request: Request) -> Answer:
        """Make the parts that the request lists the object; the others are removed.

        Source: Amazon S3 API Reference, CompleteMultipartUpload.
        """
        upload, files, last = self._uploads[name], [], 0
        for listed in ElementTree.fromstring(request.body.read()).iterfind("{*}Part"):
            number = int(listed.findtext("{*}PartNumber", "0"))
            part = upload.parts.get(number)
            if part is None or number <= last or part.etag != listed.findtext("{*}ETag"):
                return Answer.of(400, b"<Error><Code>InvalidPart</Code></Error>", "application/xml")
            files += part.files
            last = number
        made = self._made(files, upload.metadata)
        refused = self._replace(upload.path, made, request)
        if refused is not None:
            return refused
        _remove(part for part in self._uploads.pop(name).parts.values() if part.files[0] not in files)
        return _xml("CompleteMultipartUploadResult", f"<ETag>{escape(made.etag)}</ETag>")

    def _replace(self, path: str, made: Object, request: Request) -> Answer | None:
        """Give `made` its name; returns the answer where a condition of the request does not hold."""
        old = self.objects.get(path)
        if _refused(request, old):
            return Answer.of(412)
        self.objects[path] = made
        _remove([old] if old is not None else [])
        return None

    def _receive(self, request: Request) -> Path:
        file = self.folder / f"received-{next(self._numbers)}"
        with file.open("wb", buffering=0) as out:
            while piece := request.body.read(PIECE_BYTES):
                out.write(piece)
        return file

    def _read(self, request: Request) -> Answer:
        if request.path not in self.objects:
            body = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
            return Answer.of(404, body, "application/xml")
        found = self.objects[request.path]
        if _refused(request, found):
            return Answer.of(412)
        num_bytes = found.num_bytes
        begin, end = 0, num_bytes
        headers = {"ETag": found.etag, "Accept-Ranges": "bytes", "Last-Modified": MODIFIED} | found.metadata
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted:
            first, last = wanted.groups()
            begin = int(first) if first else max(0, num_bytes - int(last))
            end = min(num_bytes, int(last) + 1) if first and last else num_bytes
            if begin >= end:
                return Answer.of(416, Content_Range=f"bytes */{num_bytes}")
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{num_bytes}"
        headers["Content-Length"] = str(end - begin)
        return Answer(206 if wanted else 200, headers, _pieces(found.files, begin, end))

    def _list(self, request: Request) -> Answer:
        bucket, query = request.path, request.query
        keys = [
            path.removeprefix(bucket + "/") for path in sorted(self.objects) if path.startswith(bucket + "/")
        ]
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        rows, folders = [], set()
        for key in keys:
            if key.startswith(prefix):
                rest = key[len(prefix) :]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                else:
                    found = self.objects[f"{bucket}/{key}"]
                    rows.append(
                        f"<Contents><Key>{key}</Key><Size>{found.num_bytes}</Size><ETag>{found.etag}</ETag>"
                        "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
                    )
        rows += [f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        return _xml("ListBucketResult", f"<KeyCount>{len(rows)}</KeyCount>{_WHOLE}{''.join(rows)}")

    def _list_uploads(self, request: Request) -> Answer:
        prefix = f"{request.path}/{request.query.get('prefix', '')}"
        rows = [
            f"<Upload><Key>{upload.path.split('/', 2)[2]}</Key><UploadId>{name}</UploadId></Upload>"
            for name, upload in [*self._uploads.items()]
            if upload.path.startswith(prefix)
        ]
        return _xml("ListMultipartUploadsResult", _WHOLE + "".join(rows))

    def _list_parts(self, name: str) -> Answer:
        rows = [
            f"<Part><PartNumber>{number}</PartNumber><ETag>{part.etag}</ETag>"
            f"<Size>{part.num_bytes}</Size></Part>"
            for number, part in sorted(self._uploads[name].parts.items())
        ]
        return _xml("ListPartsResult", _WHOLE + "".join(rows))


def _metadata(request: Request) -> dict[str, str]:
    return {name: text for name, text in request.headers.items() if name.startswith("x-amz-meta-")}


def _refused(request: Request, found: Object | None) -> bool:
    """Whether a condition of `request` does not hold for what is there."""
    wanted = request.headers.get("if-match")
    if wanted is not None and (found is None or found.etag != wanted):
        return True
    return found is not None and request.headers.get("if-none-match") == "*"


def _remove(objects: Iterable[Object]) -> None:
    for file in [file for one in objects for file in one.files]:
        file.unlink(missing_ok=True)


def _xml(name: str, text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{text}</{name}>'
    return Answer.of(200, body.encode(), "application/xml")


def _pieces(files: list[Path], begin: int, end: int) -> Iterator[bytes]:
    for path in files:
        num_bytes = path.stat().st_size
        if begin < num_bytes and end > 0:
            with path.open("rb", buffering=0) as file:
                yield from _window(file, max(0, begin), min(num_bytes, end))
        begin, end = begin - num_bytes, end - num_bytes


def _window(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end and (piece := file.read(min(PIECE_BYTES, end - begin))):
        begin += len(piece)
        yield piece
