"""What an http server answers that serves the files of a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

from tests.servers.serving import PIECE_BYTES, Answer, Handler, Request


def folder(root: Path) -> Handler:
    """GET and HEAD of the files under `root`: ranges from both ends, ETag, If-Match, If-Range.

    Source: RFC 9110, sections 13 (conditional requests) and 14 (ranges).
    """

    def answer(request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return Answer.of(405, Allow="GET, HEAD")
        path = root / request.path.lstrip("/")
        if ".." in request.path.split("/") or not path.is_file():
            return Answer.of(404, b"not found\n")
        status = path.stat()
        etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": etag,
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if request.headers.get("if-match", etag) not in (etag, "*"):
            return Answer.of(412, ETag=etag)
        begin, end = 0, status.st_size
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted and wanted.group() != "bytes=-" and request.headers.get("if-range", etag) == etag:
            begin, end = _range(wanted, status.st_size)
            if begin >= end:
                return Answer.of(416, Content_Range=f"bytes */{status.st_size}")
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{status.st_size}"
        headers["Content-Length"] = str(end - begin)
        return Answer(206 if "Content-Range" in headers else 200, headers, _pieces(path, begin, end))

    return answer


def _range(wanted: re.Match[str], num_bytes: int) -> tuple[int, int]:
    first, last = wanted.groups()
    if not first:
        return max(0, num_bytes - int(last)), num_bytes
    return int(first), min(num_bytes, int(last) + 1 if last else num_bytes)


def _pieces(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (piece := file.read(min(PIECE_BYTES, end - begin))):
            begin += len(piece)
            yield piece
