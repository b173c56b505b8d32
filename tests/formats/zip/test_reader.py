"""Archives of the writers that there are, checked against Python's `zipfile`."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats.zip import directory as zip_directory
from ptsave.formats.zip.inflate import InflatedStorage
from ptsave.formats.zip.reader import DEFLATED, STORED, ZipDirectory, read_directory
from ptsave.storage.local.file import LocalFile
from ptsave.storage.windows import FileStorage

STATE = {"a": torch.arange(10), "b": torch.randn(3, 2), "empty": torch.empty(0)}


def torch_save(path: Path) -> None:
    torch.save(STATE, path)


def torch_save_without_crc(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)


def torchscript(path: Path) -> None:
    """Stores tensors and deflates code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)


def savez(path: Path) -> None:
    """Forces zip64 fields into the local headers."""
    with path.open("wb") as file:
        np.savez(file, a=np.arange(5), b=np.ones((3, 2)))


def savez_compressed(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, a=np.zeros(5000), b=np.arange(7))


def streamed(path: Path) -> None:
    """To something that cannot seek: sizes and CRC follow the data."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.held = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.held += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr("top/stored", b"x" * 1000)
        archive.writestr("top/deflated", b"y" * 1000, zipfile.ZIP_DEFLATED)
        with archive.open("top/zip64", "w", force_zip64=True) as record:
            record.write(b"z" * 100)
    path.write_bytes(pipe.held)


def with_comment_and_folders(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"a comment" + bytes(40)
        archive.writestr("top/", b"")
        archive.writestr("top/näme", b"x" * 1000)
        archive.writestr("top/empty", b"")


def appended(path: Path) -> None:
    """The directory is written over, and again after the new entry."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b", b"2")


def info_zip(path: Path) -> None:
    if shutil.which("zip") is None:
        pytest.skip("there is no zip")
    (path.parent / "top").mkdir()
    (path.parent / "top" / "data.pkl").write_bytes(b"x" * 5000)
    (path.parent / "top" / "small").write_bytes(b"y")
    command = ["zip", "-q", "-r", str(path.resolve()), "top"]
    subprocess.run(command, cwd=path.parent, check=True)
    if not path.exists():  # zip adds a suffix
        path.with_suffix(".zip").rename(path)


WRITERS: list[Callable[[Path], None]] = [
    torch_save,
    torch_save_without_crc,
    torchscript,
    savez,
    savez_compressed,
    streamed,
    with_comment_and_folders,
    appended,
    info_zip,
]


def read(path: Path) -> ZipDirectory:
    return read_directory(LocalFile(path))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_reads_what_is_written(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    write(path)
    directory = read(path)
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        assert list(directory.entries) == [info.filename for info in infos]
        for info in infos:
            entry = directory.entries[info.filename]
            sizes = (info.compress_size, info.file_size)
            assert (entry.compressed_bytes, entry.num_bytes, entry.method) == (*sizes, info.compress_type)
            if info.CRC:  # zipfile refuses to read what has none
                assert directory.read(info.filename, 10**6) == archive.read(info)
            assert entry.crc32 == (info.CRC if info.CRC or not info.file_size else None)
    assert directory.unclaimed_bytes == 0


def test_a_storage_is_the_same_object_each_time(tmp_path: Path) -> None:
    torch_save(tmp_path / "m.pt")
    directory = read(tmp_path / "m.pt")
    storage = directory.storage("m/data/0")
    assert directory.storage("m/data/0") is storage
    assert isinstance(storage, FileStorage)
    assert storage.crc32 == directory.entries["m/data/0"].crc32
    held = storage.file.read_at(storage.offset_bytes, storage.num_bytes)
    assert held == STATE["a"].numpy().tobytes()


def test_a_missing_record_a_large_one_and_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch_save(path)
    directory = read(path)
    with pytest.raises(CorruptError, match="no record 'm/data/9'"):
        directory.read("m/data/9", 100)
    with pytest.raises(LimitError, match="record_bytes = 79"):
        directory.read("m/data/0", 79)
    data = bytearray(path.read_bytes())
    data[directory.entries["m/data/0"].data_offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="CRC-32"):
        read(path).read("m/data/0", 80)


def test_an_archive_inside_a_file(tmp_path: Path) -> None:
    torch_save(tmp_path / "m.pt")
    inner = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "outer").write_bytes(b"before" + inner + b"after")
    with LocalFile(tmp_path / "outer") as file:
        directory = read_directory(file, 6, len(inner))
        assert directory.read("m/data/0", 80) == STATE["a"].numpy().tobytes()
        for window in ((5, len(inner)), (6, len(inner) - 1), (6, len(inner) + 1), (0, file.size_bytes)):
            with pytest.raises(CorruptError):
                read_directory(file, *window)
        with pytest.raises(CorruptError, match="truncated"):
            read_directory(file, 6, len(inner) + 100)


@pytest.mark.parametrize("write", [torch_save, savez_compressed, streamed], ids=lambda write: write.__name__)
def test_every_truncation_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    write(path)
    with LocalFile(path) as file:
        for num_bytes in range(file.size_bytes):
            with pytest.raises(CorruptError):
                read_directory(file, 0, num_bytes)


def one_tensor(path: Path) -> None:
    torch.save(torch.ones(3), path)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.ones(3))


@pytest.mark.parametrize(
    "write", [pytest.param(one_tensor, marks=pytest.mark.slow), one_array], ids=["torch", "numpy"]
)
def test_no_bit_of_the_structure_moves_data(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Whatever single bit is flipped: an error of ours, or records in the same places."""
    path = tmp_path / "archive.zip"
    write(path)
    places = {(e.data_offset, e.num_bytes) for e in read(path).entries.values()}
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(path.read_bytes()):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                with LocalFile(path) as damaged:
                    try:
                        found = read_directory(damaged).entries.values()
                    except UnreadableError:
                        continue
                assert {(e.data_offset, e.num_bytes) for e in found} == places
            os.pwrite(file.fileno(), bytes([byte]), position)


def test_the_caps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_save(tmp_path / "m.pt")
    monkeypatch.setattr(zip_directory, "MAX_ENTRIES", 3)
    with pytest.raises(LimitError, match="entries = 3"):
        read(tmp_path / "m.pt")
    monkeypatch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(LimitError, match="directory_bytes = 100"):
        read(tmp_path / "m.pt")


def test_records_beyond_4_gib_in_a_sparse_file(tmp_path: Path) -> None:
    """As torch writes them: the local header leaves the sizes out, the descriptor has 24 bytes."""
    num_bytes = 2**32 + 4096
    sizes = struct.pack("<2Q", num_bytes, num_bytes)
    zip64 = struct.pack("<2H", 1, 16) + sizes
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x0808, 0, 0, 0, 0, 0, 0, 5, 20) + b"m/big" + zip64)
        file.seek(num_bytes, os.SEEK_CUR)
        file.write(b"PK\7\x08" + bytes(4) + sizes)
        small = file.tell()
        file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x0808, 0, 0, 0, 0, 0, 0, 7, 0) + b"m/small" + b"x")
        crc = zlib.crc32(b"x")
        file.write(struct.pack("<4sL2Q", b"PK\7\x08", crc, 1, 1))
        start = file.tell()
        full = 2**32 - 1
        file.write(
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, 0x0808, 0, 0, 0, 0, full, full, 5, 20, 0, 0, 0, 0, 0)
            + b"m/big"
            + zip64
            + struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, 0x0808, 0, 0, 0, crc, 1, 1, 7, 12, 0, 0, 0, 0, full)
            + b"m/small"
            + struct.pack("<2HQ", 1, 8, small)
        )
        end = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, 2, 2, end - start, start))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, end - start, full, 0))
    directory = read(path)
    assert directory.entries["m/big"].num_bytes == num_bytes
    assert directory.storage("m/big").crc32 is None
    assert directory.read("m/small", 1) == b"x"


@pytest.mark.slow
def test_100_000_entries_take_no_time(tmp_path: Path) -> None:
    state = {f"layer{i}.weight": torch.full((8,), float(i)) for i in range(100_000)}
    torch.save(state, tmp_path / "m.pt")
    start = time.process_time()
    directory = read(tmp_path / "m.pt")
    assert len(directory.entries) > 100_000
    assert time.process_time() - start < 2  # 0.4 s on an idle machine


def deflated(data: bytes, path: Path) -> InflatedStorage:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("record", data)
    directory = read(path)
    assert directory.entries["record"].method == DEFLATED != STORED
    storage = directory.storage("record")
    assert isinstance(storage, InflatedStorage)
    return storage


@pytest.mark.parametrize("num_bytes", [1, 1000, 5_000_000])
def test_a_deflated_record_is_read_anywhere(num_bytes: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data = np.repeat(random.integers(0, 255, num_bytes // 3 + 1, dtype=np.uint8), 3)[:num_bytes].tobytes()
    storage = deflated(data, tmp_path / "a.zip")
    for _ in range(40):
        low, high = sorted(random.integers(0, num_bytes + 1, 2))
        high = min(high, low + 700_000)
        buffer = bytearray(high - low)
        storage.read_into(int(low), memoryview(buffer))
        assert buffer == data[low:high]
    with pytest.raises(CorruptError):
        storage.read_into(num_bytes, memoryview(bytearray(1)))


def test_reading_a_deflated_record_backwards_is_not_quadratic(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100_000
    storage = deflated(data, tmp_path / "a.zip")
    buffer = memoryview(bytearray(1000))
    start = time.process_time()
    for offset in range(len(data) - 1000, 0, -500_000):
        storage.read_into(offset, buffer)
        assert buffer == data[offset : offset + 1000]
    assert time.process_time() - start < 2


def test_a_deflated_record_with_another_length_than_it_claims(tmp_path: Path) -> None:
    data = b"abc" * 1000
    for claimed in (2999, 3001):
        storage = deflated(data, tmp_path / "a.zip")
        wrong = InflatedStorage(
            storage._file, storage._offset_bytes, storage._compressed_bytes, claimed, None
        )
        with pytest.raises(CorruptError, match=r"more than 2999|ends after 3000 of 3001"):
            wrong.read_into(0, memoryview(bytearray(claimed)))
