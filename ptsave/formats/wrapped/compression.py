"""Compressed files, unpacked once into a temporary file without a name, in bounded time, memory and room.

Every checksum that the container states is obeyed: gzip's CRC-32 and length of each member, xz's and bzip2's
of each block, zstd's where a frame has one. What follows the last frame is refused, but for the zeros that
gzip and xz pad with: some readers would take it for more, and others ignore it.

Source: RFC 1952 (gzip), RFC 1951 (deflate); xz-file-format 1.2.1; bzip2 1.0.8; RFC 8878 (zstd, in `zstd`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from isal import igzip_lib
from isal.igzip_lib import DECOMP_DEFLATE, DECOMP_GZIP, IgzipDecompressor
from isal.isal_zlib import crc32 as crc32_of

from ptsave.errors import CorruptError, LimitError, RefusedError
from ptsave.formats.wrapped import zstd
from ptsave.formats.zip.inflate import MAX_INFLATED_BYTES, check_inflated_total
from ptsave.storage.files import InputFile
from ptsave.storage.scan import scan
from ptsave.storage.windows import FileStorage, UnpackedFile

MAX_FRAMES = 10_000
"""Cap on the frames (gzip's members) of a small file: each costs what a small file does."""
FRAME_BYTES = 1024
"""A long file may have one more for each so many of its bytes."""
MAX_XZ_BYTES = 128 * 1024**2
"""Cap on the memory that xz may take, of which its largest preset needs half."""

_PIECE_BYTES = 64 * 1024
_MADE_BYTES = 1024 * 1024
_HEADER_BYTES = 14
"""No frame of any kind is shorter."""
_IsalError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]  # its stub makes it an instance
_HINT = "the file is damaged or was made to mislead; copy or download it again"


class _Decoder(Protocol):
    """The interface of the decompressors of bz2, lzma and isal, for one frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


@dataclass(frozen=True)
class Compression:
    """One way to compress a file."""

    name: str
    magic: bytes
    unpack: Callable[[Iterator[bytes], str], Iterator[bytes]]
    """What the pieces of a file, whose name is given for messages, hold."""


def compression_of(head: bytes) -> Compression | None:
    """The compression of a file that begins with `head`; None where it has none."""
    return next((known for known in COMPRESSIONS if head.startswith(known.magic)), None)


def unpacked(file: InputFile, how: Compression) -> UnpackedFile:
    """What `file` holds; closes `file` with it, and leaves it open where that fails.

    Raises: CorruptError; LimitError past the caps on what may come out; RefusedError without a library that
    it takes; WriteError, NoRoomError for the temporary file.
    """
    where = str(file.path)
    blocks = how.unpack(_pieces(file), where)
    return UnpackedFile(file, file.path, file.stored_bytes, _bounded(blocks, file.stored_bytes, where))


def inflated(file: InputFile, num_bytes: int, crc32: int | None) -> UnpackedFile:
    """The deflated member of a zip archive that fills `file`; closes `file` with it.

    Raises: as `unpacked`.
    """
    blocks = _deflated(_pieces(file), str(file.path), num_bytes, crc32)
    return UnpackedFile(file, file.path, file.stored_bytes, blocks)


def _pieces(file: InputFile) -> Iterator[bytes]:
    whole = FileStorage(file, 0, file.size_bytes)
    for block in scan(whole, 0, whole.num_bytes):
        for start in range(0, len(block), _PIECE_BYTES):
            yield bytes(block[start : start + _PIECE_BYTES])


def _bounded(blocks: Iterator[bytes], stored_bytes: int, where: str) -> Iterator[bytes]:
    """`blocks`, up to what a file of `stored_bytes` may become. Raises: LimitError."""
    made = 0
    for block in blocks:
        made += len(block)
        check_inflated_total(stored_bytes, made, where)
        if made > MAX_INFLATED_BYTES:
            raise LimitError("inflated_bytes", MAX_INFLATED_BYTES, "more", where)
        yield block


def _frames(
    pieces: Iterator[bytes],
    where: str,
    *,
    name: str,
    magic: bytes,
    new: Callable[[], _Decoder],
    failures: tuple[type[Exception], ...],
    pads: bool,
) -> Iterator[bytes]:
    """The content of the frames, one after the other. `pads`: whether zeros may follow the last."""

    def corrupt(what: str) -> CorruptError:
        return CorruptError(f"the {name} data {what}", where, _HINT)

    decoder: _Decoder | None = None
    data = b""
    num_frames = read_bytes = num_zeros = 0
    for piece in pieces:
        data += piece
        read_bytes += len(piece)
        while data:
            if decoder is None:
                if num_frames and (num_zeros or pads) and not data.strip(b"\0"):
                    num_zeros += len(data)
                    data = b""
                    break
                if len(data) < _HEADER_BYTES and not num_zeros:
                    break
                if not num_frames and not data.startswith(magic):
                    raise corrupt("begins in a way that is not known")
                if num_zeros or not data.startswith(magic):
                    raise corrupt("is followed by something else, which some programs ignore")
                if num_frames > MAX_FRAMES + read_bytes // FRAME_BYTES:
                    raise LimitError("frames", MAX_FRAMES, "more", where)
                if name == "gzip" and data[3] & 0xE0:
                    raise corrupt("has a header with flags that are not known")
                decoder = new()
            try:
                yield from _made(decoder, data)
            except failures as error:
                if name == "xz" and "limit" in str(error):
                    raise LimitError("xz_memory_bytes", MAX_XZ_BYTES, "more", where) from None
                raise corrupt(f"is damaged ({error})") from None
            data = b""
            if decoder.eof:
                data, decoder = decoder.unused_data, None
                num_frames += 1
    if decoder is not None or (data and not num_frames):
        raise corrupt("is truncated")
    if data:
        raise corrupt("is followed by something else, which some programs ignore")


def _made(decoder: _Decoder, data: bytes) -> Iterator[bytes]:
    """All that a decoder makes of `data`, in bounded parts."""
    while made := decoder.decompress(data, _MADE_BYTES):
        yield made
        data = b""
        if decoder.eof or decoder.needs_input:
            return


def _gzip(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    new = partial(IgzipDecompressor, DECOMP_GZIP)
    return _frames(
        pieces, where, name="gzip", magic=b"\x1f\x8b\x08", new=new, failures=(_IsalError,), pads=True
    )


def _bzip2(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    try:
        from bz2 import BZ2Decompressor
    except ModuleNotFoundError:
        raise _without("bzip2", where) from None
    failures = (OSError, ValueError)
    return _frames(
        pieces, where, name="bzip2", magic=b"BZh", new=BZ2Decompressor, failures=failures, pads=False
    )


def _xz(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    try:
        from lzma import FORMAT_XZ, LZMADecompressor, LZMAError
    except ModuleNotFoundError:
        raise _without("xz", where) from None
    new = partial(LZMADecompressor, FORMAT_XZ, MAX_XZ_BYTES)
    return _frames(pieces, where, name="xz", magic=b"\xfd7zXZ\0", new=new, failures=(LZMAError,), pads=True)


def _without(name: str, where: str) -> RefusedError:
    return RefusedError(f"this Python was built without {name}", where, f"unpack the file first: {name} -d")


def _deflated(pieces: Iterator[bytes], where: str, num_bytes: int, crc32: int | None) -> Iterator[bytes]:
    """A deflate stream of exactly these pieces that makes exactly `num_bytes` bytes."""

    def corrupt(what: str) -> CorruptError:
        return CorruptError(f"the deflated member {what}", where, _HINT)

    decoder = IgzipDecompressor(DECOMP_DEFLATE)
    made_bytes = crc = 0
    for piece in pieces:
        if decoder.eof:
            raise corrupt("ends before its compressed bytes do")
        try:
            for made in _made(decoder, piece):
                made_bytes += len(made)
                if made_bytes > num_bytes:
                    raise corrupt(f"holds more than {num_bytes} bytes")
                crc = crc32_of(made, crc)
                yield made
        except _IsalError as error:
            raise corrupt(f"is damaged ({error})") from None
    if not decoder.eof:
        raise corrupt("is cut off")
    if decoder.unused_data:
        raise corrupt("ends before its compressed bytes do")
    if made_bytes != num_bytes:
        raise corrupt(f"holds {made_bytes} of {num_bytes} bytes")
    if crc32 not in (None, crc):
        raise corrupt("does not match its CRC-32")


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", _gzip),
    Compression("zstd", zstd.MAGIC, zstd.unpack),
    Compression("xz", b"\xfd7zXZ\0", _xz),
    Compression("bzip2", b"BZh", _bzip2),
)
