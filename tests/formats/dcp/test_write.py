"""The DCP writer, checked against torch.distributed.checkpoint."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ptsave.core.checkpoint import LIVE
from ptsave.core.nodes import Opaque
from ptsave.core.storage import MemoryStorage
from ptsave.errors import LimitError, LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.dcp import write as dcp_write
from ptsave.formats.dcp.write import write
from ptsave.formats.torch.archive import ItemFrame, TorchArchive
from ptsave.formats.torch.storage_plan import PlannedStorage
from ptsave.formats.torch.write import write as write_pt
from ptsave.formats.zip.layout import ALIGN_BYTES
from ptsave.storage.scan import tensor_digest
from tests.formats.write_cases import assert_same, bits, checkpoint_of, state_dicts
from tests.support import examples

OPTIONS = WriteOptions(overwrite=True)


def load(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: not initialized, assuming a single process
        dcp.load(state, checkpoint_id=folder)
    return state


@given(state_dicts())
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_torch_reads(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    source = checkpoint_of(state)
    write(source, tmp_path / "f", OPTIONS)
    found = load(tmp_path / "f", {n: torch.empty(t.shape, dtype=t.dtype) for n, t in state.items()})
    for name, tensor in state.items():
        assert_same(found[name], tensor)
    with open_checkpoint(tmp_path / "f") as checkpoint:
        assert checkpoint.record is not None
        assert checkpoint.record.digests is not None
        for name, entry in checkpoint.tensors.items():
            assert tensor_digest(entry) == checkpoint.record.digests.tensors[name]
        if state:
            assert all(f.level == "ok" for check in checkpoint.checks for f in check())


def training_state() -> tuple[torch.nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.BatchNorm1d(40))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 30)).sum().backward()
    optimizer.step()
    tied = torch.randn(3)
    extra = {"epoch": 3, "empty": {}, "list": [], "pair": (1, tied), "mixed": [2, {"x": torch.ones(2)}]}
    return (
        model,
        optimizer,
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "tied": tied,
            "twin": tied,
            **extra,
        },
    )


def test_metadata_that_would_not_be_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcp_write, "MAX_METADATA_BYTES", 100)
    with pytest.raises(LossyError, match="metadata_bytes = 100"):
        write(checkpoint_of(OrderedDict(w=torch.ones(2))), tmp_path / "d", OPTIONS)
    assert not list(tmp_path.iterdir())


def test_the_items_are_those_that_torch_makes(tmp_path: Path) -> None:
    _, _, state = training_state()
    write(checkpoint_of(state), tmp_path / "ours", OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(state), checkpoint_id=tmp_path / "theirs")
    ours, theirs = (pickle.loads((tmp_path / f / ".metadata").read_bytes()) for f in ("ours", "theirs"))
    only_ours = {"empty"}  # torch drops empty dictionaries
    assert ours.state_dict_metadata.keys() - only_ours == theirs.state_dict_metadata.keys()
    for name, about in theirs.state_dict_metadata.items():
        assert ours.state_dict_metadata[name] == about
        assert ours.planner_data[name] == theirs.planner_data[name]
    assert ours.storage_data.keys() - theirs.storage_data.keys() == {
        key for key in ours.storage_data if key.fqn in only_ours
    }


def test_a_list_of_empty_dicts_is_one_item(tmp_path: Path) -> None:
    """torch's loaders make a list of values one item; one item for each, and they find none."""
    tree = {"w": torch.ones(2), "groups": [{}, [{}]], "mixed": [{}, {"lr": 1}, torch.ones(1)]}
    write(checkpoint_of(tree), tmp_path / "f", WriteOptions())
    dcp_to_torch_save(tmp_path / "f", tmp_path / "theirs.pt")
    theirs = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert theirs["groups"] == tree["groups"]
    assert theirs["mixed"][:2] == tree["mixed"][:2]


def test_a_training_checkpoint_makes_the_round_trip(tmp_path: Path) -> None:
    model, optimizer, state = training_state()
    write(checkpoint_of(state), tmp_path / "f", OPTIONS)
    dcp_to_torch_save(tmp_path / "f", tmp_path / "theirs.pt")
    theirs = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert theirs["empty"] == {}
    assert theirs["pair"][0] == 1
    assert_same(theirs["model"]["0.weight"], state["model"]["0.weight"])
    with open_checkpoint(tmp_path / "f") as found:
        write_pt(found, tmp_path / "back.pt", OPTIONS)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back["twin"].data_ptr() == back["tied"].data_ptr()
    optimizer.load_state_dict(back["optimizer"])
    model.load_state_dict(back["model"])
    assert back["epoch"] == 3
    assert back["list"] == []
    for number, moments in state["optimizer"]["state"].items():
        assert bits(back["optimizer"]["state"][number]["exp_avg"]) == bits(moments["exp_avg"])


def test_an_old_set_gives_way_in_one_step(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for value, file_name in ((1.0, "__0_0.distcp"), (2.0, "__0_1.distcp"), (3.0, "__0_0.distcp")):
        write(checkpoint_of({"w": torch.full((3,), value)}), folder, OPTIONS)
        assert sorted(path.name for path in folder.iterdir()) == [".metadata", file_name, "ptsave.json"]
        assert load(folder, {"w": torch.zeros(3)})["w"].tolist() == [value] * 3


def test_a_record_is_void_once_torch_has_saved_there(tmp_path: Path) -> None:
    write(checkpoint_of({"w": torch.ones(3)}), tmp_path / "f", OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"w": torch.zeros(3)}, checkpoint_id=tmp_path / "f")
    with open_checkpoint(tmp_path / "f") as found:
        assert found.record is None
        assert any("belongs to an earlier save" in note for note in found.notes)


def test_large_tensors_lie_at_page_boundaries(tmp_path: Path) -> None:
    write(checkpoint_of({"s": torch.ones(3), "w": torch.ones(50_000)}), tmp_path / "f", OPTIONS)
    with open_checkpoint(tmp_path / "f") as found:
        assert found.tensors["w"].storage.offset_bytes % 4096 == 0  # type: ignore[attr-defined]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    _, _, state = training_state()
    for name in ("a", "b"):
        write(checkpoint_of(state), tmp_path / name, OPTIONS)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("num_bytes", [0, 4, 70, 70_000])
def test_the_frame_of_an_item_is_that_of_an_archive(num_bytes: int) -> None:
    part = PlannedStorage(MemoryStorage(bytes(num_bytes)), 0, num_bytes, {}, "FloatStorage", "0")
    frame = ItemFrame(b"x" * 50, part)
    for pickle_, crc in ((b"a" * 50, 0), (b"b" * 50, 2**32 - 1)):
        archive = TorchArchive(128, pickle_, [part], is_item=True)
        local = archive.data[0].local_header(crc)
        (begin, front), (behind, tail) = archive.pieces()
        assert (begin, frame.before(pickle_, crc)) == (128, front + local)
        after = frame.after(pickle_, crc)
        assert len(after) == frame.trailer_bytes
        assert behind == 128 + frame.data_offset + num_bytes
        assert after[: len(tail)] == tail
        assert not any(after[len(tail) :])
        assert (frame.num_bytes + len(after) - len(tail)) % ALIGN_BYTES == 0


def test_every_item_out_of_a_small_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value beside the tensors counts twice; a list of plain values is one."""
    monkeypatch.setattr("ptsave.formats.dcp.write.MAX_SMALL_FILE_ITEMS", 5)
    torch.save({"w": torch.ones(1), "a": 1, "b": [1, 2, 3]}, tmp_path / "three.pt")
    torch.save({"w": torch.ones(1), "a": 1, "b": {"c": 1, "d": 2}}, tmp_path / "four.pt")
    with open_checkpoint(tmp_path / "three.pt") as source:
        write(source, tmp_path / "f", OPTIONS)
    with (
        open_checkpoint(tmp_path / "four.pt") as source,
        pytest.raises(LimitError, match="converted_items = 5"),
    ):
        write(source, tmp_path / "g", OPTIONS)
    assert not (tmp_path / "g").exists()
    live = checkpoint_of({f"w{i}": torch.ones(1) for i in range(6)})
    live.format = LIVE
    write(live, tmp_path / "h", OPTIONS)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (torch.ones(3), "holds a dict"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, r"two values named 'a\.b'"),
        ({"a": {(1, 2): 3}}, r"the key \(1, 2\) of 'a'"),
        ({"a": Opaque("pkg.Thing")}, "a pkg.Thing"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, root: Any, message: str) -> None:
    with pytest.raises(LossyError, match=message):
        write(checkpoint_of(root), tmp_path / "f", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_integer_keys_that_become_text_are_noted(tmp_path: Path) -> None:
    written = write(checkpoint_of({"history": {1: 0.5}, "w": torch.ones(1)}), tmp_path / "f", OPTIONS)
    assert written.notes == ("the integer keys of 'history' become text, as DCP has no others",)
