"""File systems of fsspec, by the one that lies in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
import torch

import ptsave
from ptsave.core.address import located
from ptsave.errors import MissingFileError, UnreadableError, UsageError
from ptsave.storage.opening import open_file, open_folder, open_input


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


def test_a_checkpoint_is_read(memory: Any) -> None:
    state = {f"layer.{i}": torch.full((500,), float(i)) for i in range(100)}
    with memory.open("/run/a.pt", "wb") as file:
        torch.save(state, file)
    with ptsave.open("memory://run/a.pt") as checkpoint:
        assert all(torch.equal(checkpoint[name], state[name]) for name in state)
    with open_folder(located("memory://run")) as folder:
        assert list(folder.names) == ["a.pt"]


def test_what_is_replaced_or_missing_is_told(memory: Any) -> None:
    memory.pipe_file("/a.bin", bytes(100_000))
    with open_file(located("memory://a.bin")) as file:
        memory.pipe_file("/a.bin", bytes(100_001))
        with pytest.raises(UnreadableError, match="was changed"):
            file.read_at(90_000, 10)
    with pytest.raises(MissingFileError):
        open_input(located("memory://nothing.bin"))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UsageError, match="not known"):
        open_input(located("nosuchscheme://host/a.pt"))
