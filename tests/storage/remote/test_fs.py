"""File systems of fsspec: the one that lies in this process, and SFTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file

import ptsave
from ptsave.core.address import located
from ptsave.errors import MissingFileError, OutOfReachError, RefusedError, UnreadableError, UsageError
from ptsave.storage.opening import check_file_destination, open_file, open_folder, open_input
from tests.servers.sftp import PASSWORD, sftp


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


def test_a_checkpoint_is_read_by_sftp(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.full((50_000,), float(i)) for i in range(20)}
    (tmp_path / "run").mkdir()
    save_file(state, tmp_path / "run" / "a.safetensors")
    with sftp(tmp_path, tmp_path / "sftp.log") as host:
        where = f"sftp://me:{PASSWORD}@{host}/run/a.safetensors"
        with ptsave.open(where) as checkpoint:
            assert all(torch.equal(checkpoint[name], state[name]) for name in state)
        with open_folder(located(f"sftp://me:{PASSWORD}@{host}/run")) as folder:
            assert list(folder.names) == ["a.safetensors"]
        with open_file(located(where)) as file:
            save_file(
                {name: -tensor for name, tensor in state.items()} | {"b": torch.ones(1)},
                tmp_path / "run" / "a.safetensors",
            )
            with pytest.raises(UnreadableError, match="was changed"):
                file.read_at(1_000_000, 10)
        with pytest.raises(MissingFileError, match="no such object"):
            open_input(located(f"sftp://me:{PASSWORD}@{host}/run/nothing"))
        with pytest.raises(OutOfReachError, match="no permission") as caught:
            open_input(located(f"sftp://me:another-{PASSWORD}@{host}/run/a.safetensors"))
        assert PASSWORD not in str(caught.value)


def test_sftp_without_a_server_is_soon_an_error() -> None:
    with pytest.raises(OutOfReachError, match="cannot read: no connection to the server"):
        open_input(located("sftp://me:pw@127.0.0.1:1/a.pt"))


def test_nothing_is_written() -> None:
    with pytest.raises(RefusedError, match="sftp:// can only be read"):
        check_file_destination(located("sftp://host/a.pt"))
