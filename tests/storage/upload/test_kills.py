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
from tests.servers.stores import S3, s3_store
from tests.storage.upload.objects import LARGE, content


@pytest.fixture
def moto_s3(start: Callable[[str], str]) -> Iterator[S3]:
    """A fresh bucket on the server that lists the checksum of an upload, as S3 does: it tells ours by it."""
    with s3_store(start("moto")) as bucket:
        yield bucket


WRITER = """
import sys
from ptsave.storage.opening import replacing_file, replacing_folder
from ptsave.storage.upload.s3 import S3Uploads
from tests.storage.upload.objects import LARGE, PART_BYTES, address, content, fill
S3Uploads.min_part_bytes, S3Uploads.part_unit_bytes = PART_BYTES, 1024
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


def begun(root: Path, store: S3, kind: str, seed: int) -> subprocess.Popen[bytes]:
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


def whole(store: S3, kind: str) -> bytes:
    """What a reader sees."""
    return store.get("m") if kind == "file" else store.get(f"m/{store.get('m/index').decode()}")


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_request_leaves_the_old_or_the_new(
    moto_s3: S3, root: Path, kind: str, after: bool
) -> None:
    code, at = -signal.SIGKILL, 0
    while code:
        at += 1
        assert go(begun(root, moto_s3, kind, 0)) == 0
        assert whole(moto_s3, kind) == content(LARGE, 0)
        assert moto_s3.leftovers() == []
        assert len(moto_s3.names()) == (1 if kind == "file" else 2)
        process = begun(root, moto_s3, kind, at)
        with moto_s3.server.faulty(killing(process, at, signal.SIGKILL, after=after)):
            code = go(process)
        assert code in (0, -signal.SIGKILL)
        assert whole(moto_s3, kind) in (content(LARGE, 0), content(LARGE, at))
    assert at > 8
    assert whole(moto_s3, kind) == content(LARGE, at)


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(moto_s3: S3, root: Path) -> None:
    for at in (4, 6, 7):
        process = begun(root, moto_s3, "file", 1)
        with moto_s3.server.faulty(killing(process, at, signal.SIGINT, after=True)):
            assert go(process) != 0
        assert moto_s3.names() == moto_s3.leftovers() == []
