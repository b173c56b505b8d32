"""Tensors read into fresh memory, mapped, and streamed: the same values whatever way, file and dtype."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.values.digest import recorded_digests
from ptsave.errors import CorruptError, LossyError, PtsaveError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.torch.write import write
from ptsave.models.weights import streaming
from ptsave.models.weights.live import checkpoint_of
from ptsave.models.weights.mapped import map_apart, map_tensors
from ptsave.models.weights.streaming import stream_into
from ptsave.models.weights.tensors import read_tensors
from ptsave.storage import fetch, system
from tests.support import some

Tensors = dict[str, torch.Tensor]
Way = Callable[[Checkpoint], Tensors]


def read(checkpoint: Checkpoint) -> Tensors:
    digests = recorded_digests(checkpoint.tensors.values(), checkpoint.record)
    return dict(read_tensors(checkpoint.tensors, digests=digests.tensors, algorithm=digests.algorithm))


def streamed(checkpoint: Checkpoint, *, through_buffers: bool = False) -> Tensors:
    targets = {}
    for name, entry in checkpoint.tensors.items():
        dtype = getattr(torch, entry.dtype.name)
        targets[name] = torch.empty(entry.shape, dtype=dtype)
        if through_buffers and targets[name].dim() > 1:  # another order of the same elements
            targets[name] = targets[name].transpose(0, 1).contiguous().transpose(0, 1)
    stream_into(
        targets, checkpoint.tensors, digests=recorded_digests(checkpoint.tensors.values(), checkpoint.record)
    )
    return targets


def buffered(checkpoint: Checkpoint) -> Tensors:
    return streamed(checkpoint, through_buffers=True)


WAYS: dict[str, Way] = {
    "read": read,
    "apart": lambda checkpoint: map_apart(checkpoint.tensors),
    "map": lambda checkpoint: map_tensors(checkpoint.tensors),
    "stream": streamed,
    "buffers": buffered,
}


@pytest.fixture(params=["preadv", "seek", "parts"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system has, its fallback, and tensors that are cut into parts."""
    monkeypatch.setattr(system, "HAS_POSITIONS", system.HAS_POSITIONS and request.param != "seek")
    if request.param == "parts":
        monkeypatch.setattr(fetch, "PART_BYTES", 1000)
        monkeypatch.setattr(fetch, "SMALL_BYTES", 0)
    monkeypatch.setattr(streaming, "STREAM_BYTES", 2048)


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def sample() -> Tensors:
    base = torch.arange(60.0)
    wide = torch.randn(70, 90)
    state = {
        "big": torch.randn(200, 301),
        "wide": wide,
        "transposed": wide.t(),
        "rows": wide[::3],
        "inside": wide[5:9, 10:20],
        "expanded": torch.randn(3, 1).expand(3, 400),
        "overlapping": base.as_strided((29, 4), (2, 1)),
        "tied": wide,
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "bool": torch.tensor([[True, False], [False, True]]),
        "complex": torch.randn(3, 5, dtype=torch.complex128),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    for name in ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "int8", "uint16", "float64"):
        state[name] = torch.randn(33, 21).abs().to(getattr(torch, name))
    if (fours := packed_fours()) is not None:
        state["fours"] = fours
    return state


def packed_fours() -> torch.Tensor | None:
    """Two 4-bit floats a byte, where this torch has them."""
    dtype = getattr(torch, "float4_e2m1fn_x2", None)
    return torch.arange(64, dtype=torch.uint8).view(8, 8).view(dtype) if dtype is not None else None


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert as_bytes(found[name]) == as_bytes(tensor), name


def repack(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("kind", some(["torch", "ptsave", "safetensors", "deflated", "dcp"], 2))
def test_every_way_gives_the_same(tmp_path: Path, kind: str, way: Way) -> None:
    state, path = sample(), tmp_path / "a"
    if kind == "safetensors":
        del state["complex"]  # which the format has no name for
        rows = torch.contiguous_format
        state = {name: tensor.clone(memory_format=rows) for name, tensor in state.items()}
        safetensors.torch.save_file(state, path)
    elif kind == "ptsave":
        write(checkpoint_of(state, path), path, WriteOptions())
    elif kind == "dcp":
        state = {name: t for name, t in state.items() if name not in ("expanded", "overlapping")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of saving from a single process
            dcp.save(  # type: ignore[attr-defined]
                state, checkpoint_id=path, no_dist=True
            )
    else:
        torch.save(state, path)
        if kind == "deflated":
            repack(path, lambda name, data: data, zipfile.ZIP_DEFLATED)
    with open_checkpoint(path) as checkpoint:
        assert_same(way(checkpoint), state)


def test_big_endian_bytes(tmp_path: Path, way: Way) -> None:
    path = tmp_path / "a.pt"
    state = {"w": torch.randn(50, 30)}
    torch.save(state, path)

    def swap(name: str, data: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        words = (data[i : i + 4][::-1] for i in range(0, len(data), 4))
        return b"".join(words) if "/data/" in name else data

    repack(path, swap)
    with open_checkpoint(path) as checkpoint:
        assert_same(way(checkpoint), state)


@pytest.mark.parametrize("name", ["read", "apart"])
def test_a_model_s_tensors_share_nothing(tmp_path: Path, name: str) -> None:
    torch.save(sample(), tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        found = WAYS[name](checkpoint)
    for name in ("expanded", "overlapping"):
        found[name].add_(1)  # torch refuses where elements share memory
    before = found["wide"].clone()
    found["tied"].zero_()
    assert torch.equal(found["wide"], before)
    assert found["channels_last"].stride() == (60, 1, 15, 3)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("name", ["read", "stream", "buffers"])
@pytest.mark.parametrize("kind", ["crc", "digest"])
def test_damage_is_named(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "a"
    state = {"a": torch.randn(9), "w": torch.randn(80, 90)}
    if kind == "crc":
        torch.save(state, path)
    else:
        from ptsave.formats.safetensors.write import write as write_safetensors

        write_safetensors(checkpoint_of(state, path), path, WriteOptions())
    content = bytearray(path.read_bytes())
    content[content.index(as_bytes(state["w"])) + 20_000] ^= 4
    path.write_bytes(content)
    with open_checkpoint(path) as checkpoint, pytest.raises(CorruptError, match="'w' is damaged"):
        WAYS[name](checkpoint)
    with open_checkpoint(path) as checkpoint:
        targets = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
        stream_into(targets, checkpoint.tensors, is_checked=False)
        assert torch.equal(targets["a"], state["a"])


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_file_cut_short_meanwhile(tmp_path: Path, kind: str, way: Way) -> None:
    path = tmp_path / "a"
    state = {"w": torch.randn(300, 300)}
    torch.save(state, path) if kind == "pt" else safetensors.torch.save_file(state, path)
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, 100_000)
        with pytest.raises(UnreadableError, match="changed while it was read"):
            way(checkpoint)


def test_saving_over_the_file_that_a_model_is_mapped_from(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = {"w": torch.randn(500, 500), "b": torch.randn(3)}
    torch.save(state, path)
    with open_checkpoint(path) as checkpoint:
        mapped = map_tensors(checkpoint.tensors)
    mapped["b"].add_(1)
    write(checkpoint_of(mapped, path), path, WriteOptions(overwrite=True))
    assert_same(mapped, {"w": state["w"], "b": state["b"] + 1})
    assert_same(torch.load(path, weights_only=True), mapped)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    torch.save({"w": torch.randn(40, 50), "v": torch.randn(40, 50)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as opened:
        yield opened


REFUSED: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "shape": (lambda: torch.zeros(50, 40), "has the shape"),
    "meta": (lambda: torch.zeros(40, 50, device="meta"), "on the meta device"),
    "expanded": (lambda: torch.zeros(40, 1).expand(40, 50), "expanded view"),
    "sparse": (lambda: torch.zeros(40, 50).to_sparse(), "sparse_coo"),
    "lazy": (nn.UninitializedParameter, "UninitializedParameter"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_targets_that_cannot_be_filled(checkpoint: Checkpoint, kind: str) -> None:
    make, message = REFUSED[kind]
    first = torch.ones(40, 50)
    with pytest.raises(LossyError, match=message):
        stream_into({"w": first, "v": make()}, checkpoint.tensors)
    assert bool((first == 1).all())  # nothing was written
    with pytest.raises(LossyError, match="has no 'other'"):
        stream_into({"other": first}, checkpoint.tensors)


def test_targets_made_in_inference_mode(checkpoint: Checkpoint) -> None:
    with torch.inference_mode():
        target = torch.zeros(40, 50)
    with pytest.raises(LossyError, match="inference mode"):
        stream_into({"w": target}, checkpoint.tensors)
    with torch.inference_mode():
        stream_into({"w": target}, checkpoint.tensors)
    assert torch.equal(target, read(checkpoint)["w"])


@pytest.mark.skipif(not system.HAS_POSITIONS, reason="needs preadv")
def test_memory_that_cannot_be_written(checkpoint: Checkpoint) -> None:
    import mmap

    with mmap.mmap(-1, 40 * 50 * 4 + mmap.PAGESIZE, prot=mmap.PROT_READ) as memory:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = torch.frombuffer(memory, dtype=torch.float32, count=2000).view(40, 50)
        with pytest.raises(PtsaveError, match="Bad address"):
            stream_into({"w": target}, checkpoint.tensors)
        del target


def test_a_model_that_is_there(checkpoint: Checkpoint) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(40, 50, dtype=torch.bfloat16))
            self.register_buffer("v", torch.zeros(50, 40).t())

    model = Net()
    parameter, where = model.w, model.w.data_ptr()
    loss = (model.w.float() ** 2).sum()
    stream_into(model, checkpoint.tensors)
    wanted = read(checkpoint)
    assert model.w is parameter
    assert model.w.data_ptr() == where
    assert model.w.requires_grad
    assert torch.equal(model.w, wanted["w"].bfloat16())
    assert torch.equal(model.get_buffer("v"), wanted["v"])
    assert model.get_buffer("v").stride() == (1, 40)
    assert loss.item() == 0


def test_autograd_knows_that_values_changed(checkpoint: Checkpoint) -> None:
    weight = torch.zeros(40, 50, requires_grad=True)
    loss = (weight**2).sum()
    stream_into({"w": weight}, checkpoint.tensors)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_targets_on_one_storage_are_filled_in_order(checkpoint: Checkpoint) -> None:
    memory = torch.zeros(40, 50)
    stream_into({"w": memory, "v": memory.view(40, 50)}, checkpoint.tensors)
    assert torch.equal(memory, read(checkpoint)["v"])  # the last, as load_state_dict has it
