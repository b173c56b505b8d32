"""File systems of fsspec that are written to: SFTP on a real server, and the one of this process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file

import ptsave
from ptsave.core.address import Address, located
from ptsave.errors import ExistsError, PtsaveError, RefusedError, WriteError
from ptsave.storage.opening import (
    check_shared_destination,
    replacing_file,
    replacing_folder,
    write_file,
)
from ptsave.storage.upload.store import UploadStore
from tests.servers.sftp import PASSWORD, sftp
from tests.storage.upload.objects import KIB, LARGE, PART_BYTES, content, fill
from tests.support import Command


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server's root, and the folder that it is."""
    root = tmp_path_factory.mktemp("sftp")
    with sftp(root, tmp_path_factory.mktemp("log") / "sftp.log") as host:
        yield f"sftp://me:{PASSWORD}@{host}", root


@pytest.fixture(params=["sftp", "memory"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Callable[[], dict[str, bytes]]]]:
    """The address of an empty folder, and what tells all that is in it."""
    monkeypatch.setattr(UploadStore, "min_part_bytes", PART_BYTES)
    monkeypatch.setattr(UploadStore, "part_unit_bytes", KIB)
    if request.param == "memory":
        files: Any = fsspec.filesystem("memory")
        yield "memory://run", lambda: {k.removeprefix("/run/"): v.getvalue() for k, v in files.store.items()}
        files.store.clear()
        return
    url, root = request.getfixturevalue("server")
    folder = root / tmp_path.name
    folder.mkdir()
    yield (
        f"{url}/{folder.name}",
        lambda: {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        },
    )


Place = tuple[str, Callable[[], dict[str, bytes]]]


def address(text: str) -> Address:
    found = located(text)
    assert isinstance(found, Address)
    return found


def write(place: Place, data: bytes, *, overwrite: bool = False, meanwhile: object = None) -> str:
    """Write `data`, and call `meanwhile` before it has its name; returns by what it was checked."""
    with replacing_file(address(f"{place[0]}/m"), len(data), overwrite=overwrite) as output:
        fill(output, data)
        if callable(meanwhile):
            meanwhile()
    return output.checked


@pytest.mark.parametrize("num_bytes", [0, 1, LARGE])
def test_a_file_arrives_whole_and_is_read_back(place: Place, num_bytes: int) -> None:
    assert write(place, content(num_bytes)) == "reading it back by ranges"
    assert place[1]() == {"m": content(num_bytes)}
    with pytest.raises(ExistsError):
        write(place, b"other")
    write(place, b"another", overwrite=True)
    assert place[1]() == {"m": b"another"}


def test_what_is_not_complete_has_no_name_and_an_error_leaves_nothing(place: Place) -> None:
    def look() -> None:
        assert "m" not in place[1]()
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        write(place, content(LARGE), meanwhile=look)
    assert place[1]() == {}


def test_what_another_writes_meanwhile_stands(place: Place) -> None:
    def other() -> None:
        write_file(address(f"{place[0]}/m"), b"theirs", overwrite=True)

    with pytest.raises(ExistsError):
        write(place, content(LARGE), meanwhile=other)
    assert place[1]() == {"m": b"theirs"}
    write(place, b"old!!!!", overwrite=True)
    with pytest.raises(WriteError, match="meanwhile"):
        write(place, content(LARGE), overwrite=True, meanwhile=other)
    assert place[1]() == {"m": b"theirs"}


def test_of_sixteen_creators_one_wins(place: Place) -> None:
    begin, won = threading.Barrier(16), []

    def create(number: int) -> None:
        begin.wait()
        try:
            write(place, content(100, number))
        except ExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [content(100, number) for number in won] == [*place[1]().values()]


def test_a_folder_is_written_and_replaced(place: Place) -> None:
    state = {f"layer.{i}": torch.full((1000,), float(i)) for i in range(8)}
    source = fsspec.filesystem("memory")
    source.pipe_file("/source.pt", b"")
    with source.open("/source.pt", "wb") as file:
        torch.save(state, file)
    for _ in range(2):
        ptsave.convert("memory://source.pt", f"{place[0]}/sharded", shard_size=9000, overwrite=True)
        with ptsave.open(f"{place[0]}/sharded") as checkpoint:
            assert all(torch.equal(checkpoint[name], state[name]) for name in state)
    assert sum(name.endswith(".safetensors") for name in place[1]() if "sharded" in name) == 4
    with pytest.raises(ExistsError), replacing_folder(address(f"{place[0]}/sharded"), 1):
        pass


def test_a_run_and_a_folder_of_many_ranks_are_refused(place: Place) -> None:
    with pytest.raises(RefusedError, match="has no conditions"):
        ptsave.Checkpoints(place[0])
    with pytest.raises(RefusedError, match="has no conditions"):
        check_shared_destination(address(place[0]))


KILLED = """
import os, signal, sys
from ptsave.core.address import located
from ptsave.storage.opening import replacing_file
from ptsave.storage.upload.store import UploadStore
UploadStore.min_part_bytes = UploadStore.part_unit_bytes = 4096
with replacing_file(located(sys.argv[1]), 40_000, overwrite=True) as output:
    output.write_at(0, bytes(30_000))
    while len(output._receipts) < 7:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_a_killed_writer_has_sent_is_removed_by_the_next(server: tuple[str, Path]) -> None:
    url, root = server
    (root / "killed").mkdir()
    (root / "killed" / "m").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, f"{url}/killed/m"], env=os.environ)
    assert done.returncode < 0
    left = {path.name: path.stat().st_size for path in (root / "killed").iterdir()}
    assert left.pop("m") == 3
    assert [*left.values()] == [28_672]
    write_file(address(f"{url}/killed/m"), b"new", overwrite=True)
    assert [path.name for path in (root / "killed").iterdir()] == ["m"]


def test_a_command_writes_by_sftp_and_shows_no_secret(
    server: tuple[str, Path], tmp_path: Path, ptsave_here: Command
) -> None:
    url, root = server
    save_file({"w": torch.arange(1000.0)}, tmp_path / "a.safetensors")
    done = ptsave_here("convert", "a.safetensors", f"{url}/new/folder/b.pt")
    assert torch.equal(torch.load(root / "new/folder/b.pt")["w"], torch.arange(1000.0))
    refused = ptsave_here("convert", "a.safetensors", f"{url}/new/folder/b.pt", code=4)
    assert "--overwrite" in refused.stderr
    replaced = ptsave_here("convert", "a.safetensors", f"{url}/new/folder/b.pt", "--overwrite")
    wrong = ptsave_here("convert", "a.safetensors", url.replace(PASSWORD, "x" + PASSWORD) + "/c.pt", code=3)
    assert PASSWORD not in "".join(one.stdout + one.stderr for one in (done, refused, replaced, wrong))


def test_what_may_not_be_written_is_refused(server: tuple[str, Path]) -> None:
    url, root = server
    (root / "closed").mkdir()
    (root / "closed" / "m").mkdir()
    with pytest.raises(PtsaveError):
        write_file(address(f"{url}/closed/m"), b"a")
    assert [*(root / "closed" / "m").iterdir()] == []
