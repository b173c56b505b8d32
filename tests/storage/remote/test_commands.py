"""Checkpoints on other machines give what they give on a disk, for few requests and few bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ptsave
from ptsave.core.checkpoint import Checkpoint
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from ptsave.storage.remote.pieces import HELD_BYTES, PIECE_BYTES
from ptsave.verbs.inspect import inspect
from tests.servers import faults
from tests.servers.folders import folder
from tests.servers.serving import Server
from tests.support import Command

STATE = {f"layer.{i}.weight": torch.full((64, 32), float(i)) for i in range(200)}
NUM_SHARDS = 50


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    save_file(STATE, root / "a.safetensors")
    torch.save(STATE, root / "a.pt")
    torch.save(STATE, root / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": STATE, "names": list(STATE)}, root / "training.pt")
    torch.save({f"a.very.long.name.{i:06}.weight": torch.zeros(1) for i in range(3000)}, root / "many.pt")
    save_file({f"a.very.long.name.{i:06}": torch.zeros(1) for i in range(3000)}, root / "many.safetensors")
    (root / "sharded").mkdir()
    names = list(STATE)
    weight_map = {}
    for i in range(NUM_SHARDS):
        part = {name: STATE[name] for name in names[4 * i : 4 * i + 4]}
        file = f"model-{i + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        save_file(part, root / "sharded" / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 200 * 64 * 32 * 4}, "weight_map": weight_map}
    (root / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with Server(folder(root)) as running:
        yield running


def shown(checkpoint: Checkpoint) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(row.entry.name, row.entry.dtype.name, row.entry.shape) for row in inspect(checkpoint).rows]


@pytest.mark.parametrize(
    ("name", "most_requests"),
    [
        ("a.safetensors", 2),
        ("many.safetensors", 2),
        ("a.pt", 4),
        ("training.pt", 4),
        ("many.pt", 4),
        ("sharded/model.safetensors.index.json", 1 + 2 * NUM_SHARDS),
    ],
)
def test_looking_into_a_file_takes_few_requests_and_bytes(
    name: str, most_requests: int, root: Path, server: Server
) -> None:
    with open_checkpoint(root / name) as local, open_checkpoint(f"{server.url}/{name}") as remote:
        assert shown(local) == shown(remote)
        assert local.format == remote.format
    assert len(server.log) <= most_requests
    num_bytes = (root / name).stat().st_size
    if num_bytes > 1_000_000:
        tensors = sum(entry.num_bytes for entry in local.tensors.values())
        assert server.num_bytes_out <= num_bytes - tensors + 65_536


@pytest.mark.slow
def test_shards_are_opened_side_by_side(server: Server) -> None:
    """With 50 ms on each of some 50 requests, one after the other would take 2.5 seconds."""
    with server.faulty(faults.delay(0.05)):
        open_checkpoint(f"{server.url}/sharded/model.safetensors.index.json").close()
    waits = sum(exchange.end_s - exchange.begin_s for exchange in server.log)
    took = max(exchange.end_s for exchange in server.log) - server.log[0].begin_s
    assert waits > 3 * took


@pytest.mark.parametrize(
    "name", ["a.safetensors", "a.pt", pytest.param("many.pt", marks=pytest.mark.slow), "legacy.pt"]
)
def test_every_tensor_is_the_same(name: str, root: Path, server: Server) -> None:
    with ptsave.open(root / name) as local, ptsave.open(f"{server.url}/{name}") as remote:
        assert list(local) == list(remote)
        assert all(torch.equal(local[key], remote[key]) for key in local)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_conversion_reads_each_byte_once(name: str, root: Path, server: Server, tmp_path: Path) -> None:
    ptsave_of = [tmp_path / "remote.safetensors", tmp_path / "local.safetensors"]
    for source, destination in zip((f"{server.url}/{name}", str(root / name)), ptsave_of, strict=True):
        _convert(source, destination)
    assert ptsave_of[0].read_bytes() == ptsave_of[1].read_bytes()
    assert len(server.log) <= 6
    assert server.num_bytes_out <= (root / name).stat().st_size + 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_conversion_reads_hardly_a_byte_twice_where_memory_is_less_than_the_file(
    name: str, tmp_path: Path
) -> None:
    """Three times the memory of all pieces, in tensors of which most lie in two pieces."""
    state = {f"layers.{i}.weight": torch.rand(650_000) for i in range(30)}
    if name.endswith(".pt"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    num_bytes = (tmp_path / name).stat().st_size
    assert num_bytes > 3 * HELD_BYTES
    with Server(folder(tmp_path)) as server:
        _convert(f"{server.url}/{name}", tmp_path / "out.safetensors")
    assert server.num_bytes_out < 1.1 * num_bytes
    assert len(server.log) <= num_bytes / PIECE_BYTES + 6  # no rest of a piece is asked for by itself


def _convert(source: str, destination: Path) -> None:
    from ptsave.formats.base import WriteOptions
    from ptsave.formats.writers import BY_NAME
    from ptsave.verbs.convert import convert
    from ptsave.verbs.edit import Edits

    with open_checkpoint(source) as checkpoint:
        convert([checkpoint], destination, BY_NAME["safetensors"], WriteOptions(), Edits())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_statistics_of_some_tensors_read_these(name: str, server: Server, ptsave_here: Command) -> None:
    done = ptsave_here("inspect", "--stats", "--filter", "layer.17.*", f"{server.url}/{name}")
    assert "17" in done.stdout
    assert server.num_bytes_out < 100_000 + 64 * 32 * 4


def test_a_header_that_contradicts_the_directory_is_found_when_its_record_is_read(
    root: Path, tmp_path: Path
) -> None:
    data = bytearray((root / "a.pt").read_bytes())
    at = data.index(b"data/100", data.index(b"data/99"))  # in its local header
    data[at + 5 : at + 8] = b"1x0"
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CorruptError):
        open_checkpoint(tmp_path / "a.pt")
    with Server(folder(tmp_path)) as server, ptsave.open(f"{server.url}/a.pt") as remote:
        assert torch.equal(remote["layer.99.weight"], STATE["layer.99.weight"])
        with pytest.raises(CorruptError, match="another name"):
            remote["layer.100.weight"]


def test_a_file_that_is_also_a_zip_archive_is_found_before_a_tensor_is_read(
    root: Path, tmp_path: Path
) -> None:
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", b"b")
    size = len(packed.getvalue())
    tensor = torch.frombuffer(bytearray(packed.getvalue()), dtype=torch.uint8)
    save_file({"big": torch.zeros(100_000), "z": tensor}, tmp_path / "both.safetensors")
    assert (tmp_path / "both.safetensors").read_bytes()[-size:] == packed.getvalue()
    with pytest.raises(CorruptError, match="also ends as a zip"):
        open_checkpoint(tmp_path / "both.safetensors")
    with Server(folder(tmp_path)) as server:
        remote = ptsave.open(f"{server.url}/both.safetensors")
        with pytest.raises(CorruptError, match="also ends as a zip"):
            remote["big"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_file_that_changes_during_a_command_gives_one_error(
    name: str, root: Path, tmp_path: Path, ptsave_here: Command
) -> None:
    path = tmp_path / name
    path.write_bytes((root / name).read_bytes())
    with Server(folder(tmp_path)) as server:
        address = f"{server.url}/{name}"
        with server.faulty(faults.replaced(lambda: path.write_bytes(path.read_bytes()), after_requests=1)):
            done = ptsave_here("verify", address, code=3)
    assert "was changed while it was read" in done.stderr
