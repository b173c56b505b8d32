"""Caps on what a file may ask for: they grow with the file."""

from __future__ import annotations

from collections.abc import Mapping

from ptsave.errors import LimitError

SMALL_FILE_TENSORS = 100_000
"""Cap on the tensors that a file lists which is no larger than `room` 1 allows.

Real ones have fewer: torch.save takes some 280 bytes for each beside its values, so that 60,000 fit;
safetensors takes 80, which leaves 85 for the values of each of 100,000. Mixtures of experts with hundreds of
thousands are gigabytes long."""


def room(file_bytes: int) -> int:
    """How many times the usual caps a file may have: they grow with its size, so that a large one is read.

    1 below 16 MiB: what ptsave promises of a small file's cost holds with the caps as they are.
    """
    return 1 + file_bytes // (16 * 1024**2)


MAX_METADATA_CHARS = 48 * 1024**2
"""Cap on the texts beside the tensors of a small file, as JSON spells them."""
_SPELLED_CHARS = 6
"""Of a character that JSON escapes."""


def check_metadata(texts: Mapping[str, str], file_bytes: int, where: str) -> None:
    """Refuse texts that would be much longer where they are written as JSON. Raises: LimitError."""
    chars = 0
    for key, text in texts.items():
        for one in (key, text):
            chars += len(one) if one.isascii() and one.isprintable() else _SPELLED_CHARS * len(one)
    most = MAX_METADATA_CHARS * room(file_bytes)
    if chars > most:
        raise LimitError("metadata_chars", most, chars, where)
