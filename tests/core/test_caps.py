"""Caps on what a file may ask for."""

from __future__ import annotations

import pytest

from ptsave.core.caps import MAX_METADATA_CHARS, check_metadata, room
from ptsave.errors import LimitError


def test_caps_grow_with_the_file() -> None:
    assert [room(size) for size in (0, 16 * 1024**2 - 1, 16 * 1024**2, 10**9)] == [1, 1, 2, 60]


def test_texts_count_as_json_spells_them() -> None:
    plain, escaped = "a" * (MAX_METADATA_CHARS // 5), "\1" * (MAX_METADATA_CHARS // 5)
    check_metadata({"k": plain}, 0, "file")
    with pytest.raises(LimitError, match="metadata_chars"):
        check_metadata({"k": escaped}, 0, "file")
    check_metadata({"k": escaped}, 16 * 1024**2, "file")
