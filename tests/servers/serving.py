"""An http server in this process that counts what it answers, and whose faults are set while it runs.

    with Server(folder(root)) as server:
        with server.faulty(status(503, retry_after_s=1), on="GET /a", times=2):
            fetch(server.url + "/a")
        assert [exchange.status for exchange in server.log] == [503, 503, 200]

What a server answers is a function of a request: `tests.servers.folders.folder` reads files,
`tests.servers.forwarding.forward` asks another server. A fault stands between the two: see
`tests.servers.faults`.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

PIECE_BYTES = 1 << 18


class CutError(Exception):
    """The connection is closed here, with a reset, whatever was still to come."""


@dataclass
class Request:
    """A request; its body is read from the connection as far as somebody reads it."""

    method: str
    target: str
    """The path and the query, as they were sent."""
    headers: dict[str, str]
    """By lower-case name."""
    body: BodyReader

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        pairs = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {key: values[-1] for key, values in pairs.items()}


@dataclass
class Answer:
    """An answer: `body` is sent piece by piece. Without a Content-Length it is sent in chunks."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Iterable[bytes] = ()

    @classmethod
    def of(cls, status: int, body: bytes = b"", content_type: str = "text/plain", **headers: str) -> Answer:
        """An answer of `body`, with its length; `_` in the name of a header stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        lengths = {"Content-Type": content_type, "Content-Length": str(len(body))}
        return cls(status, lengths | named, [body])


Handler = Callable[[Request], Answer]
Fault = Callable[[Request, Handler], Answer]


@dataclass
class Exchange:
    """What passed for one request."""

    method: str
    target: str
    headers: dict[str, str]
    status: int = 0
    """0 when the connection was cut before there was one."""
    num_bytes_in: int = 0
    num_bytes_out: int = 0
    """Of the bodies alone."""
    begin_s: float = 0.0
    end_s: float = 0.0


class Server:
    """Answers on a free port of 127.0.0.1 while it is entered, each connection in a thread of its own."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.log: list[Exchange] = []
        self.errors: list[BaseException] = []
        self.lock = threading.Lock()
        self._faults: list[Fault] = []
        self._connections: set[socket.socket] = set()
        self._listener = _Listener(("127.0.0.1", 0), _Connection)
        self._listener.server = self
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()
        with self.lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self.errors and error is None:
            raise self.errors[0]

    def reset(self) -> None:
        """Forget what was logged, and every fault."""
        with self.lock:
            self.log.clear()
            self._faults.clear()

    @contextmanager
    def faulty(self, *faults: Fault, on: str = "", times: int | None = None) -> Iterator[None]:
        """Let `faults` happen to requests whose `METHOD target` matches the regular expression `on`.

        `times` is how often each happens; None is always. The first fault is outermost.
        """
        limited = [_limited(fault, re.compile(on), times, self.lock) for fault in faults]
        with self.lock:
            self._faults += limited
        try:
            yield
        finally:
            with self.lock:
                self._faults = [fault for fault in self._faults if fault not in limited]

    def count(self, on: str = "") -> int:
        """How many requests' `METHOD target` match the regular expression `on`."""
        with self.lock:
            return sum(bool(re.search(on, f"{exchange.method} {exchange.target}")) for exchange in self.log)

    @property
    def num_bytes_out(self) -> int:
        """Bytes of the bodies of all answers."""
        with self.lock:
            return sum(exchange.num_bytes_out for exchange in self.log)

    @property
    def num_bytes_in(self) -> int:
        """Bytes of the bodies of all requests."""
        with self.lock:
            return sum(exchange.num_bytes_in for exchange in self.log)

    def answer(self, request: Request) -> Answer:
        """What the faults let through of the handler's answer."""
        handler = self.handler
        with self.lock:
            faults = list(self._faults)
        for fault in reversed(faults):
            handler = _behind(fault, handler)
        return handler(request)


def _behind(fault: Fault, handler: Handler) -> Handler:
    return lambda request: fault(request, handler)


def _limited(fault: Fault, on: re.Pattern[str], times: int | None, lock: threading.Lock) -> Fault:
    num_left = times

    def limited(request: Request, handler: Handler) -> Answer:
        nonlocal num_left
        if not on.search(f"{request.method} {request.target}"):
            return handler(request)
        with lock:
            is_over = num_left == 0
            if num_left:
                num_left -= 1
        return handler(request) if is_over else fault(request, handler)

    return limited


class BodyReader(Protocol):
    """Reads the body of a request."""

    num_bytes: int | None
    """How many there are; None when they come in chunks."""

    def read(self, num_bytes: int = -1) -> bytes:
        """At most `num_bytes` more, or all; b"" at the end."""
        ...


class _Body:
    """The body of a request, of a known length or in chunks.

    Source: RFC 9112, section 7.1.
    """

    def __init__(self, file: BufferedIOBase, num_bytes: int | None, exchange: Exchange) -> None:
        self.num_bytes = num_bytes
        self._file = file
        self._exchange = exchange
        self._num_left = num_bytes or 0
        self._is_chunked = num_bytes is None
        self._is_first = True

    def read(self, num_bytes: int = -1) -> bytes:
        if num_bytes < 0:
            return b"".join(iter(lambda: self.read(PIECE_BYTES), b""))
        if self._is_chunked and not self._num_left:
            self._next_chunk()
        piece = self._file.read(min(num_bytes, self._num_left, PIECE_BYTES)) if self._num_left else b""
        if self._num_left and not piece:
            raise CutError("the client left in the middle of a body")
        self._num_left -= len(piece)
        self._exchange.num_bytes_in += len(piece)
        return piece

    def _next_chunk(self) -> None:
        if not self._is_first:
            self._file.readline()
        self._is_first = False
        line = self._file.readline()
        if not line:
            raise CutError("the client left in the middle of a body")
        self._num_left = int(line.split(b";")[0], 16)
        if not self._num_left:
            self._is_chunked = False
            while self._file.readline().strip():
                pass


class _Listener(ThreadingHTTPServer):
    server: Server
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: `_Connection.handle` keeps errors for the end of the server."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120

    def handle(self) -> None:
        assert isinstance(self.server, _Listener)
        server = self.server.server
        with server.lock:
            server._connections.add(self.connection)
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client left, as clients do
        except Exception as error:
            with server.lock:
                server.errors.append(error)
        finally:
            with server.lock:
                server._connections.discard(self.connection)

    def serve(self) -> None:
        assert isinstance(self.server, _Listener)
        server = self.server.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        exchange = Exchange(self.command, self.path, headers, begin_s=time.monotonic())
        is_chunked = "chunked" in headers.get("transfer-encoding", "")
        body = _Body(self.rfile, None if is_chunked else int(headers.get("content-length", 0)), exchange)
        with server.lock:
            server.log.append(exchange)
        try:
            answer = server.answer(Request(self.command, self.path, headers, body))
            exchange.status = answer.status
            exchange.end_s = time.monotonic()
            while body.read(PIECE_BYTES):
                pass  # what nobody read stands before the next request
            self._send(answer, exchange)
        except CutError:
            self._cut()

    def __getattr__(self, name: str) -> Callable[[], None]:
        """`do_GET`, `do_PUT`, … all serve."""
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)

    def _send(self, answer: Answer, exchange: Exchange) -> None:
        has_body = exchange.method != "HEAD" and answer.status not in (204, 304)
        length = next((int(v) for k, v in answer.headers.items() if k.lower() == "content-length"), None)
        is_chunked = has_body and length is None
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines += ["Transfer-Encoding: chunked"] if is_chunked else []
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        if has_body:
            for piece in answer.body:
                if piece:
                    exchange.num_bytes_out += len(piece)  # before the client can know
                    exchange.end_s = time.monotonic()
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif has_body and exchange.num_bytes_out != length:
            self.close_connection = True  # nobody could tell where the next answer begins

    def _cut(self) -> None:
        """Close with a reset, so that the client cannot take it for the end of the body."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: `Server.log` has it."""
