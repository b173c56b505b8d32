"""Nodes of a checkpoint's tree say in few words what they are."""

from __future__ import annotations

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage


def test_reprs_are_short() -> None:
    entry = TensorEntry("", BY_NAME["float32"], (4,), (1,), MemoryStorage(memoryview(bytes(16))), 0)
    loop = Opaque("m.C")
    loop.args = (loop,)
    assert repr(loop) == "<m.C>"
    assert repr(entry) == "TensorEntry('', float32, (4,))"
    assert str(Global("a.b")) == "a.b"
