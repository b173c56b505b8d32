"""What can go wrong between a client and a server: each is a function to give to `Server.faulty`."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from tests.servers.serving import PIECE_BYTES, Answer, BodyReader, CutError, Fault, Handler, Request


def delay(seconds: float) -> Fault:
    """Each answer begins `seconds` later."""

    def fault(request: Request, handler: Handler) -> Answer:
        time.sleep(seconds)
        return handler(request)

    return fault


def status(code: int, body: bytes = b"", content_type: str = "text/plain", **headers: str) -> Fault:
    """The server answers `code` and does nothing else: `status(503, Retry_After="1")`."""
    return lambda request, handler: Answer.of(code, body, content_type, **headers)


def s3_error(code: int, name: str, **headers: str) -> Fault:
    """An S3 server answers with an error: `s3_error(503, "SlowDown")`, `s3_error(403, "ExpiredToken")`.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
    """
    body = f'<?xml version="1.0"?><Error><Code>{name}</Code><Message>{name}</Message></Error>'
    return status(code, body.encode(), "application/xml", **headers)


def no_answer() -> Fault:
    """The connection is reset before anything is done."""

    def fault(request: Request, handler: Handler) -> Answer:
        raise CutError("before the answer")

    return fault


def lost_answer() -> Fault:
    """What was asked is done, but the connection is reset before the client hears of it."""

    def fault(request: Request, handler: Handler) -> Answer:
        for _ in handler(request).body:
            pass
        raise CutError("instead of the answer")

    return fault


def silence(seconds: float) -> Fault:
    """What was asked is done, the client hears nothing for `seconds`, and then the connection is reset."""

    def fault(request: Request, handler: Handler) -> Answer:
        for _ in handler(request).body:
            pass
        time.sleep(seconds)
        raise CutError("after the silence")

    return fault


def cut(after_bytes: int) -> Fault:
    """The connection is reset after `after_bytes` of each body; shorter bodies pass."""

    def cutting(body: Iterable[bytes]) -> Iterator[bytes]:
        num_left = after_bytes
        for piece in body:
            yield piece[:num_left]
            num_left -= len(piece)
            if num_left < 0:
                raise CutError(f"after {after_bytes} bytes")

    return _with_body(cutting)


def cut_request(after_bytes: int) -> Fault:
    """The server reads `after_bytes` of each request's body and resets the connection; shorter ones pass."""

    def fault(request: Request, handler: Handler) -> Answer:
        return handler(replace(request, body=_CutBody(request.body, after_bytes)))

    return fault


class _CutBody:
    def __init__(self, body: BodyReader, after_bytes: int) -> None:
        self.num_bytes = body.num_bytes
        self._body = body
        self._num_left = after_bytes

    def read(self, num_bytes: int = -1) -> bytes:
        if num_bytes < 0:
            return b"".join(iter(lambda: self.read(PIECE_BYTES), b""))
        piece = self._body.read(min(num_bytes, self._num_left + 1))
        self._num_left -= len(piece)
        if self._num_left < 0:
            raise CutError("in the middle of the request")
        return piece


def drip(piece_bytes: int, pause_s: float) -> Fault:
    """Bodies come in pieces of `piece_bytes`, with a pause before each."""

    def dripping(body: Iterable[bytes]) -> Iterator[bytes]:
        for piece in body:
            for begin in range(0, len(piece), piece_bytes):
                time.sleep(pause_s)
                yield piece[begin : begin + piece_bytes]

    return _with_body(dripping)


def short_body(by_bytes: int) -> Fault:
    """Each body ends `by_bytes` early, and Content-Length agrees with what is sent."""
    return body(lambda sent: sent[: max(0, len(sent) - by_bytes)])


def long_body(by_bytes: int) -> Fault:
    """Each body goes on for `by_bytes` of zeros, and Content-Length agrees with what is sent."""
    return body(lambda sent: sent + bytes(by_bytes))


def body(of: Callable[[bytes], bytes]) -> Fault:
    """Each body is `of(itself)`, and Content-Length agrees with what is sent."""

    def fault(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        sent = of(b"".join(answer.body))
        return Answer(answer.status, _changed(answer.headers, "Content-Length", str(len(sent))), [sent])

    return fault


def content_length(of: Callable[[int], int]) -> Fault:
    """Content-Length says `of(its value)`; the body stays: `content_length(lambda n: n + 10)`."""

    def fault(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        length = int(_header(answer.headers, "Content-Length") or 0)
        return replace(answer, headers=_changed(answer.headers, "Content-Length", str(of(length))))

    return fault


def header(name: str, value: str | Callable[[str | None], str | None] | None) -> Fault:
    """A header of each answer says `value`, or what `value` makes of it; None leaves it out.

    `header("Content-Range", "bytes 0-9/10")`, `header("ETag", '"other"')`.
    """

    def fault(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        given = value(_header(answer.headers, name)) if callable(value) else value
        return replace(answer, headers=_changed(answer.headers, name, given))

    return fault


def changing_etag() -> Fault:
    """Each answer names another ETag, as if the object had just been replaced."""
    numbers, lock = itertools.count(), threading.Lock()

    def another(_: str | None) -> str:
        with lock:
            return f'"{next(numbers):032x}"'

    return header("ETag", another)


def no_ranges() -> Fault:
    """The server answers a request of a range with 200 and the whole body."""

    def fault(request: Request, handler: Handler) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name != "range"}
        answer = handler(replace(request, headers=headers))
        return replace(answer, headers=_changed(answer.headers, "Accept-Ranges", None))

    return fault


def redirect(to: str, code: int = 307) -> Fault:
    """The server sends the client to `to`, the URL of another server, for the same target."""
    return lambda request, handler: Answer.of(code, Location=to + request.target)


def endless() -> Fault:
    """The body never ends; there is no Content-Length."""

    def fault(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        headers = _changed(answer.headers, "Content-Length", None)
        return Answer(
            answer.status, headers, itertools.chain(answer.body, itertools.repeat(bytes(PIECE_BYTES)))
        )

    return fault


def replaced(path_replaces: Callable[[], object], after_requests: int) -> Fault:
    """Before the request that follows `after_requests` others, `path_replaces()` is called, once."""
    numbers, lock = itertools.count(), threading.Lock()

    def fault(request: Request, handler: Handler) -> Answer:
        with lock:
            if next(numbers) == after_requests:
                path_replaces()
        return handler(request)

    return fault


def _with_body(change: Callable[[Iterable[bytes]], Iterator[bytes]]) -> Fault:
    def fault(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        return replace(answer, body=change(answer.body))

    return fault


def _header(headers: dict[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name.lower()), None)


def _changed(headers: dict[str, str], name: str, value: str | None) -> dict[str, str]:
    others = {key: given for key, given in headers.items() if key.lower() != name.lower()}
    return others if value is None else others | {name: value}
