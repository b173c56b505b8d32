"""Files on a web server that counts what it is asked, and fails as servers fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ptsave.core.address import Address, located
from ptsave.errors import CorruptError, LimitError, MissingFileError, PtsaveError, UnreadableError, UsageError
from ptsave.storage.opening import open_file
from ptsave.storage.remote import file as remote_file
from tests.servers import faults
from tests.servers.folders import folder
from tests.servers.serving import Answer, Handler, Request, Server

DATA = bytes(range(256)) * 1024  # 256 KiB
BLOCK = remote_file.BLOCK_BYTES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(DATA)
    (tmp_path / "short.bin").write_bytes(b"abc")
    (tmp_path / "empty.bin").write_bytes(b"")
    return tmp_path


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with Server(folder(root)) as running:
        yield running


def address_of(server: Server, name: str = "a.bin", *, user: str = "", query: str = "") -> Address:
    found = located(f"http://{user}{'@' if user else ''}127.0.0.1:{server.port}/{name}{query}")
    assert isinstance(found, Address)
    return found


def read_whole(address: Address) -> bytes:
    with open_file(address) as file:
        return file.read_at(0, file.size_bytes)


def ranges(server: Server) -> list[str]:
    return [exchange.headers.get("range", "") for exchange in server.log]


def test_one_request_opens_a_file_and_reads_its_beginning(server: Server) -> None:
    with open_file(address_of(server)) as file:
        assert (file.size_bytes, file.fd, file.is_remote) == (len(DATA), -1, True)
        assert file.read_at(10, 20) == DATA[10:30]
        assert ranges(server) == [f"bytes=0-{BLOCK - 1}"]


def test_what_goes_on_after_the_first_block_is_asked_for_from_there(server: Server) -> None:
    with open_file(address_of(server)) as file:
        assert file.read_at(8, 100_000) == DATA[8:100_008]
    assert ranges(server)[1:] == [f"bytes={BLOCK}-100007"]
    assert server.log[1].headers["if-match"].startswith('"')
    assert server.num_bytes_out == 100_008


def test_the_end_is_read_once(server: Server) -> None:
    with open_file(address_of(server)) as file:
        for back in (22, 98, 1000, 20_000):
            assert file.read_at(len(DATA) - back, back) == DATA[-back:]
    assert ranges(server)[1:] == [f"bytes={len(DATA) - BLOCK}-{len(DATA) - 1}"]


@pytest.mark.parametrize(("name", "data"), [("short.bin", b"abc"), ("empty.bin", b"")])
def test_short_files(name: str, data: bytes, server: Server) -> None:
    assert read_whole(address_of(server, name)) == data
    assert len(server.log) == 1


def test_what_is_expected_comes_in_joined_ranges(server: Server) -> None:
    wanted = [(40_000, 1000), (42_000, 1000), (200_000, 5000)]
    with open_file(address_of(server)) as file:
        file.expect(wanted)
        for offset, size in wanted:
            buffer = bytearray(size)
            file.read_into(offset, memoryview(buffer))
            assert buffer == DATA[offset : offset + size]
    assert sorted(ranges(server)[1:]) == ["bytes=200000-204999", "bytes=40000-42999"]


@pytest.mark.parametrize(
    "fault",
    [
        faults.status(503),
        faults.status(503, Retry_After="0"),
        faults.status(429),
        faults.status(500),
        faults.no_answer(),
        faults.cut(0),
        faults.cut(1),
        faults.cut(12_345),
        faults.short_body(100),
        faults.content_length(lambda n: n + 10),
    ],
)
@pytest.mark.parametrize("skipped", [0, 1])
def test_what_passes_is_tried_again(fault: faults.Fault, skipped: int, server: Server) -> None:
    with server.faulty(_after(skipped, fault, times=2)):
        assert read_whole(address_of(server)) == DATA


def _after(skipped: int, fault: faults.Fault, times: int) -> faults.Fault:
    numbers = iter(range(10**6))

    def later(request: Request, handler: Handler) -> Answer:
        return fault(request, handler) if skipped <= next(numbers) < skipped + times else handler(request)

    return later


def test_a_connection_that_is_cut_everywhere_is_gone_on_with(server: Server) -> None:
    """No byte that came is asked for twice."""
    with server.faulty(faults.cut(10_000)):
        assert read_whole(address_of(server)) == DATA
    assert server.num_bytes_out < len(DATA) + 30 * 300_000


def test_a_busy_server_is_obeyed(server: Server) -> None:
    begin = time.monotonic()
    with server.faulty(faults.status(503, Retry_After="1"), times=1):
        assert read_whole(address_of(server, "short.bin")) == b"abc"
    assert time.monotonic() - begin >= 1


def test_a_deadline_holds_for_silence_drips_and_refusals(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTSAVE_TIMEOUT", "0.5")
    for fault in (
        faults.delay(5),
        faults.drip(1, 0.05),
        faults.status(503),
        faults.status(503, Retry_After="1000"),
    ):
        begin = time.monotonic()
        with server.faulty(fault), pytest.raises(UnreadableError, match=r"within 0\.5 seconds|silent"):
            read_whole(address_of(server))
        assert time.monotonic() - begin < 3


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_is_a_number(text: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTSAVE_TIMEOUT", text)
    with pytest.raises(UsageError, match="not a number of seconds"):
        read_whole(address_of(server))


def test_a_file_that_is_replaced_meanwhile_is_refused(root: Path, server: Server) -> None:
    with open_file(address_of(server)) as file:
        (root / "a.bin").write_bytes(DATA[::-1])
        assert file.read_at(0, 100) == DATA[:100]  # came when it was opened
        for _ in range(2):
            with pytest.raises(UnreadableError, match="was changed while it was read"):
                file.read_at(100_000, 100)
        with pytest.raises(UnreadableError, match="was changed"):
            file.check_unchanged()


def test_a_server_that_ignores_if_match_is_found_out(root: Path, server: Server) -> None:
    """Its answers are compared with the version that was opened: by ETag, else by time and size."""
    blind = [_without("if-match")]
    for drop in ([], [faults.header("ETag", None)]):
        (root / "a.bin").write_bytes(DATA)
        with server.faulty(*blind, *drop), open_file(address_of(server)) as file:
            (root / "a.bin").write_bytes(DATA + b"more")
            with pytest.raises(UnreadableError, match="was changed while it was read"):
                file.read_at(100_000, 100)


def test_a_server_that_refuses_every_if_match_is_no_change(root: Path, server: Server) -> None:
    """Which version is there is asked once more, without the condition."""

    def refusing(request: Request, handler: Handler) -> Answer:
        return Answer.of(412) if "if-match" in request.headers else handler(request)

    with server.faulty(refusing), open_file(address_of(server)) as file:
        assert file.read_at(100_000, 100) == DATA[100_000:100_100]
        file.check_unchanged()
        (root / "a.bin").write_bytes(DATA[::-1])
        with pytest.raises(UnreadableError, match="was changed while it was read"):
            file.read_at(200_000, 100)


@pytest.mark.parametrize("host", ["[::1", "[zz]", "h:99999999", "h:abc"])
def test_a_host_that_is_none(host: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by the user, by the server, or as a proxy."""
    with pytest.raises(UsageError, match="names no host"):
        located(f"http://{host}/a.bin")
    target = faults.redirect(f"http://{host}", code=302)
    with server.faulty(target, times=1), pytest.raises(UnreadableError, match="to no web address"):
        read_whole(address_of(server))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://{host}")
    with pytest.raises(UnreadableError, match="what names a server or a proxy, is not a web address"):
        read_whole(address_of(server))


def _without(name: str) -> faults.Fault:
    def fault(request: Request, handler: Handler) -> Answer:
        request.headers.pop(name, None)
        return handler(request)

    return fault


def test_a_check_before_tensors_that_fails_lets_no_thread_go_on(server: Server) -> None:
    """Threads that read meanwhile wait for it, and none of them gets a byte."""

    def check() -> None:
        file.read_at(250_000, 100)  # asks the server
        raise CorruptError("on purpose")

    with open_file(address_of(server)) as file, ThreadPoolExecutor(4) as pool:
        file.before_tensors(check)
        buffers = [bytearray(100) for _ in range(4)]
        reads = [pool.submit(file.read_into, 0, memoryview(buffer)) for buffer in buffers]
        for read in reads:
            with pytest.raises(CorruptError, match="on purpose"):
                read.result()
        assert not any(map(any, buffers))


def test_an_etag_that_changes_with_each_answer_is_refused(server: Server) -> None:
    with server.faulty(_without("if-match"), faults.changing_etag()):
        file = open_file(address_of(server))
        with pytest.raises(UnreadableError, match="was changed"):
            file.read_at(100_000, 100)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (faults.long_body(100), "says that they are"),
        (faults.header("Content-Range", "bytes 5-9/10"), "says that they are|asked for bytes"),
        (faults.header("Content-Range", f"bytes 1-{BLOCK}/300000"), "asked for bytes"),
        (faults.header("Content-Range", f"bytes 0-{BLOCK - 1}/10"), "asked for bytes"),
        (faults.header("Content-Range", None), "does not say which part"),
        (faults.header("Content-Range", "bytes 0-1e9/9"), "does not say which part"),
        (faults.header("Content-Length", "-5"), "a length that is none"),
        (faults.header("Content-Encoding", "gzip"), "compresses"),
        (faults.status(400), "answers 400"),
        (faults.status(418), "answers 418"),
        (faults.status(501), "answers 501"),
        (faults.status(416), "refuses the range"),
    ],
)
def test_an_answer_that_contradicts_itself_is_refused(fault: faults.Fault, what: str, server: Server) -> None:
    with server.faulty(fault), pytest.raises(UnreadableError, match=what):
        read_whole(address_of(server))
    assert len(server.log) <= 3


def test_a_range_that_ends_past_the_file_may_be_refused(server: Server) -> None:
    """Some servers do. They say how long the file is."""

    def strict(request: Request, handler: Handler) -> Answer:
        end = int(request.headers["range"].rpartition("-")[2])
        return Answer.of(416, Content_Range="bytes */3") if end >= 3 else handler(request)

    with server.faulty(strict):
        assert read_whole(address_of(server, "short.bin")) == b"abc"
    assert ranges(server) == [f"bytes=0-{BLOCK - 1}", "bytes=0-2"]


def test_a_server_that_answers_with_less_is_asked_on_at_once(server: Server) -> None:
    def capped(request: Request, handler: Handler) -> Answer:
        begin, end = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        few = request.headers | {"range": f"bytes={begin}-{min(end, begin + 4095)}"}
        return handler(replace(request, headers=few))

    begin = time.monotonic()
    with server.faulty(capped):
        assert read_whole(address_of(server)) == DATA
    assert len(server.log) == len(DATA) / 4096
    assert time.monotonic() - begin < 0.05 * len(server.log)


@pytest.mark.parametrize("with_tag", [{0}, {1, 2, 3}])
def test_a_version_that_only_some_answers_name_is_refused(with_tag: set[int], server: Server) -> None:
    numbers = iter(range(10**6))
    fault = faults.header("ETag", lambda tag: tag if next(numbers) in with_tag else None)
    with server.faulty(fault), pytest.raises(UnreadableError, match="some of the server's answers"):
        read_whole(address_of(server))


def test_a_tag_without_quotes_is_compared_and_not_asked_for(server: Server) -> None:
    with server.faulty(faults.header("ETag", "a-tag")):
        assert read_whole(address_of(server)) == DATA
    assert not any("if-match" in exchange.headers for exchange in server.log)


@pytest.mark.parametrize(
    ("code", "what"), [(404, "no such object"), (410, "no such"), (403, "no permission")]
)
def test_what_cannot_be_had_says_so_at_once(code: int, what: str, server: Server) -> None:
    with server.faulty(faults.status(code)), pytest.raises(MissingFileError, match=what):
        read_whole(address_of(server))
    assert len(server.log) == 1


def test_a_server_without_ranges_is_read_once_and_whole(server: Server) -> None:
    with server.faulty(faults.no_ranges()), open_file(address_of(server)) as file:
        num_requests = len(server.log)
        assert file.read_at(0, len(DATA)) == DATA
        assert file.read_at(123_456, 7) == DATA[123_456:123_463]
        assert num_requests == len(server.log) == 2


def test_a_short_file_of_a_server_without_ranges_takes_one_request(server: Server) -> None:
    with server.faulty(faults.no_ranges()):
        assert read_whole(address_of(server, "short.bin")) == b"abc"
    assert len(server.log) == 1


def test_a_body_without_an_end_is_not_stored_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "MAX_SPOOL_BYTES", 1024 * 1024)
    with server.faulty(faults.no_ranges(), faults.endless()), pytest.raises(LimitError, match="spool_bytes"):
        read_whole(address_of(server))
    assert server.num_bytes_out < 64 * 1024 * 1024


def test_an_endless_body_of_a_range_is_refused(server: Server) -> None:
    with server.faulty(faults.endless()), pytest.raises(UnreadableError, match="sends more than"):
        read_whole(address_of(server))


# --- redirects and secrets --------------------------------------------------------------------------


def test_a_redirect_is_followed_and_remembered(root: Path, server: Server) -> None:
    with Server(folder(root)) as other:
        with server.faulty(faults.redirect(other.url)):
            assert read_whole(address_of(server)) == DATA
        assert len(server.log) == 1
        assert len(other.log) == 2


def test_who_we_are_is_told_to_the_first_host_only(root: Path, server: Server) -> None:
    with Server(folder(root)) as other, server.faulty(faults.redirect(other.url)):
        assert read_whole(address_of(server, user="me:hunter2")) == DATA
        assert server.log[0].headers["authorization"] == "Basic bWU6aHVudGVyMg=="
        assert all("authorization" not in e.headers and "cookie" not in e.headers for e in other.log)


def test_a_redirect_that_expires_is_asked_for_again(root: Path, server: Server) -> None:
    with Server(folder(root)) as other, server.faulty(faults.redirect(other.url)):
        with open_file(address_of(server)) as file, other.faulty(faults.status(403), times=1):
            assert file.read_at(0, len(DATA)) == DATA
        assert len(server.log) == 2


def test_redirects_in_a_circle_end(server: Server) -> None:
    with server.faulty(faults.redirect(server.url)), pytest.raises(UnreadableError, match="redirects more"):
        read_whole(address_of(server))
    assert len(server.log) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/a", "//", "javascript:1"])
def test_a_redirect_to_what_is_no_web_address_is_refused(target: str, server: Server) -> None:
    with server.faulty(faults.status(302, Location=target)), pytest.raises(UnreadableError):
        read_whole(address_of(server))


FAILURES: list[Callable[[], faults.Fault]] = [
    lambda: faults.status(404),
    lambda: faults.status(403),
    lambda: faults.status(401),
    lambda: faults.status(418),
    lambda: faults.header("Content-Range", None),
    lambda: faults.changing_etag(),
    lambda: faults.delay(5),
    lambda: faults.status(302, Location="https://127.0.0.1:1/?sig=s3cr3t"),
    lambda: faults.redirect("http://me:hunter2@127.0.0.1:1"),
    lambda: faults.status(302, Location="ftp://me:hunter2@host/?sig=s3cr3t"),
]


@pytest.mark.parametrize("make", FAILURES)
def test_no_error_has_a_secret(
    make: Callable[[], faults.Fault], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTSAVE_TIMEOUT", "0.5")
    address = address_of(server, user="me:hunter2", query="?sig=s3cr3t")
    with server.faulty(_without("if-match"), make()), pytest.raises(PtsaveError) as caught:
        read_whole(address)
    error: BaseException | None = caught.value
    while error is not None:
        shown = f"{error!r} {error} {getattr(error, 'hint', '')} {error.__dict__}"
        assert "hunter2" not in shown
        assert "s3cr3t" not in shown
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
