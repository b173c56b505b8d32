"""What a server answers that asks another: it gives any server a log and faults."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlsplit

from tests.servers.serving import PIECE_BYTES, Answer, CutError, Handler, Request

OF_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}
"""Headers that are of one connection, not of the message. Source: RFC 9110, section 7.6.1."""


def forward(upstream: str) -> Handler:
    """Send each request on to the server at the URL `upstream`, and its answer back.

    The server hears the client's own Host, which signatures are made with.
    """
    port = urlsplit(upstream).port
    assert port is not None

    def answer(request: Request) -> Answer:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.putrequest(
                request.method, request.target, skip_host="host" in request.headers, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name not in OF_A_CONNECTION:
                    connection.putheader(name, value)
            # It is the answer's then, and is closed with it.
            connection.putheader("connection", "close")
            is_chunked = request.body.num_bytes is None
            if is_chunked:
                connection.putheader("transfer-encoding", "chunked")
            connection.endheaders()
            while piece := request.body.read(PIECE_BYTES):
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            if is_chunked:
                connection.send(b"0\r\n\r\n")
            response = connection.getresponse()
        except (CutError, ConnectionError):
            connection.close()
            raise CutError("on the way") from None
        headers = {
            name: value for name, value in response.getheaders() if name.lower() not in OF_A_CONNECTION
        }
        if request.method == "HEAD" or response.status in (204, 304):
            connection.close()
            return Answer(response.status, headers)
        return Answer(response.status, headers, _pieces(connection, response))

    return answer


def _pieces(connection: HTTPConnection, response: HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read(PIECE_BYTES):
            yield piece
    finally:
        response.close()
        connection.close()
