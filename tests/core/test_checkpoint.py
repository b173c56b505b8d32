"""What a checkpoint lists, and what it does not because it would cost too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsave.core import checkpoint
from ptsave.core.checkpoint import LIVE, Checkpoint, check_viewed
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.errors import LimitError

BYTES = BY_NAME["uint8"]


def views(count: int, size: int, stride: int = 1, same: bool = False) -> Checkpoint:
    storage = MemoryStorage(memoryview(bytes(2 * 10**6)))
    entries = [TensorEntry("", BYTES, (size,), (stride,), storage, 0 if same else i) for i in range(count)]
    return Checkpoint("", Path("a"), dict(enumerate(entries)))


def test_views_of_all_bytes_have_a_cap() -> None:
    with pytest.raises(LimitError, match="views_of_a_byte = 8"):
        _ = views(2000, 10**6).tensors
    expanded = views(1, 2**31, stride=0).tensors.values()
    with pytest.raises(LimitError, match="views_of_a_byte = 8"):
        check_viewed(expanded)


def test_ties_and_few_views_have_none() -> None:
    assert len(views(2000, 10**6, same=True).tensors) == 2000
    assert len(views(900, 10**6).tensors) == 900


def test_leaves_have_a_cap_that_grows_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.MAX_LEAVES == 500_000
    monkeypatch.setattr(checkpoint, "MAX_LEAVES", 5000)
    with pytest.raises(LimitError, match="leaves = 5000"):
        _ = Checkpoint("", Path("a"), dict.fromkeys(range(5001))).data
    assert len(Checkpoint(LIVE, Path("a"), dict.fromkeys(range(5001))).data) == 5001
