"""The torch zip writer, checked against torch.load."""

from __future__ import annotations

import zipfile
from collections import Counter, OrderedDict
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Global, Opaque
from ptsave.core.record import Record
from ptsave.errors import LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.torch.write import write
from tests.formats.write_cases import assert_same, checkpoint_of, random_tensor, state_dicts
from tests.support import examples

OPTIONS = WriteOptions(overwrite=True)


def load(path: Path, **options: Any) -> Any:
    return torch.load(path, weights_only=True, **options)


@given(state_dicts())
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_torch_reads(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    path = tmp_path / "m.pt"
    written = write(checkpoint_of(state), path, OPTIONS)
    assert written.num_bytes == path.stat().st_size
    for found in (load(path), load(path, mmap=True)):
        assert type(found) is OrderedDict
        assert list(found) == list(state)
        for name, tensor in state.items():
            assert_same(found[name], tensor)
        for name, other in combinations(state, 2):
            if is_one(state[name], state[other]) and state[name].numel():
                assert is_one(found[name], found[other])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with open_checkpoint(path) as checkpoint:
        assert all(f.level == "ok" for check in checkpoint.checks for f in check())


def is_one(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether both are the same view of the same memory."""
    return (first.data_ptr(), first.dtype, first.shape, first.stride()) == (
        second.data_ptr(),
        second.dtype,
        second.shape,
        second.stride(),
    )


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(allow_nan=False),
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict),
        st.sets(st.integers(), max_size=3),
    ),
    max_leaves=12,
)


@given(trees)
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nested_data_comes_back(tmp_path: Path, tree: Any) -> None:
    write(checkpoint_of(tree), tmp_path / "m.pt", OPTIONS)
    found = load(tmp_path / "m.pt")
    assert found == tree
    assert repr(found) == repr(tree) or "{" in repr(tree)  # sets have no order


def test_a_training_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    source = checkpoint_of(
        {
            "epoch": 7,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
    )
    source.root["dtype"] = BY_NAME["bfloat16"]
    source.root["device"] = Opaque("torch.device", ("cuda", 1))
    source.root["counts"] = Counter({"a": 2})
    write(source, tmp_path / "m.pt", OPTIONS)
    found = load(tmp_path / "m.pt")
    assert found["epoch"] == 7
    assert found["dtype"] == torch.bfloat16
    assert found["device"] == torch.device("cuda:1")
    assert found["counts"] == Counter({"a": 2})
    assert type(found["counts"]) is Counter
    state = found["model_state_dict"]
    assert state._metadata == model.state_dict()._metadata
    torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).load_state_dict(state)
    optimizer.load_state_dict(found["optimizer_state_dict"])
    assert found["optimizer_state_dict"]["state"].keys() == {0, 1, 2, 3}


def test_parameters_stay_parameters_and_objects_stay_one(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    needs = torch.ones(2, requires_grad=True)
    shared = [1, 2]
    write(
        checkpoint_of({"a": weight, "b": weight, "c": frozen, "d": needs, "x": shared, "y": shared}),
        tmp_path / "m.pt",
        OPTIONS,
    )
    found = load(tmp_path / "m.pt")
    assert type(found["a"]) is torch.nn.Parameter
    assert found["a"] is found["b"]
    assert not found["c"].requires_grad
    assert found["d"].requires_grad
    assert found["d"].is_leaf


def test_views_share_and_unused_parts_stay_behind(tmp_path: Path) -> None:
    base = torch.arange(100_000.0)
    state = {"a": base[10:20], "b": base[15:30], "far": base[90_000:90_004], "thin": base[200:90_000:1000]}
    write(checkpoint_of(state), tmp_path / "m.pt", OPTIONS)
    found = load(tmp_path / "m.pt")
    found["a"][7] = -1.0
    assert found["b"][2] == -1.0
    assert found["a"].untyped_storage().nbytes() == 20 * 4
    assert found["far"].untyped_storage().nbytes() == 4 * 4
    assert (tmp_path / "m.pt").stat().st_size < 10_000


def test_views_of_one_storage_with_several_dtypes(tmp_path: Path) -> None:
    base = random_tensor(16, torch.float32)
    state = {"f": base, "i": base.view(torch.int32), "h": base.view(torch.float16)[3:9]}
    write(checkpoint_of(state), tmp_path / "m.pt", OPTIONS)
    found = load(tmp_path / "m.pt")
    for name, tensor in state.items():
        assert_same(found[name], tensor)
    assert found["f"].data_ptr() == found["i"].data_ptr()


def test_records_are_aligned_and_offsets_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"small": torch.ones(3), "large": torch.ones(50_000), "last": torch.ones(5)}
    path = tmp_path / "m.pt"
    write(checkpoint_of(state), path, OPTIONS)
    with open_checkpoint(path) as found:
        offsets = {name: entry.storage.offset_bytes for name, entry in found.tensors.items()}  # type: ignore[attr-defined]
    assert offsets["large"] % 4096 == 0
    assert all(offset % 64 == 0 for offset in offsets.values())
    meta = load(path, map_location="meta")
    assert {n: t.untyped_storage()._checkpoint_offset for n, t in meta.items()} == offsets
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    with torch.utils.serialization.config.patch({"load.calculate_storage_offsets": True}):
        assert_same(load(path, mmap=True)["large"], state["large"])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    tree = {"w": torch.ones(70_000), "names": {"b", "a", "c"}, 3: [1.5]}
    for name in ("a", "b"):
        write(checkpoint_of(tree), tmp_path / name, OPTIONS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bare_tensor_and_an_empty_dict(tmp_path: Path) -> None:
    write(checkpoint_of(torch.eye(3)), tmp_path / "m.pt", OPTIONS)
    assert_same(load(tmp_path / "m.pt"), torch.eye(3))
    write(checkpoint_of({}), tmp_path / "m.pt", OPTIONS)
    assert load(tmp_path / "m.pt") == {}


def test_module_versions_come_back_from_the_record(tmp_path: Path) -> None:
    record = Record(module_versions={"": {"version": 1}, "bn": {"version": 2}})
    write(checkpoint_of({"w": torch.ones(1)}, record=record), tmp_path / "m.pt", OPTIONS)
    assert load(tmp_path / "m.pt")._metadata == OrderedDict(record.module_versions or {})


@pytest.mark.parametrize(
    "value", [Opaque("argparse.Namespace"), Global("os.system"), frozenset({1}), 2**4000]
)
def test_what_weights_only_does_not_load_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(LossyError, match=r"cannot hold 'args\.0'") as caught:
        write(checkpoint_of({"w": torch.ones(1), "args": [value, torch.ones(1)]}), tmp_path / "m.pt", OPTIONS)
    assert caught.value.where == "test"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_more_than_four_gibibytes_and_65535_records(tmp_path: Path) -> None:
    """zip64 in all its places: a large record, an offset behind it, and many entries."""
    large = torch.zeros(4 * 1024**3 + 4096, dtype=torch.uint8)
    large[-1] = 7
    state = {"large": large, "after": torch.arange(3.0)}
    state |= {f"n.{i}": torch.tensor(float(i)) for i in range(66_000)}
    write(checkpoint_of(state), tmp_path / "m.pt", WriteOptions(sync=False))
    del state, large
    found = load(tmp_path / "m.pt", mmap=True)
    assert found["large"][-1] == 7
    assert found["after"].tolist() == [0, 1, 2]
    assert found["n.65999"] == 65999
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert len(checkpoint.tensors) == 66_002
