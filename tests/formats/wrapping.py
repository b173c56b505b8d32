"""Files put into archives and compressed, each by a writer that has no part in ptsave."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import zstandard


def tarred(members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return held.getvalue()


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return held.getvalue()


def zipped_wide(members: Mapping[str, bytes]) -> bytes:
    """With zip64 fields, as stable-baselines3 has its members written."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return held.getvalue()


class _Pipe(io.RawIOBase):
    """Cannot be rewound, so that a zip archive's sizes come after the data."""

    def __init__(self) -> None:
        self.made = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.made += data
        return len(data)


def zipped_into_a_pipe(members: Mapping[str, bytes]) -> bytes:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return bytes(pipe.made)


def zstd(data: bytes) -> bytes:
    """Two frames with checksums, the first of a size that is not told, and a frame to be skipped."""
    half = len(data) // 2
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    first = stream.compress(data[:half]) + stream.flush()
    skipped = b"\x50\x2a\x4d\x18\3\0\0\0abc"
    return first + skipped + zstandard.ZstdCompressor(write_checksum=True).compress(data[half:])


def gzipped_in_two(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:], 0) + bytes(512)


NAME = "model.bin"
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip stored": lambda data: gzip.compress(data, 0),
    "gzip in two": gzipped_in_two,
    "zstd": zstd,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
ARCHIVED: dict[str, Callable[[bytes], bytes]] = {
    "tar": lambda data: tarred({f"./{NAME}": data}),
    "tar ustar": lambda data: tarred({NAME: data}, tarfile.USTAR_FORMAT),
    "tar gnu": lambda data: tarred({"a/" * 80 + NAME: data}, tarfile.GNU_FORMAT),
    "tar pax": lambda data: tarred({"ä/" * 80 + NAME: data}),
    "zip": lambda data: zipped({NAME: data, "readme.txt": b"hello"}),
    "zip deflated": lambda data: zipped({NAME: data}, zipfile.ZIP_DEFLATED),
    "zip wide": lambda data: zipped_wide({NAME: data}),
    "zip into a pipe": lambda data: zipped_into_a_pipe({NAME: data}),
}
BOTH: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": lambda data: gzip.compress(tarred({NAME: data})),
    "tar.zst": lambda data: zstd(tarred({NAME: data, "notes.txt": b"x"})),
    "gz in tar": lambda data: tarred({NAME: gzip.compress(data), "notes.txt": b"x"}),
    "zst in zip": lambda data: zipped({NAME: zstd(data)}),
    "zip.xz": lambda data: lzma.compress(zipped({NAME: data})),
}
WRAPPERS = COMPRESSED | ARCHIVED | BOTH
