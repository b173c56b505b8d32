"""One file, old or new: what a destination may be, what is left behind, who wins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from ptsave.errors import ExistsError, WriteError
from ptsave.storage import system
from ptsave.storage.atomic import check_file_destination, replacing_file, write_file
from ptsave.storage.atomic_folder import replacing_folder
from ptsave.storage.system import processes
from ptsave.storage.temporary import ORPHAN_NAME, remove_litter, temporary_name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_honours_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_file(tmp_path / "m", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "m").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o666 & ~mask
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_an_old_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "m").write_bytes(b"old")
    (tmp_path / "m").chmod(mode)
    write_file(tmp_path / "m", b"new", overwrite=True)
    assert (tmp_path / "m").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == mode


def test_readers_see_the_old_file_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"old")
    with replacing_file(tmp_path / "m", 3, overwrite=True) as output:
        output.write_at(0, b"new")
        assert (tmp_path / "m").read_bytes() == b"old"
    assert (tmp_path / "m").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_no_litter(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "m").write_bytes(b"old")

    def fail() -> None:
        with replacing_file(tmp_path / "m", 3, overwrite=True) as output:
            output.write_at(0, b"ne")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "m").read_bytes() == b"old"
    assert names(tmp_path) == ["m"]


def test_without_overwrite_an_old_file_is_refused_before_anything(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(ExistsError, match="exists"):
        write_file(tmp_path / "m", b"new")
    assert (tmp_path / "m").read_bytes() == b"old"


@pytest.mark.parametrize("has_link", [True, False])
def test_a_file_that_comes_meanwhile_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_link: bool
) -> None:
    monkeypatch.setattr(system, "HAS_LINK", has_link)
    with pytest.raises(ExistsError), replacing_file(tmp_path / "m", 3):
        (tmp_path / "m").write_bytes(b"theirs")
    assert (tmp_path / "m").read_bytes() == b"theirs"
    assert names(tmp_path) == ["m"]


def test_every_plain_path_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("HAS_POSITIONS", "HAS_FALLOCATE", "HAS_FLOCK", "HAS_FOLDER_SYNC", "HAS_LINK", "HAS_FADVISE"):
        assert getattr(system, flag) is True
        monkeypatch.setattr(system, flag, False)
    with replacing_file(tmp_path / "m", 8) as output:
        output.reserve()
        output.write_at(4, b"5678")
        output.write_at(0, b"1234")
        output.begin_writeback(0, 8)
        buffer = bytearray(6)
        output.read_into(2, memoryview(buffer))
        assert bytes(buffer) == b"345678"
    assert (tmp_path / "m").read_bytes() == b"12345678"
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("call", [fcntl.F_GETFD, 9999])
def test_a_fuller_sync_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """F_GETFD stands for a call that works; 9999 for one that this file system does not know."""
    monkeypatch.setattr(system, "FULL_SYNC", call)
    write_file(tmp_path / "m", b"new")
    assert (tmp_path / "m").read_bytes() == b"new"


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/m")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "m").read_bytes() == b"new"
    write_file(tmp_path / "link", b"newer", overwrite=True)
    assert (tmp_path / "real" / "m").read_bytes() == b"newer"
    assert (tmp_path / "link").is_symlink()


def test_what_cannot_be_replaced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "one").write_bytes(b"old")
    os.link(tmp_path / "one", tmp_path / "two")
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "loop": "loop of symbolic links",
        "folder": "is a directory",
        ".": "is a directory",
        "/": "is a directory",
        "one": "2 hard links",
        "pipe": "not a regular file",
        "/dev/null": "not a regular file",
        "missing/m": "folder does not exist",
        "file/m": "folder is not a directory",
        "x" * 256: "256 bytes",
        "a\0b": "NUL",
    }.items():
        with pytest.raises(WriteError, match=message) as caught:
            write_file(tmp_path / name, b"new", overwrite=True)
        assert caught.value.hint
    assert (tmp_path / "one").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["m" * 255, "é" * 127, "." * 250])
def test_a_name_of_full_length_has_room_for_its_temporary_file(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, b"new")
    _leave_litter(tmp_path / name)
    write_file(tmp_path / name, b"newer", overwrite=True)
    assert names(tmp_path) == [name]


_WRITER = """
import sys, time
from ptsave.storage.atomic import replacing_file
with replacing_file(sys.argv[1], 3, overwrite=True) as output:
    output.write_at(0, b"ne")
    print("writing", flush=True)
    time.sleep(60)
"""


def _start_writer(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, target], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def _leave_litter(target: Path) -> Path:
    """What a killed writer leaves, of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    path = temporary_name(target)
    path = path.with_name(path.name.replace(f".{os.getpid()}-", f".{process.pid}-"))
    path.write_bytes(b"half")
    return path


def test_a_killed_writer_leaves_litter_that_the_next_one_removes(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    with _start_writer(target) as process:
        assert len(names(tmp_path)) == 2
        assert ORPHAN_NAME.search(names(tmp_path)[0])
        write_file(target, b"mine", overwrite=True)  # its writer lives: it is left alone
        assert len(names(tmp_path)) == 2
        process.send_signal(signal.SIGKILL)
    assert target.read_bytes() == b"mine"
    write_file(target, b"last", overwrite=True)
    assert names(tmp_path) == ["m"]


def test_without_locks_only_old_litter_of_dead_processes_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "HAS_FLOCK", False)
    young, old = _leave_litter(tmp_path / "m"), _leave_litter(tmp_path / "m")
    alive = temporary_name(tmp_path / "m")
    alive.write_bytes(b"half")
    long_ago = time.time() - 2 * processes.ORPHAN_SECONDS
    for path in (old, alive):
        os.utime(path, (long_ago, long_ago))
    remove_litter(tmp_path / "m")
    assert young.exists()
    assert alive.exists()
    assert not old.exists()


def test_litter_of_others_is_not_touched(tmp_path: Path) -> None:
    other = _leave_litter(tmp_path / "m.old")
    (tmp_path / ".m.notes.ptsave-tmp").write_bytes(b"")
    os.mkfifo(tmp_path / ".m.123-0123abcd.ptsave-tmp")  # must not be waited for
    write_file(tmp_path / "m", b"new")
    assert other.exists()
    assert (tmp_path / ".m.notes.ptsave-tmp").exists()


def test_a_writer_killed_between_link_and_unlink_does_no_harm(tmp_path: Path) -> None:
    os.link(_leave_litter(tmp_path / "m"), tmp_path / "m")
    write_file(tmp_path / "m", b"newer", overwrite=True)
    assert names(tmp_path) == ["m"]


def test_two_writers_never_mix(tmp_path: Path) -> None:
    target = tmp_path / "m"
    size = 1_000_000
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if target.exists():
                seen.add(target.read_bytes())

    def write(byte: bytes) -> None:
        for _ in range(10):
            with replacing_file(target, size, overwrite=True, sync=False) as output:
                for start in range(0, size, 100_000):
                    output.write_at(start, byte * 100_000)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(byte,)) for byte in (b"a", b"b")]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert seen <= {b"a" * size, b"b" * size}
    assert names(tmp_path) == ["m"]


def test_of_two_writers_without_overwrite_one_wins(tmp_path: Path) -> None:
    results: list[str] = []
    barrier = threading.Barrier(4)

    def write(text: str) -> None:
        try:
            with replacing_file(tmp_path / "m", len(text)) as output:
                output.write_at(0, text.encode())
                barrier.wait()
            results.append(text)
        except ExistsError:
            pass

    threads = [threading.Thread(target=write, args=(f"writer {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / "m").read_text()] == results
    assert names(tmp_path) == ["m"]


def test_a_file_size_limit_is_an_error_before_the_first_byte(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(WriteError, match="larger than a file may be"):
            write_file(tmp_path / "m", bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_too_little_room_is_an_error_before_the_first_byte(tmp_path: Path) -> None:
    message = r"no room: needs \d+ bytes, \d+ are free"
    with pytest.raises(WriteError, match=message), replacing_file(tmp_path / "m", 2**62) as output:
        output.reserve()
    assert names(tmp_path) == []


_AS_ANOTHER_USER = """
import os, sys
from ptsave.storage.atomic import write_file
from ptsave.errors import WriteError
if os.getuid() == 0:
    os.setuid(65534)
try:
    write_file(sys.argv[1], b"", overwrite=True)
except WriteError as error:
    print(error.what)
"""


def test_a_folder_without_permission_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path, which no other user may enter
        os.chmod(folder, 0o755)
        closed = Path(folder, "closed")
        closed.mkdir()
        closed.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", _AS_ANOTHER_USER, closed / "m"], capture_output=True, text=True
        )
    assert "no permission to write in the folder" in done.stdout, done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's file")
def test_another_users_file_in_a_sticky_folder_is_refused_at_once() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        Path(folder, "m").write_bytes(b"old")
        done = subprocess.run(
            [sys.executable, "-c", _AS_ANOTHER_USER, f"{folder}/m"], capture_output=True, text=True
        )
        assert "another user's file" in done.stdout, done.stderr
        assert os.listdir(folder) == ["m"]


def test_the_check_before_any_work_says_what_would_be_replaced(tmp_path: Path) -> None:
    assert check_file_destination(tmp_path / "m") == (tmp_path.resolve() / "m", None)
    (tmp_path / "m").write_bytes(b"old")
    target, old = check_file_destination(tmp_path / "m", overwrite=True)
    assert old is not None
    assert (target, old.st_size) == (tmp_path.resolve() / "m", 3)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: there are threads
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
def test_a_fork_keeps_no_file_in_the_making_open(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "new", 4) as output:
        child = os.fork()
        if not child:
            try:
                os.fstat(output.fd)
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        output.reserve()
        output.write_at(0, b"data")
    assert (tmp_path / "new").read_bytes() == b"data"


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX access list. Source: linux/posix_acl_xattr.h, version 2."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ANYBODY = 0xFFFFFFFF
FOR_USER_7 = _acl((1, 6, ANYBODY), (2, 4, 7), (4, 4, ANYBODY), (0x10, 4, ANYBODY), (0x20, 0, ANYBODY))


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="only Linux has extended attributes")
def test_an_old_file_keeps_its_attributes_and_access_lists(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.origin", b"https://example.org")
        os.setxattr(path, "system.posix_acl_access", FOR_USER_7)
    except OSError:
        pytest.skip("the file system has no attributes")
    with contextlib.suppress(OSError):  # of the old bytes: root alone may set it
        os.setxattr(path, "security.ptsave_test", b"digest of the old bytes")
    mode = stat.S_IMODE(path.stat().st_mode)
    write_file(path, b"new", overwrite=True)
    assert os.getxattr(path, "user.origin") == b"https://example.org"
    assert os.getxattr(path, "system.posix_acl_access") == FOR_USER_7
    assert "security.ptsave_test" not in os.listxattr(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    os.removexattr(path, "system.posix_acl_access")
    os.setxattr(tmp_path, "system.posix_acl_default", FOR_USER_7)  # what new files get, and this one has not
    write_file(path, b"newer", overwrite=True)
    assert "system.posix_acl_access" not in os.listxattr(path)
    write_file(tmp_path / "n", b"new")
    assert "system.posix_acl_access" in os.listxattr(tmp_path / "n")


SAVER = """
import os, sys, threading, time
from pathlib import Path
from ptsave.storage.atomic_folder import replacing_folder
path = Path(sys.argv[1])
with replacing_folder(path, 10, overwrite=True) as folder:
    with folder.data_file("a", 1) as output:
        output.write_at(0, b"x")
        child = os.fork()
        if not child:
            print("forked", flush=True)
            time.sleep(1000)
    folder.commit(("main", b"y"))
print(child, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork")
@pytest.mark.parametrize("is_there", [True, False])
def test_a_fork_during_a_save_keeps_no_lock(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "f"
    if is_there:
        folder.mkdir()
    words = [sys.executable, "-c", SAVER, str(folder)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = [parent.stdout.readline() for _ in range(2)]
    child = int(next(line for line in lines if line != "forked\n"))
    try:
        assert parent.wait() == 0
        with replacing_folder(folder, 1, overwrite=True) as again:
            again.commit(("main", b"z"))
        assert (folder / "main").read_bytes() == b"z"
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()
