"""Zstandard frames, decoded block by block, so that few bytes never become many at once.

The library says neither that a stream was cut off nor how much one call will make. A block makes 128 KiB at
most, so a few of them are given to it at a time, and a frame ends where its last block says so.

Source: RFC 8878, sections 3.1.1 (frames) and 3.1.2 (skippable frames).
"""

from __future__ import annotations

from collections.abc import Iterator

from ptsave.errors import CorruptError, LimitError, RefusedError, UnreadableError, install

MAGIC = b"\x28\xb5\x2f\xfd"
MAX_WINDOW_BYTES = 128 * 1024**2
"""Cap on a frame's window, which stays in memory: that of `zstd -d` without `--long`."""
MAX_FRAMES = 10_000
FRAME_BYTES = 1024

_SKIPPABLE = b"\x2a\x4d\x18"
"""The last three bytes of a skippable frame's magic number; the first is 0x50 to 0x5f."""
_BLOCK_BYTES = 128 * 1024
"""The most that a block makes, and holds."""
_BLOCKS_AT_ONCE = 16
_RLE, _RESERVED = 1, 3
_HINT = "the file is damaged or was made to mislead; copy or download it again"


def unpack(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    """The content of the frames in `pieces`; `where` names the file.

    Raises: RefusedError without the library; CorruptError; LimitError; UnreadableError for a dictionary.
    """
    try:
        from zstandard import ZstdDecompressor, ZstdError
    except ModuleNotFoundError:
        raise RefusedError(
            "to read what is zstd-compressed takes a library that is not installed: zstandard",
            where,
            install("zst"),
        ) from None
    source = _Source(pieces, where)
    num_frames = 0
    while True:
        magic = source.take(4) if not source.is_at_end() or not num_frames else b""
        if not magic:
            return
        num_frames += 1
        if num_frames > MAX_FRAMES + source.read_bytes // FRAME_BYTES:
            raise LimitError("frames", MAX_FRAMES, "more", where)
        if magic[0] >> 4 == 5 and magic[1:] == _SKIPPABLE:
            source.skip(int.from_bytes(source.take(4), "little"))
            continue
        if magic != MAGIC:
            raise source.corrupt("is followed by something else, which some programs ignore")
        decoder = ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
        try:
            for part in _frame(source):
                if made := decoder.decompress(part):
                    yield made
        except ZstdError as error:
            raise source.corrupt(f"is damaged ({error})") from None
        if not decoder.eof:
            raise source.corrupt("is damaged (a frame does not end with its last block)")


def _frame(source: _Source) -> Iterator[bytes]:
    """One frame after its magic number, in parts that make at most 2 MiB each."""
    descriptor = source.take(1)
    flags = descriptor[0]
    is_single, has_checksum = bool(flags & 0x20), bool(flags & 0x04)
    if flags & 0x08:
        raise source.corrupt("has a frame of a kind that is not known")
    window = b"" if is_single else source.take(1)
    dictionary = source.take((0, 1, 2, 4)[flags & 0x03])
    if dictionary.strip(b"\0"):
        what = "the zstd data takes a dictionary that is not in the file"
        raise UnreadableError(what, source.where, "unpack it with zstd -D DICTIONARY")
    size = source.take((int(is_single), 2, 4, 8)[flags >> 6])
    if window:
        base = 1 << (10 + (window[0] >> 3))
        window_bytes = base + base // 8 * (window[0] & 7)
    else:
        window_bytes = int.from_bytes(size, "little") + (256 if len(size) == 2 else 0)
    if window_bytes > MAX_WINDOW_BYTES:
        raise LimitError("zstd_window_bytes", MAX_WINDOW_BYTES, window_bytes, source.where)
    parts = [MAGIC, descriptor, window, dictionary, size]
    num_blocks = 0
    is_last = False
    while not is_last:
        header = source.take(3)
        fields = int.from_bytes(header, "little")
        is_last, kind, num_bytes = bool(fields & 1), fields >> 1 & 3, fields >> 3
        if kind == _RESERVED or num_bytes > _BLOCK_BYTES:
            raise source.corrupt("has a block of a kind or a size that is not known")
        parts += header, source.take(1 if kind == _RLE else num_bytes)
        num_blocks += 1
        if num_blocks == _BLOCKS_AT_ONCE and not is_last:
            yield b"".join(parts)
            parts, num_blocks = [], 0
    if has_checksum:
        parts.append(source.take(4))
    yield b"".join(parts)


class _Source:
    """Bytes that come in pieces, taken by their number."""

    def __init__(self, pieces: Iterator[bytes], where: str) -> None:
        self._pieces = pieces
        self._data = b""
        self._at = 0
        self.where = where
        self.read_bytes = 0

    def is_at_end(self) -> bool:
        return not self._more(1)

    def take(self, num_bytes: int) -> bytes:
        """Raises: CorruptError at the end."""
        if not self._more(num_bytes):
            raise self.corrupt("is truncated")
        begin = self._at
        self._at += num_bytes
        return self._data[begin : self._at]

    def skip(self, num_bytes: int) -> None:
        """Skip `num_bytes`. Raises: CorruptError at the end."""
        while num_bytes > 0:
            step = min(num_bytes, _BLOCK_BYTES)
            self.take(step)
            num_bytes -= step

    def _more(self, num_bytes: int) -> bool:
        """Have `num_bytes` in memory; returns whether there are so many."""
        if len(self._data) - self._at >= num_bytes:
            return True
        parts = [self._data[self._at :]]
        have = len(parts[0])
        for piece in self._pieces:
            parts.append(piece)
            have += len(piece)
            self.read_bytes += len(piece)
            if have >= num_bytes:
                break
        self._data, self._at = b"".join(parts), 0
        return have >= num_bytes

    def corrupt(self, what: str) -> CorruptError:
        return CorruptError(f"the zstd data {what}", self.where, _HINT)
