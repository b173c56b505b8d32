"""A writer that is killed at each of its requests: the old or the new stays, and the next one tidies up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptsave.storage.upload.store import UploadStore
from tests import warm
from tests.servers.serving import Answer, Fault, Handler, Request
from tests.servers.stores import S3, Azure, Gcs, Store, s3_store
from tests.storage.upload.objects import KIB, LARGE, PART_BYTES, content, left, scheme, write


@pytest.fixture
def moto_s3(start: Callable[[str], str]) -> Iterator[S3]:
    """A fresh bucket on the server that lists the checksum of an upload, as S3 does: it tells ours by it."""
    with s3_store(start("moto")) as bucket:
        yield bucket


FEWEST = {"s3": 8, "az": 6, "gs": 8}
"""More requests than these are in each write."""
WRITE = """
import sys
from ptsave.storage.upload.store import UploadStore
from tests.storage.upload.objects import KIB, PART_BYTES, write
UploadStore.min_part_bytes, UploadStore.part_unit_bytes = PART_BYTES, KIB
write(*sys.argv[1:3], int(sys.argv[3]))
"""


class Writer:
    """A process that writes, and is ended by one of its requests."""

    def __init__(self, root: Path, store: Store) -> None:
        self._root, self._store = root, store

    def write(self, kind: str, seed: int) -> int:
        """Its exit code."""
        words = ("-c", WRITE, f"{self._store.address}/m", kind, seed)
        self._is_begun = threading.Event()
        self._begun = warm.Started(warm.python, *words, cwd=self._root, env=os.environ | self._store.env)
        self._is_begun.set()
        return self._begun.wait().returncode

    def ended(self, at: int, end: Callable[[warm.Started], None], *, after: bool) -> Fault:
        """The request number `at` ends it, before or after it is carried out."""
        seen = 0

        def fault(request: Request, handler: Handler) -> Answer:
            nonlocal seen
            seen += 1
            is_it = seen == at
            if is_it:
                assert self._is_begun.wait(60)
            if is_it and not after:
                end(self._begun)
            answer = handler(request)
            if is_it and after:
                end(self._begun)
            return answer

        return fault


def interrupt(process: warm.Started) -> None:
    os.kill(process.pid, signal.SIGINT)


def whole(store: Store, kind: str) -> bytes:
    """What a reader sees."""
    return store.get("m") if kind == "file" else store.get(f"m/{store.get('m/index').decode()}")


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_request_leaves_the_old_or_the_new(
    moto_s3: S3, root: Path, kind: str, after: bool
) -> None:
    kill_at_each_request(moto_s3, root, kind, after=after)


@pytest.mark.slow
def test_a_kill_at_any_request_to_azure(azure: Azure, root: Path) -> None:
    kill_at_each_request(azure, root, "folder", after=True)


@pytest.mark.slow
def test_a_kill_at_any_request_to_google(gcs: Gcs, root: Path) -> None:
    kill_at_each_request(gcs, root, "folder", after=True)


def kill_at_each_request(store: Store, root: Path, kind: str, *, after: bool) -> None:
    """Kill a writer at its first request, another at its second, until one comes to its end."""
    writer = Writer(root, store)
    code, at = -signal.SIGKILL, 0
    while code:
        at += 1
        with pytest.MonkeyPatch.context() as process:
            for name, value in store.env.items():
                process.setenv(name, value)
            process.setattr(UploadStore, "min_part_bytes", PART_BYTES)
            process.setattr(UploadStore, "part_unit_bytes", KIB)
            write(f"{store.address}/m", kind, 0)
        assert whole(store, kind) == content(LARGE, 0)
        assert left(store) == []
        assert len(store.names()) == (1 if kind == "file" else 2)
        with store.server.faulty(writer.ended(at, warm.Started.kill, after=after)):
            code = writer.write(kind, at)
        assert code in (0, -signal.SIGKILL)
        assert whole(store, kind) in (content(LARGE, 0), content(LARGE, at))
    assert at > FEWEST[scheme(store)]
    assert whole(store, kind) == content(LARGE, at)


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(moto_s3: S3, root: Path) -> None:
    writer = Writer(root, moto_s3)
    for at in (4, 6, 7):
        with moto_s3.server.faulty(writer.ended(at, interrupt, after=True)):
            assert writer.write("file", 1) != 0
        assert moto_s3.names() == moto_s3.leftovers() == []
