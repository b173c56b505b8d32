"""A folder of files, old or new."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ptsave.errors import ExistsError, WriteError
from ptsave.storage import system
from ptsave.storage.atomic_folder import LocalOutputFolder, replacing_folder
from ptsave.storage.opening import data_stream
from ptsave.storage.output import WRITEBACK_BYTES
from ptsave.storage.system import disk


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(folder: LocalOutputFolder, text: bytes) -> str:
    """One data file under a fresh name, not committed."""
    (name,) = folder.fresh(lambda generation: [f"data.{generation}"])
    with folder.data_file(name, len(text)) as output:
        output.reserve()
        output.write_at(0, text)
    return name


def save(target: Path, text: bytes, *, overwrite: bool = False) -> None:
    """A whole set: one data file, and the index that names it."""
    with replacing_folder(target, len(text), overwrite=overwrite) as folder:
        name = put(folder, text)
        folder.commit(("index", name.encode()), old=sorted(folder.taken - {"index", "notes"}))


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "f", 3) as folder:
        name = put(folder, b"new")
        assert not (tmp_path / "f").exists()
        folder.commit(("index", name.encode()), [("beside", b"x")])
        assert not (tmp_path / "f").exists()
    assert content(tmp_path / "f") == {"data.1": b"new", "index": b"data.1", "beside": b"x"}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_is_there_is_updated_in_place(tmp_path: Path) -> None:
    save(tmp_path / "f", b"old")
    (tmp_path / "f" / "notes").write_bytes(b"mine")
    inode = (tmp_path / "f").stat().st_ino
    old = content(tmp_path / "f")
    with replacing_folder(tmp_path / "f", 3, overwrite=True) as folder:
        name = put(folder, b"new")
        assert content(tmp_path / "f") == {**old, "data.2": b"new"}  # all that the old index names
        folder.commit(("index", name.encode()), old=["data.1", "gone"])
    assert content(tmp_path / "f") == {"data.2": b"new", "index": b"data.2", "notes": b"mine"}
    assert (tmp_path / "f").stat().st_ino == inode
    save(tmp_path / "f", b"newer", overwrite=True)
    assert content(tmp_path / "f") == {"data.1": b"newer", "index": b"data.1", "notes": b"mine"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, there: bool, error: type[BaseException]) -> None:
    if there:
        save(tmp_path / "f", b"old")
    before = content(tmp_path / "f") if there else None

    def fail() -> None:
        with replacing_folder(tmp_path / "f", 3, overwrite=True) as folder:
            put(folder, b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert (content(tmp_path / "f") if there else None) == before
    assert len(list(tmp_path.iterdir())) == there


def test_after_the_commit_nothing_takes_the_new_data_away(tmp_path: Path) -> None:
    save(tmp_path / "f", b"old")
    (tmp_path / "f" / "stuck").mkdir()
    with pytest.raises(WriteError, match="new files are in place, but 'stuck'"):
        save(tmp_path / "f", b"new", overwrite=True)
    assert (tmp_path / "f" / "index").read_bytes() == b"data.2"
    assert (tmp_path / "f" / "data.2").read_bytes() == b"new"


def test_an_empty_folder_may_be_filled_and_a_full_one_not(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir(mode=0o750)
    save(tmp_path / "f", b"new")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o750
    with pytest.raises(ExistsError):
        save(tmp_path / "f", b"newer")
    assert content(tmp_path / "f") == {"data.1": b"new", "index": b"data.1"}


def test_a_folder_that_comes_meanwhile_is_never_replaced(tmp_path: Path) -> None:

    def write_while_another_does() -> None:
        with replacing_folder(tmp_path / "f", 3) as folder:
            name = put(folder, b"new")
            (tmp_path / "f").mkdir()
            (tmp_path / "f" / "theirs").write_bytes(b"")
            folder.commit(("index", name.encode()))

    with pytest.raises(ExistsError):
        write_while_another_does()
    assert content(tmp_path / "f") == {"theirs": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in {
        "file": "is a file",
        "missing/f": "does not exist",
        "loop": "loop",
        "x" * 256: "256 bytes",
    }.items():
        with pytest.raises(WriteError, match=message):
            save(tmp_path / name, b"new", overwrite=True)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "data.1").read_bytes() == b"new"


_WRITER = """
import sys, time
from ptsave.storage.atomic_folder import replacing_folder
with replacing_folder(sys.argv[1], 3, overwrite=True) as folder:
    (name,) = folder.fresh(lambda generation: [f"data.{generation}"])
    with folder.data_file(name, 3) as output:
        output.write_at(0, b"ne")
        print("writing", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_second_writer_keeps_out_and_litter_is_removed(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "f"
    if there:
        save(target, b"old")
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, target], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        if there:
            with pytest.raises(WriteError, match="another process is writing"):
                save(target, b"mine", overwrite=True)
            assert (target / "index").read_bytes() == b"data.1"
        process.send_signal(signal.SIGKILL)
    save(target, b"mine", overwrite=True)
    expected = "data.3" if there else "data.1"
    assert content(target) == {expected: b"mine", "index": expected.encode()}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_without_locks_it_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "HAS_FLOCK", False)
    monkeypatch.setattr(system, "HAS_FOLDER_SYNC", False)
    save(tmp_path / "f", b"old")
    save(tmp_path / "f", b"new", overwrite=True)
    assert content(tmp_path / "f") == {"data.2": b"new", "index": b"data.2"}
    assert os.listdir(tmp_path) == ["f"]


def test_the_disk_begins_with_all_but_the_last_of_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    begin = disk.begin_writeback

    def note(fd: int, offset: int, num_bytes: int) -> None:
        begun.append((offset, num_bytes))
        begin(fd, offset, num_bytes)

    monkeypatch.setattr(disk, "begin_writeback", note)
    pieces = [b"head", bytes(3 * 2**20), b"between", bytes(range(256)) * 2**16, bytes(WRITEBACK_BYTES + 1)]
    with data_stream(tmp_path, "data", 0) as stream:
        for piece in pieces:
            assert stream.write(piece) == len(piece)
    data = b"".join(pieces)
    assert (tmp_path / "data").read_bytes() == data
    ends = [offset + num_bytes for offset, num_bytes in begun]
    assert [offset for offset, _ in begun] == [0, *ends[:-1]]
    assert len(data) - WRITEBACK_BYTES < ends[-1] <= len(data)


@pytest.mark.parametrize("sync", [False, True])
def test_a_stream_is_durable_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(disk, "sync_file", lambda fd: synced.append(os.fstat(fd).st_size))
    with data_stream(tmp_path, "data", 0, sync=sync) as stream:
        stream.write(b"some bytes")
    assert synced == ([10] if sync else [])
