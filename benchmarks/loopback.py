"""An S3 server that costs next to nothing, so that a row measures its clients: files in, files out.

It speaks what copying needs: ranges, puts, uploads in parts. No signature is checked; an ETag is a number
that grows. The tests use S3 servers of others (`tests/servers/`), whose own work would hide what is measured.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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


class S3:
    """Buckets and objects, each object in one file or in one a part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: dict[str, tuple[str, list[Path]]] = {}
        """By `/bucket/key`: the ETag and the files."""
        self._uploads: dict[str, dict[int, Path]] = {}
        self._numbers = itertools.count(1)

    def add(self, path: str, *files: Path) -> None:
        """Serve `files`, one after the other, as the object `/bucket/key`."""
        self.objects[path] = f'"{next(self._numbers):032x}"', list(files)

    @property
    def handler(self) -> Handler:
        return self._answer

    def _answer(self, request: Request) -> Answer:
        path, query = request.path, request.query
        if request.method in ("GET", "HEAD"):
            return self._list(path, query) if path.count("/") == 1 else self._read(request)
        if request.method == "PUT":
            if path.count("/") == 1:
                return Answer.of(200)
            file = self._receive(request)
            if "uploadId" in query:
                self._uploads[query["uploadId"]][int(query["partNumber"])] = file
                return Answer.of(200, ETag=f'"{next(self._numbers):032x}"')
            return self._replace(path, [file], request)
        if request.method == "POST" and "uploads" in query:
            upload = f"u{next(self._numbers)}"
            self._uploads[upload] = {}
            return _xml(
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
        if request.method == "POST" and "uploadId" in query:
            parts = self._uploads.pop(query["uploadId"])
            return self._replace(path, [parts[number] for number in sorted(parts)], request)
        if request.method == "DELETE":
            gone = self._uploads.pop(query.get("uploadId", ""), {}).values()
            for file in gone or self.objects.pop(path, ("", []))[1]:
                file.unlink(missing_ok=True)
            return Answer(204)
        return Answer.of(400)

    def _replace(self, path: str, files: list[Path], request: Request) -> Answer:
        if request.headers.get("if-none-match") == "*" and path in self.objects:
            return Answer.of(412)
        for file in self.objects.pop(path, ("", []))[1]:
            file.unlink(missing_ok=True)
        self.add(path, *files)
        etag = self.objects[path][0]
        if request.method == "PUT":
            return Answer.of(200, ETag=etag)
        return _xml(f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>")

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
        etag, files = self.objects[request.path]
        if request.headers.get("if-match", etag) != etag:
            return Answer.of(412)
        num_bytes = sum(file.stat().st_size for file in files)
        begin, end = 0, num_bytes
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted:
            first, last = wanted.groups()
            begin = int(first) if first else max(0, num_bytes - int(last))
            end = min(num_bytes, int(last) + 1) if first and last else num_bytes
            if begin >= end:
                return Answer.of(416, Content_Range=f"bytes */{num_bytes}")
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{num_bytes}"
        headers["Content-Length"] = str(end - begin)
        return Answer(206 if wanted else 200, headers, _pieces(files, begin, end))

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
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
                    etag, files = self.objects[f"{bucket}/{key}"]
                    size = sum(file.stat().st_size for file in files)
                    rows.append(
                        f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag>"
                        "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
                    )
        rows += [f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        told = f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>false</IsTruncated>"
        return _xml(f"<ListBucketResult>{told}{''.join(rows)}</ListBucketResult>")


def _xml(text: str) -> Answer:
    return Answer.of(200, b'<?xml version="1.0" encoding="UTF-8"?>' + text.encode(), "application/xml")


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
