"""A writer that is killed at each of its requests: the old or the new stays, and the next one tidies up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.serving import Answer, Fault, Handler, Request
from tests.servers.stores import S3, Azure, Gcs, Store, s3_store
from tests.storage.upload.objects import LARGE, content, left, scheme


@pytest.fixture
def moto_s3(start: Callable[[str], str]) -> Iterator[S3]:
    """A fresh bucket on the server that lists the checksum of an upload, as S3 does: it tells ours by it."""
    with s3_store(start("moto")) as bucket:
        yield bucket


FEWEST = {"s3": 8, "az": 6, "gs": 8}
"""More requests than these are in each write."""
WRITER = """
import sys
from ptsave.storage.opening import replacing_file, replacing_folder
from ptsave.storage.upload.store import UploadStore
from tests.storage.upload.objects import LARGE, PART_BYTES, address, content, fill
UploadStore.min_part_bytes, UploadStore.part_unit_bytes = PART_BYTES, 1024
print(flush=True)
sys.stdin.readline()
if sys.argv[2] == "file":
    with replacing_file(address(sys.argv[1]), LARGE, overwrite=True) as output:
        fill(output, content(LARGE, int(sys.argv[3])))
else:
    with replacing_folder(address(sys.argv[1]), LARGE, overwrite=True) as folder:
        (name,) = folder.fresh(lambda generation: [f"data-{generation}"])
        with folder.data_file(name, LARGE) as output:
            fill(output, content(LARGE, int(sys.argv[3])))
        folder.commit(("index", name.encode()), old=[n for n in folder.taken if n != "index"])
"""


def begun(root: Path, store: Store, kind: str, seed: int) -> subprocess.Popen[bytes]:
    """A process that is about to write; a line on its stdin lets it."""
    command = [sys.executable, "-c", WRITER, f"{store.address}/m", kind, str(seed)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=root, env=os.environ | store.env, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def go(process: subprocess.Popen[bytes]) -> int:
    """Let it write; returns its exit code."""
    process.communicate(b"\n")
    return process.returncode


def killing(process: subprocess.Popen[bytes], at: int, how: int, *, after: bool) -> Fault:
    """The request number `at` kills `process`, before or after it is carried out."""
    seen = 0

    def fault(request: Request, handler: Handler) -> Answer:
        nonlocal seen
        seen += 1
        is_it = seen == at
        if is_it and not after:
            os.kill(process.pid, how)
            time.sleep(0.1)  # until it is gone
        answer = handler(request)
        if is_it and after:
            os.kill(process.pid, how)
        return answer

    return fault


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
    code, at = -signal.SIGKILL, 0
    while code:
        at += 1
        assert go(begun(root, store, kind, 0)) == 0
        assert whole(store, kind) == content(LARGE, 0)
        assert left(store) == []
        assert len(store.names()) == (1 if kind == "file" else 2)
        process = begun(root, store, kind, at)
        with store.server.faulty(killing(process, at, signal.SIGKILL, after=after)):
            code = go(process)
        assert code in (0, -signal.SIGKILL)
        assert whole(store, kind) in (content(LARGE, 0), content(LARGE, at))
    assert at > FEWEST[scheme(store)]
    assert whole(store, kind) == content(LARGE, at)


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(moto_s3: S3, root: Path) -> None:
    for at in (4, 6, 7):
        process = begun(root, moto_s3, "file", 1)
        with moto_s3.server.faulty(killing(process, at, signal.SIGINT, after=True)):
            assert go(process) != 0
        assert moto_s3.names() == moto_s3.leftovers() == []
