"""What is global in a process stays as it is in somebody else's, and what was read is let go of."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import torch

from ptsave.cli import main
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import destination_writer
from ptsave.own_process import no_garbage_collection, own_process
from ptsave.verbs.convert import convert
from ptsave.verbs.edit import Edits


def test_the_collector_is_left_alone_in_somebody_elses_process(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    seen = []
    options = WriteOptions(progress=lambda num_bytes: seen.append(gc.isenabled()))
    with open_checkpoint(tmp_path / "a.pt") as source:
        convert([source], tmp_path / "b", destination_writer(tmp_path, "safetensors"), options, Edits())
    assert seen
    assert all(seen)
    with own_process(), no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert main.run(["inspect", str(tmp_path / "a.pt"), "-q"]) == 0
    with no_garbage_collection():
        assert gc.isenabled()


def test_a_closed_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        (held,) = checkpoint.held
        file = weakref.ref(held)
        assert held.memo  # type: ignore[attr-defined]
    assert not held.memo  # type: ignore[attr-defined]
    del checkpoint, held
    gc.collect()
    assert file() is None
