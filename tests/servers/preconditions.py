"""Generation preconditions in front of fake-gcs-server, which checks them in uploads of one request alone.

Source: https://cloud.google.com/storage/docs/request-preconditions. Google's server refuses a resumable
upload whose precondition does not hold when the session begins, or when its last byte has come.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from http.client import HTTPConnection
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.servers.serving import Answer, Handler, Request

Object = tuple[str, str]
"""A bucket and a name."""

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)(/compose)?")
UPLOAD = re.compile(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o")


def with_preconditions(handler: Handler, url: str) -> Handler:
    """Answer 412 where `ifGenerationMatch` does not hold for what the server at `url` has.

    Writes pass one at a time: nothing comes between the look and the write.
    """
    wanted_of: dict[str, tuple[Object, str]] = {}  # sessions of resumable uploads
    writes = threading.Lock()

    def answer(request: Request) -> Answer:
        if request.method in ("GET", "HEAD"):
            return checked(request, _object(request), request.query.get("ifGenerationMatch"))
        session = request.query.get("upload_id")
        with writes:
            if session is None:
                if request.query.get("uploadType") == "resumable":
                    return begun(request)
                return checked(request, _object(request), request.query.get("ifGenerationMatch"))
            if _is_last(request.headers.get("content-range", "")):
                of, wanted = wanted_of.get(session, (None, None))
                given = checked(request, of, wanted)
                if given.status < 300:
                    wanted_of.pop(session, None)  # whoever did not hear of it may ask again
                return given
        return handler(request)

    def begun(request: Request) -> Answer:
        body = request.body.read()
        name = request.query.get("name") or json.loads(body or b"{}").get("name", "")
        match = UPLOAD.fullmatch(request.path)
        assert match, request.target
        wanted = request.query.get("ifGenerationMatch")
        given = checked(replace(request, body=_Read(body)), (match[1], name), wanted)
        location = next((value for key, value in given.headers.items() if key.lower() == "location"), None)
        if location and wanted is not None:
            wanted_of[parse_qs(urlsplit(location).query)["upload_id"][0]] = (match[1], name), wanted
        return given

    def checked(request: Request, of: Object | None, wanted: str | None) -> Answer:
        if of is not None and wanted is not None and wanted != (found := _generation(url, of)):
            message = f"ifGenerationMatch is {wanted}, the generation {found}"
            error = {"code": 412, "message": message, "errors": [{"reason": "conditionNotMet"}]}
            return Answer.of(412, json.dumps({"error": error}).encode(), "application/json")
        given = handler(request)
        if given.status == 500 and request.path.endswith(
            "/compose"
        ):  # Google's says that a source is missing
            return Answer.of(404, b'{"error": {"code": 404}}', "application/json")
        return given

    return answer


def _object(request: Request) -> Object | None:
    match = OBJECT.fullmatch(urlsplit(request.target).path)
    return (unquote(match[1]), unquote(match[2])) if match else None


def _is_last(content_range: str) -> bool:
    """Whether an upload is whole with this request, as far as it can tell: `bytes 10-19/20`, `bytes */20`."""
    match = re.fullmatch(r"bytes (?:\d+-(\d+)|\*)/(\d+)", content_range)
    return not content_range or bool(match and (match[1] is None or int(match[1]) + 1 == int(match[2])))


def _generation(url: str, of: Object) -> str:
    connection = HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=60)
    try:
        connection.request("GET", f"/storage/v1/b/{quote(of[0], safe='')}/o/{quote(of[1], safe='')}")
        response = connection.getresponse()
        body = response.read()
        return str(json.loads(body)["generation"]) if response.status == 200 else "0"
    finally:
        connection.close()


class _Read:
    """The body of a request that was read already."""

    def __init__(self, body: bytes) -> None:
        self.num_bytes: int | None = len(body)
        self._left = body

    def read(self, num_bytes: int = -1) -> bytes:
        end = len(self._left) if num_bytes < 0 else num_bytes
        piece, self._left = self._left[:end], self._left[end:]
        return piece
