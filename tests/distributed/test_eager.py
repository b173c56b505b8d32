"""Files that begin to be written to the disk early."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsave.distributed.eager import EagerFileSystem
from ptsave.storage import system
from ptsave.storage.move import WRITEBACK_BYTES


def test_the_disk_begins_with_all_but_the_last_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    begin = system.begin_writeback

    def note(fd: int, offset: int, num_bytes: int) -> None:
        begun.append((offset, num_bytes))
        begin(fd, offset, num_bytes)

    monkeypatch.setattr(system, "begin_writeback", note)
    pieces = [b"head", bytes(3 * 2**20), b"between", bytes(range(256)) * 2**16, bytes(WRITEBACK_BYTES + 1)]
    with EagerFileSystem().create_stream(tmp_path / "data", "wb") as stream:
        for piece in pieces:
            assert stream.write(piece) == len(piece)
    data = b"".join(pieces)
    assert (tmp_path / "data").read_bytes() == data
    ends = [offset + num_bytes for offset, num_bytes in begun]
    assert [offset for offset, _ in begun] == [0, *ends[:-1]]
    assert len(data) - WRITEBACK_BYTES < ends[-1] <= len(data)
