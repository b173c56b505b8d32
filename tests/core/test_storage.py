"""Storages: what each says of itself and of those that it is made of."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

from ptsave.core.storage import MemoryStorage, Storage, SwappedStorage, WindowStorage
from ptsave.formats.dcp.chunks import ConcatenatedStorage
from ptsave.storage.local.file import LocalFile
from ptsave.storage.windows import FileStorage

DATA = bytes(range(16))


def memory(data: bytes, has_crc: bool = True) -> MemoryStorage:
    return MemoryStorage(memoryview(data), None, crc32(data) if has_crc else None)


def read(storage: Storage, offset_bytes: int, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    storage.read_into(offset_bytes, memoryview(buffer))
    return bytes(buffer)


def test_a_window_lies_in_its_whole_and_has_no_crc_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA)
    with LocalFile(path) as file:
        for whole, kind in (
            (memory(DATA), WindowStorage),
            (FileStorage(file, 0, 16, crc32(DATA)), FileStorage),
        ):
            part = whole.window(4, 8).window(1, 3)
            assert type(part) is kind
            assert (part.num_bytes, part.crc32, read(part, 1, 2)) == (3, None, DATA[6:8])
            assert part.checksums() == [(whole, crc32(DATA))]
            assert next(part.origins()) is part
            assert list(part.origins())[-1] is whole
            assert (part.file, part.is_seekable) == ((file, True) if kind is FileStorage else (None, False))


def test_other_forms_speak_of_the_bytes_that_they_are_made_of() -> None:
    inner = memory(DATA)
    swapped = SwappedStorage(inner, 4)
    assert (swapped.crc32, swapped.is_seekable, read(swapped, 1, 2)) == (None, False, DATA[2:0:-1])
    assert (list(swapped.origins()), swapped.checksums()) == ([swapped, inner], [(inner, crc32(DATA))])


def test_whole_storages_end_to_end_have_one_crc_and_parts_have_theirs() -> None:
    a, b = memory(DATA), memory(DATA[::-1])
    both = ConcatenatedStorage([(a, 0, 16), (b, 0, 16)])
    assert both.checksums() == [(both, crc32(DATA + DATA[::-1]))]
    assert set(both.origins()) == {both, a, b}
    assert ConcatenatedStorage([(a, 0, 16), (b, 4, 12)]).checksums() == [
        (a, crc32(DATA)),
        (b, crc32(DATA[::-1])),
    ]
    assert ConcatenatedStorage([(a, 0, 16), (memory(DATA, False), 0, 16)]).checksums() == [(a, crc32(DATA))]
    assert ConcatenatedStorage([]).checksums() == []
