"""File systems of fsspec: the one that lies in this process, and SFTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


@pytest.mark.slow
def test_threads_that_read_by_sftp_do_not_take_each_others_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko's client drops an answer that another thread waits for."""
    monkeypatch.setenv("PTSAVE_TIMEOUT", "20")
    data = bytes(range(251)) * 4000
    (tmp_path / "a.bin").write_bytes(data)
    with (
        sftp(tmp_path, tmp_path / "sftp.log") as host,
        open_file(located(f"sftp://me:{PASSWORD}@{host}/a.bin")) as file,
        ThreadPoolExecutor(8) as threads,
    ):
        runs = [(at, 1000) for at in range(40_000, len(data) - 1000, 9973)]
        assert [*threads.map(lambda run: file.read_at(*run), runs)] == [data[at : at + n] for at, n in runs]


def test_what_has_no_safe_rename_is_not_written_to() -> None:
    with pytest.raises(RefusedError, match="ftp:// can only be read"):
        check_file_destination(located("ftp://host/a.pt"))
