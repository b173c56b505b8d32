"""The safetensors writer, checked against the safetensors library."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file

from ptsave.core.record import Digests, Record
from ptsave.errors import CorruptError, ExistsError, LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.safetensors.write import write
from ptsave.storage.scan import tensor_digest
from tests.formats.write_cases import (
    SAFETENSORS_DTYPES,
    assert_same,
    checkpoint_of,
    random_tensor,
    state_dicts,
)
from tests.support import examples

OPTIONS = WriteOptions(overwrite=True)


@given(state_dicts(SAFETENSORS_DTYPES))
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_the_library_reads(
    tmp_path: Path, state: OrderedDict[str, torch.Tensor]
) -> None:
    path = tmp_path / "m.safetensors"
    write(checkpoint_of(state), path, OPTIONS)
    found = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    aliases = json.loads(metadata["ptsave"]).get("aliases", {})
    assert found.keys() == state.keys() - aliases.keys()
    for name, tensor in state.items():
        assert_same(found[aliases.get(name, name)], tensor)


@given(state_dicts(SAFETENSORS_DTYPES))
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reading_gives_the_same_names_in_order_ties_and_digests(
    tmp_path: Path, state: OrderedDict[str, torch.Tensor]
) -> None:
    path = tmp_path / "m.safetensors"
    source = checkpoint_of(state)
    write(source, path, OPTIONS)
    with open_checkpoint(path) as found:
        assert list(found.tensors) == list(state)
        assert found.record is not None
        assert found.record.digests is not None
        for name, entry in found.tensors.items():
            digest = tensor_digest(source.tensors[name])
            assert tensor_digest(entry) == digest == found.record.digests.tensors[name]
        tied = {name: kept.view for name, kept in found.tensors.items()}
        for name, other in source.record.aliases.items() if source.record else ():
            assert tied[name] == tied[other]


def test_float4_counts_its_elements_as_the_library_does(tmp_path: Path) -> None:
    state = {"w": random_tensor(12, torch.uint8).view(torch.float4_e2m1fn_x2).view(3, 4)}
    write(checkpoint_of(state), tmp_path / "ours", OPTIONS)
    save_file(state, tmp_path / "theirs")
    assert _header(tmp_path / "ours")["w"] == _header(tmp_path / "theirs")["w"]


def _header(path: Path) -> dict[str, dict[str, object]]:
    data = path.read_bytes()
    header: dict[str, dict[str, object]] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 5)
        self.head = torch.nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_model_is_stored_once_and_load_model_takes_it(tmp_path: Path) -> None:
    model, copy = Tied(), Tied()
    written = write(checkpoint_of(model.state_dict()), tmp_path / "m.safetensors", OPTIONS)
    assert written.notes == ()
    assert load_file(tmp_path / "m.safetensors").keys() == {"embed.weight"}
    missing, unexpected = load_model(copy, tmp_path / "m.safetensors")
    assert not missing
    assert not unexpected
    assert_same(copy.head.weight, model.head.weight)


def test_overlapping_views_are_stored_separately_and_noted(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    written = write(checkpoint_of({"a": base[:6], "b": base[4:], "c": base[6:]}), tmp_path / "m", OPTIONS)
    assert [note.split(" overlaps ")[0] for note in written.notes] == ["'b'", "'c'"]
    found = load_file(tmp_path / "m")
    assert found["b"].tolist() == [4, 5, 6, 7, 8, 9]


def test_a_small_view_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    written = write(checkpoint_of({"a": torch.zeros(1_000_000)[5:8]}), tmp_path / "m", OPTIONS)
    assert written.num_bytes == (tmp_path / "m").stat().st_size < 2000


def test_tensors_are_aligned_and_whole_pages_come_first(tmp_path: Path) -> None:
    state = {
        "odd": torch.zeros(3, dtype=torch.uint8),
        "big": torch.zeros(4, 65536),
        "half": torch.zeros(5).half(),
        "double": torch.zeros(7).double(),
    }
    write(checkpoint_of(state), tmp_path / "m", OPTIONS)
    with open_checkpoint(tmp_path / "m") as found:
        offsets = {name: entry.storage.offset_bytes for name, entry in found.tensors.items()}  # type: ignore[attr-defined]
    assert offsets["big"] % 4096 == 0
    assert all(offset % state[name].element_size() == 0 for name, offset in offsets.items())


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.full((100 + i,), float(i)) for i in range(50)}
    for name in ("a", "b"):
        write(checkpoint_of(state), tmp_path / name, OPTIONS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metadata_and_record_are_carried_over(tmp_path: Path) -> None:
    record = Record(model={"class": "pkg.Net", "args": {}})
    source = checkpoint_of({"w": torch.ones(2)}, metadata={"format": "tf", "by": "me"}, record=record)
    write(source, tmp_path / "m", OPTIONS)
    with open_checkpoint(tmp_path / "m") as found:
        assert found.metadata == {"format": "pt", "by": "me"}
        assert found.record is not None
        assert found.record.model == record.model
    write(source, tmp_path / "m", replace(OPTIONS, record=False))
    with open_checkpoint(tmp_path / "m") as found:
        assert found.record is None
        assert found.metadata["by"] == "me"


@pytest.mark.parametrize("digest", ["xxh3_128", "blake3", "sha256"])
def test_a_recorded_digest_that_does_not_fit_stops_the_conversion(tmp_path: Path, digest: str) -> None:
    state = {"fine": torch.ones(3), "hurt": torch.ones(70_000)}
    source = checkpoint_of(state)
    digests = {name: tensor_digest(entry, digest) for name, entry in source.tensors.items()}
    digests["hurt"] = digests["hurt"][::-1]
    source = checkpoint_of(state, record=Record(digests=Digests(digest, digests)))
    with pytest.raises(CorruptError, match=f"'hurt' is damaged.*recorded {digest}"):
        write(source, tmp_path / "m", OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": torch.zeros(2, dtype=torch.complex128)}, "'w': it has no dtype complex128"),
        ({"w": torch.zeros(2), "epoch": 3}, "'epoch' is none"),
        ({"__metadata__": torch.zeros(2)}, "'__metadata__'"),
        ({"bad\ud800": torch.zeros(2)}, "no Unicode text"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, state: dict[str, object], message: str
) -> None:
    with pytest.raises(LossyError, match=message):
        write(checkpoint_of(state), tmp_path / "m", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(ExistsError):
        write(checkpoint_of({"w": torch.ones(2)}), tmp_path / "m", WriteOptions())
    assert (tmp_path / "m").read_text() == "mine"


def test_an_empty_state_dict_is_written(tmp_path: Path) -> None:
    write(checkpoint_of({}), tmp_path / "m", OPTIONS)
    assert load_file(tmp_path / "m") == {}
