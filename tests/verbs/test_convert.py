"""What `convert` refuses, keeps and leaves alone."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ptsave
from ptsave.errors import CorruptError, LimitError, LossyError, RefusedError, UnreadableError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME, destination_writer
from ptsave.storage.windows import FileStorage
from ptsave.verbs.convert import Conversion, convert
from ptsave.verbs.edit import parse_edits
from tests.attacks import torch_files as tf
from tests.formats.write_cases import assert_same
from tests.support import Command

STATE = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.ones(70_000), c=torch.tensor(3))


def run(
    source: Path, destination: Path, format: str | None = None, *, dtype: str | None = None, **how: Any
) -> Conversion:
    """Convert with the library's own call; `record` and `overwrite` go to the writer."""
    options = WriteOptions(**{key: how.pop(key) for key in ("record", "overwrite") if key in how})
    edits = parse_edits(
        how.pop("only", None), how.pop("drop", None), None, how.pop("rename", None), dtype, False
    )
    with open_checkpoint(source) as checkpoint:
        return convert(
            [checkpoint], destination, destination_writer(destination, format), options, edits, **how
        )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    torch.save(STATE, home / "a.pt")
    return home / "a.pt"


# --- the source is never changed


@pytest.mark.parametrize("format", BY_NAME)
def test_the_source_is_never_the_destination(source: Path, format: str) -> None:
    home = source.parent
    is_folder = BY_NAME[format].is_folder
    own = home if is_folder else source
    before = tree(home)
    with pytest.raises(RefusedError, match="never changed"):
        run(source, own, format, overwrite=True)
    link = home.parent / "link"
    link.symlink_to(own)
    with pytest.raises(RefusedError, match="never changed"):
        run(source, link, format, overwrite=True)
    if not is_folder:
        os.link(source, home.parent / "twin")
        with pytest.raises(RefusedError, match="never changed"):
            run(source, home.parent / "twin", format, overwrite=True)
    assert tree(home) == before


@pytest.mark.parametrize("format", ["dcp", "safetensors-sharded"])
def test_no_file_of_a_source_folder_is_replaced(source: Path, format: str) -> None:
    folder = source.parent.parent / "folder"
    run(source, folder, format)
    before = tree(folder)
    for destination, target in (
        (folder, "dcp"),
        (folder, "safetensors-sharded"),
        *((folder / name, "pt") for name in os.listdir(folder)),
    ):
        with pytest.raises(RefusedError, match="never changed"):
            run(folder, destination, target, overwrite=True)
    assert tree(folder) == before
    for destination, target in ((folder / "beside.npz", "npz"), (folder / "below", "dcp")):
        with pytest.raises(RefusedError, match="never changed"):  # it would become a part of the source
            run(folder, destination, target)
    assert tree(folder) == before


def test_a_source_that_shrinks_meanwhile(source: Path) -> None:
    """Its end is cut off between the opening and the reading."""
    destination = source.parent / "b.safetensors"
    with open_checkpoint(source) as checkpoint:
        os.truncate(source, source.stat().st_size // 2)
        with pytest.raises(UnreadableError, match="changed while it was read"):
            convert(
                [checkpoint],
                destination,
                BY_NAME["safetensors"],
                WriteOptions(),
                parse_edits(*[None] * 5, False),
            )
    assert os.listdir(source.parent) == ["a.pt"]


@pytest.mark.parametrize("where", [0, -1])
def test_a_source_with_a_flipped_bit(source: Path, where: int) -> None:
    """The CRC-32 of the source is checked on the way, and names the tensor."""
    with open_checkpoint(source) as checkpoint:
        storage = checkpoint.tensors["b"].storage
        assert isinstance(storage, FileStorage)
        place = storage.offset_bytes + (storage.num_bytes + where) % storage.num_bytes
    with open(source, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    for format in BY_NAME:
        with pytest.raises(CorruptError, match="'b' is damaged"):
            run(source, source.parent / "x", format)
    with pytest.raises(CorruptError, match="'b' is damaged"):
        run(source, source.parent / "x", "pt", dtype="bfloat16")
    assert os.listdir(source.parent) == ["a.pt"]


@pytest.mark.parametrize("format", BY_NAME)
def test_a_plan_writes_nothing(source: Path, format: str) -> None:
    before = tree(source.parent.parent)
    plan = run(source, source.parent / "x", format, dry_run=True)
    assert (plan.num_tensors, plan.is_plan) == (3, True)
    run(source, source.parent / "no" / "folder", format, dry_run=True)
    assert tree(source.parent.parent) == before


# --- what a target cannot hold


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../b", "a\\b", "nul\0"])
def test_npz_takes_no_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    torch.save({name: torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(LossyError, match="not a plain path"):
        run(tmp_path / "a.pt", tmp_path / "b.npz")
    assert os.listdir(tmp_path) == ["a.pt"]


def test_colliding_renames_are_refused(source: Path) -> None:
    with pytest.raises(RefusedError, match="both become"):
        run(source, source.parent / "b.pt", rename=["[ab]=x"])
    with pytest.raises(RefusedError, match="empty name"):
        run(source, source.parent / "b.pt", rename=["a="])
    with pytest.raises(RefusedError, match="nothing is left"):
        run(source, source.parent / "b.pt", drop=["*"])
    with pytest.raises(UsageError, match="no name matches"):
        run(source, source.parent / "b.pt", only=["nothing.*"])


@pytest.mark.parametrize(
    ("format", "can"), [("pt", True), ("dcp", True), ("safetensors", True), ("npz", False)]
)
def test_a_checkpoint_without_tensors(tmp_path: Path, format: str, can: bool) -> None:
    torch.save({}, tmp_path / "a.pt")
    if not can:
        with pytest.raises(LossyError):
            run(tmp_path / "a.pt", tmp_path / "b", format)
        return
    run(tmp_path / "a.pt", tmp_path / "b", format)
    with open_checkpoint(tmp_path / "b") as found:
        assert (dict(found.tensors), dict(found.data)) == ({}, {})


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """An object with a tensor inside, reached twice, and what torch itself loads."""
    settings = argparse.Namespace(lr=0.1, mean=torch.arange(3.0))
    state = {
        "args": settings,
        "again": [settings, 1],
        "device": torch.device("cuda", 1),
        "dtype": torch.float16,
        "model": OrderedDict(w=torch.ones(2)),
        "frozen": frozenset([1]),
    }
    torch.save(state, tmp_path / "mixed.pt")
    return tmp_path / "mixed.pt"


@pytest.mark.parametrize("format", ["pt", "dcp"])
def test_only_what_cannot_be_held_is_refused(mixed: Path, format: str) -> None:
    destination = mixed.parent / "out"
    with pytest.raises(LossyError) as caught:
        run(mixed, destination, format)
    assert set(caught.value.details["extras"]) == {"args", "args.lr", "again.0", "frozen"}
    dropped = run(mixed, destination, format, extras="drop")
    assert set(dropped.dropped) == {"args", "args.lr", "again.0", "frozen"}
    run(destination, mixed.parent / "back.pt")
    found = torch.load(mixed.parent / "back.pt", weights_only=True)
    assert found["device"] == torch.device("cuda", 1)
    assert found["dtype"] is torch.float16
    assert found["again"] == [1]
    assert_same(found["model"]["w"], torch.ones(2))
    assert [*found["args"]] == ["mean"]
    assert_same(found["args"]["mean"], torch.arange(3.0))


@pytest.mark.parametrize("format", ["pt", "dcp", "safetensors", "safetensors-sharded"])
def test_what_is_kept_of_what_cannot_be_held(mixed: Path, format: str) -> None:
    """Tensors under their path, plain data as JSON in the record."""
    destination = mixed.parent / "out"
    kept = run(mixed, destination, format, extras="keep")
    assert kept.dropped == []
    with open_checkpoint(destination) as found:
        assert {"model.w", "args.mean"} <= found.tensors.keys()
        assert found.record is not None
        assert found.record.extras["args.lr"] == 0.1
        assert found.record.extras["args"] == {"opaque": "argparse.Namespace"}


def test_quantized_tensors_stay_in_pt(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: they are deprecated
        quantized = torch.quantize_per_tensor(torch.linspace(-1, 1, 9), 0.1, 3, torch.qint8)
    torch.save({"q": quantized, "w": torch.ones(2)}, tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "b.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.load(tmp_path / "b.pt", weights_only=True)["q"]
    assert_same(found.int_repr(), quantized.int_repr())
    assert (found.q_scale(), found.q_zero_point()) == (quantized.q_scale(), 3)
    with pytest.raises(LossyError):
        run(tmp_path / "a.pt", tmp_path / "b.safetensors")


# --- ties


@pytest.mark.parametrize("format", ["safetensors", "safetensors-sharded"])
def test_ties_come_back_without_a_record(tmp_path: Path, format: str) -> None:
    tied = torch.arange(4.0)
    torch.save({"b": tied, "a": tied, "c": torch.ones(1)}, tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "out", format, record=False)
    run(tmp_path / "out", tmp_path / "b.pt", record=False)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert_same(found["a"], tied)


# --- the whole command


def test_the_command_refuses_its_source(ptsave_here: Command, source: Path) -> None:
    done = ptsave_here("convert", source, source, "--overwrite", "--json", code=4)
    assert json.loads(done.stdout)["error"]["what"].startswith("the destination is an input")


@pytest.mark.slow
def test_fifty_thousand_tensors_through_a_folder(tmp_path: Path) -> None:
    """More than the caps of a state dict's pickle allow: DCP spends ten times as much on a tensor."""
    data = torch.rand(50_000, 3)
    torch.save({f"layers.{i}.weight": data[i].clone() for i in range(len(data))}, tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "folder", "dcp")
    run(tmp_path / "folder", tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    assert_same(torch.stack([found[f"layers.{i}.weight"] for i in range(len(data))]), data)


def test_what_each_rank_has_of_its_own_is_not_left_behind(tmp_path: Path) -> None:
    """Experts under one name are; statistics of which one rank's stand for all are no loss."""
    model = {"router.weight": torch.ones(2), "norm.running_mean": torch.zeros(2)}
    own = {
        str(rank): {"model_state_dict": {"expert.weight": torch.full((2,), float(rank))}} for rank in (0, 1)
    }
    own["1"]["model_state_dict"]["norm.running_mean"] = torch.ones(2)
    plan = {"names": (), "kinds": (), "sources": ()}
    torch.save({"model_state_dict": model, "ranks": own, "rank_values": plan}, tmp_path / "a.pt")
    out = tmp_path / "b.safetensors"
    with pytest.raises(LossyError, match=r"'ranks\.0\.model_state_dict\.expert\.weight' \(rank 0's own"):
        run(tmp_path / "a.pt", out, select="model_state_dict")
    done = run(tmp_path / "a.pt", out, select="model_state_dict", extras="drop")
    assert set(load_file(out)) == set(model)
    assert list(done.dropped) == [f"ranks.{rank}.model_state_dict.expert.weight" for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[100_001], [60_000, 60_000]])
def test_a_small_file_of_very_many_tensors(counts: list[int], tmp_path: Path) -> None:
    """Each takes a writer some time and memory, and six bytes of safetensors' header more than a name."""
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(counts))]
    for path, count in zip(paths, counts, strict=True):
        header = {f"{path.stem}.{i:x}": tf.info("U8", (0,), (0, 0)) for i in range(count)}
        path.write_bytes(tf.safetensors(header))
    assert sum(path.stat().st_size for path in paths) < 16 * 1024**2
    with ExitStack() as opened, pytest.raises(LimitError, match=" tensors = 100000 "):
        convert(
            [opened.enter_context(open_checkpoint(path)) for path in paths],
            tmp_path / "out",
            BY_NAME["pt"],
            WriteOptions(),
            parse_edits(None, None, None, None, None, False),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_file_of_any_size_is_converted_with_all_that_its_reader_lists(tmp_path: Path) -> None:
    """A word vector's name is short: 280,000 of them make 20 MB."""
    header = {f"w{i}": tf.info("F32", (1,), (4 * i, 4 * i + 4)) for i in range(280_000)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(tf.safetensors(header, bytes(4 * 280_000)))
    assert run(path, tmp_path / "a.pt", dry_run=True).num_tensors == 280_000


def test_an_adapter_is_said_to_stay_apart(tmp_path: Path) -> None:
    save_file({"q.weight": torch.ones(4, 4)}, tmp_path / "base.safetensors")
    save_file({"q.lora_A.weight": torch.ones(1, 4)}, tmp_path / "adapter.safetensors")
    paths = [tmp_path / name for name in ("base.safetensors", "adapter.safetensors", "both.safetensors")]
    assert [note for note in ptsave.convert(*paths).notes if "merge_and_unload" in note]
    assert not ptsave.convert(paths[1], tmp_path / "copy.safetensors").notes
