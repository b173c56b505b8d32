"""One version of a file is read: one that changes meanwhile is refused."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from ptsave.errors import MissingFileError, UnreadableError
from ptsave.storage.local.file import LocalFile, unreadable
from ptsave.storage.write_errors import write_error

BIG = 1_000_000


def write_in_place(path: Path, data: bytes, offset: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def test_a_file_that_is_written_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(BIG))
    with LocalFile(path) as file:
        buffer = memoryview(bytearray(BIG // 2))
        file.read_into(0, buffer)
        time.sleep(0.02)  # clocks of file systems are coarse
        write_in_place(path, b"x", BIG - 1)
        with pytest.raises(UnreadableError, match="was changed while it was read"):
            file.read_into(BIG // 2, buffer)
        with pytest.raises(UnreadableError, match="was changed while it was read"):
            file.read_at(0, BIG)
        with pytest.raises(UnreadableError, match="was changed"):
            file.check_unchanged()


def test_a_file_that_is_replaced_is_still_the_one_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(BIG))
    with LocalFile(path) as file:
        (tmp_path / "b").write_bytes(b"new")
        os.replace(tmp_path / "b", path)
        assert file.read_at(0, BIG) == bytes(BIG)
        file.check_unchanged()
        with pytest.raises(UnreadableError, match="was changed"):
            file.check_in_place()


def test_a_link_to_nothing_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "a.pt").symlink_to("gone/b.pt")
    with pytest.raises(MissingFileError, match=r"a symbolic link to nothing: gone/b\.pt"):
        LocalFile(tmp_path / "a.pt")


def test_a_link_that_goes_meanwhile_is_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").symlink_to("gone/b.pt")

    def gone(path: Path) -> str:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr(os, "readlink", gone)
    with pytest.raises(MissingFileError, match="no such file"):
        LocalFile(tmp_path / "a.pt")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_name_the_limit(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number))
    for found in (unreadable(tmp_path / "a", error), write_error(tmp_path / "a", error)):
        assert (found.what, found.hint) == ("too many files are open", "raise the limit: `ulimit -n`")
