"""The servers of the tests do what their faults say."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.servers import faults
from tests.servers.folders import folder
from tests.servers.forwarding import forward
from tests.servers.serving import Server

DATA = bytes(range(256)) * 40


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "a.bin").write_bytes(DATA)
    with Server(folder(tmp_path)) as server:
        yield server


def ask(
    url: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: the status, the headers by lower-case name, the body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request(method, parts.path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_ranges(site: Server) -> None:
    whole = ask(site.url + "/a.bin")
    assert whole[0] == 200
    assert whole[2] == DATA
    status, headers, body = ask(site.url + "/a.bin", Range="bytes=10-19")
    assert (status, body) == (206, DATA[10:20])
    assert headers["content-range"] == f"bytes 10-19/{len(DATA)}"
    assert headers["etag"] == whole[1]["etag"]
    assert parsedate_to_datetime(headers["last-modified"])
    assert ask(site.url + "/a.bin", Range="bytes=-7")[2] == DATA[-7:]
    assert ask(site.url + "/a.bin", Range="bytes=10000-")[2] == DATA[10000:]
    assert ask(site.url + "/a.bin", Range="bytes=20000-20001")[0] == 416
    assert ask(site.url + "/a.bin", If_Match='"other"')[0] == 412
    assert ask(site.url + "/a.bin", Range="bytes=0-1", If_Range='"other"')[0] == 200
    assert ask(site.url + "/a.bin", "HEAD")[1]["content-length"] == str(len(DATA))
    assert ask(site.url + "/b.bin")[0] == 404
    assert ask(site.url + "/../a.bin")[0] == 404


def test_what_is_counted(site: Server) -> None:
    ask(site.url + "/a.bin", Range="bytes=10-19")
    ask(site.url + "/a.bin", "HEAD")
    assert (site.count(), site.count("^GET"), site.num_bytes_out) == (2, 1, 10)
    assert [exchange.headers.get("range") for exchange in site.log] == ["bytes=10-19", None]
    site.reset()
    assert site.count() == 0


def test_a_kept_connection(site: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port)
    for _ in range(3):
        connection.request("GET", "/a.bin", b"a body that nobody reads")
        assert connection.getresponse().read() == DATA
    connection.close()
    assert site.num_bytes_in == 3 * 24


def test_statuses_in_bursts(site: Server) -> None:
    with site.faulty(faults.status(503, Retry_After="1"), on="GET /a", times=2):
        answers = [ask(site.url + "/a.bin") for _ in range(3)]
    assert [status for status, _, _ in answers] == [503, 503, 200]
    assert answers[0][1]["retry-after"] == "1"


@pytest.mark.parametrize("num_bytes", [0, 1, 5000, len(DATA) - 1])
def test_cut(site: Server, num_bytes: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port)
    with site.faulty(faults.cut(num_bytes)):
        connection.request("GET", "/a.bin")
        answer = connection.getresponse()
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            answer.read()
    answer.close()
    connection.close()
    assert site.num_bytes_out == num_bytes


def test_wrong_lengths(site: Server) -> None:
    with site.faulty(faults.short_body(10)):
        assert ask(site.url + "/a.bin")[2] == DATA[:-10]
    with site.faulty(faults.long_body(10)):
        assert ask(site.url + "/a.bin")[2] == DATA + bytes(10)
    with site.faulty(faults.content_length(lambda n: n + 1)), pytest.raises(http.client.IncompleteRead):
        ask(site.url + "/a.bin")
    with site.faulty(faults.content_length(lambda n: n - 1)):
        assert ask(site.url + "/a.bin")[2] == DATA[:-1]
    with site.faulty(faults.no_ranges()):
        assert ask(site.url + "/a.bin", Range="bytes=10-19")[::2] == (200, DATA)
    with site.faulty(faults.header("Content-Range", "bytes 0-9/99")):
        assert ask(site.url + "/a.bin", Range="bytes=10-19")[1]["content-range"] == "bytes 0-9/99"


def test_another_version(site: Server, tmp_path: Path) -> None:
    with site.faulty(faults.changing_etag()):
        etags = {ask(site.url + "/a.bin", Range=f"bytes={n}-{n}")[1]["etag"] for n in range(3)}
    assert len(etags) == 3
    path = tmp_path / "a.bin"
    with site.faulty(faults.replaced(lambda: path.write_bytes(bytes(9)), after_requests=1)):
        assert [len(ask(site.url + "/a.bin")[2]) for _ in range(3)] == [len(DATA), 9, 9]


def test_slowness(site: Server) -> None:
    begin = time.monotonic()
    with site.faulty(faults.delay(0.05)):
        ask(site.url + "/a.bin")
    assert time.monotonic() - begin >= 0.05
    with site.faulty(faults.drip(1000, 0.01)):
        assert ask(site.url + "/a.bin")[2] == DATA
    assert site.log[-1].end_s - site.log[-1].begin_s >= 0.1


def test_redirects_and_endless_bodies(site: Server) -> None:
    with Server(folder(Path("/nowhere"))) as other, site.faulty(faults.redirect(other.url, 302)):
        status, headers, _ = ask(site.url + "/a.bin")
        assert (status, headers["location"]) == (302, other.url + "/a.bin")
    connection = http.client.HTTPConnection("127.0.0.1", site.port)
    with site.faulty(faults.endless()):
        connection.request("GET", "/a.bin")
        answer = connection.getresponse()
        assert len(answer.read(3 << 20)) == 3 << 20
    answer.close()
    connection.close()


def test_one_server_in_front_of_another(site: Server) -> None:
    with Server(forward(site.url)) as front:
        assert ask(front.url + "/a.bin", Range="bytes=10-19")[::2] == (206, DATA[10:20])
        assert ask(front.url + "/a.bin", "HEAD")[1]["content-length"] == str(len(DATA))
        with front.faulty(faults.no_answer()), pytest.raises(ConnectionResetError):
            ask(front.url + "/a.bin")
        assert site.count() == 2
        with front.faulty(faults.lost_answer()), pytest.raises(ConnectionResetError):
            ask(front.url + "/a.bin", "PUT", bytes(5 << 20))
        assert site.count("PUT") == 1
        assert (front.num_bytes_in, site.num_bytes_in) == (5 << 20, 5 << 20)
        with front.faulty(faults.cut_request(100_000)), pytest.raises(ConnectionError):
            ask(front.url + "/a.bin", "PUT", bytes(5 << 20))
        give_up = time.monotonic() + 30
        while site.count("PUT") < 2 and time.monotonic() < give_up:  # the client is told before the site is
            time.sleep(0.01)
    assert site.count("PUT") == 2
    assert site.log[-1].num_bytes_in <= 100_000
    assert hashlib.sha256(ask(site.url + "/a.bin")[2]).digest() == hashlib.sha256(DATA).digest()
