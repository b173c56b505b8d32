"""Differences between checkpoints: names, shapes, dtypes, values, ties and data."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.storage import BLOCK_BYTES, MemoryStorage, Storage
from ptsave.core.values.compare import ValueDiff
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from ptsave.verbs.diff import DataDiff, Diff, TensorDiff, describe, diff, diff_paths

NAN, INF = math.nan, math.inf


def to_tree(value: Any, storages: dict[int, Storage]) -> Any:
    """Live data as a reader presents it: tensors of one torch storage share one Storage."""
    if isinstance(value, torch.Tensor):
        address = value.untyped_storage().data_ptr()
        if address not in storages:
            flat = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
            storages[address] = MemoryStorage(memoryview(flat.numpy()), value)
        dtype = BY_NAME[str(value.dtype).removeprefix("torch.")]
        shape, offset = tuple(value.shape), value.storage_offset()
        return TensorEntry("", dtype, shape, value.stride(), storages[address], offset)
    if isinstance(value, dict):
        return {key: to_tree(item, storages) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_tree(item, storages) for item in value)
    return value


def checkpoint_of(root: Any) -> Checkpoint:
    return Checkpoint("test", Path("test"), to_tree(root, {}))


def diff_of(a: Any, b: Any) -> Diff:
    return diff(checkpoint_of(a), checkpoint_of(b))


def tensor_diff(a: torch.Tensor, b: torch.Tensor) -> TensorDiff:
    (found,) = diff_of({"t": a}, {"t": b}).tensors
    return found


def values_diff(a: torch.Tensor, b: torch.Tensor) -> ValueDiff:
    found = tensor_diff(a, b).values
    assert found is not None
    return found


def test_a_copy_is_the_same() -> None:
    tree = {"w": torch.randn(100_000), "i": torch.arange(5), "e": torch.empty(0, 3), "epoch": 3}
    copy = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in tree.items()}
    found = diff_of(tree, copy)
    assert found.is_same
    assert found.has_same_tensors
    assert found.has_same_values
    assert [t.is_bitwise_equal for t in found.tensors] == [True, True, True]
    assert found.different == ()


def test_names_shapes_and_dtypes() -> None:
    a = {"both": torch.ones(2, 3), "cast": torch.ones(3), "a": torch.ones(1)}
    b = {"b": torch.ones(1), "cast": torch.ones(3).bfloat16(), "both": torch.ones(3, 2)}
    found = diff_of(a, b)
    assert (found.only_in_a, found.only_in_b) == (("a",), ("b",))
    shape, cast = found.tensors
    assert (shape.shape_a, shape.shape_b, shape.values) == ((2, 3), (3, 2), None)
    assert shape.why_not == "the shapes differ"
    assert not shape.is_equal
    assert (cast.dtype_a, cast.dtype_b, cast.is_bitwise_equal) == ("float32", "bfloat16", False)
    assert cast.values == ValueDiff()
    assert cast.is_equal
    assert not found.has_same_values


def test_greatest_differences_and_where_they_are() -> None:
    b = torch.full((300, 700), 2.0)
    a = b.clone()
    a[0, 1] += 0.25
    a[250, 13] -= 1
    a[299, 699] += 0.5
    b[299, 699] = a[299, 699] = 0
    a[299, 698] = 2.25
    found = values_diff(a, b)
    assert (found.num_different, found.max_abs, found.max_rel) == (3, 1.0, 0.5)
    assert (found.worst, found.worst_a, found.worst_b) == ((250, 13), 1.0, 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_differences_are_those_that_torch_computes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(3, BLOCK_BYTES // 4, generator=generator).to(dtype)
    a = (b.double() + 1e-2 * torch.randn(b.shape, generator=generator)).to(dtype)
    a[0] = b[0]
    found = values_diff(a, b)
    gap = (a.double() - b.double()).abs()
    assert found.num_different == (a != b).sum()
    assert found.max_abs == gap.max()
    assert found.max_rel == (gap / b.double().abs()).nan_to_num(0, posinf=INF).max()
    assert found.worst is not None
    assert gap[found.worst] == gap.max()


def test_relative_to_zero_is_infinite() -> None:
    found = values_diff(torch.tensor([1e-9, 3.0]), torch.tensor([0.0, 4.0]))
    assert (found.max_abs, found.max_rel, found.worst) == (1.0, INF, (1,))


def test_nan_equals_nan_and_nothing_else() -> None:
    found = values_diff(torch.tensor([NAN, 1.0, NAN]), torch.tensor([NAN, 1.0, 2.0]))
    assert (found.num_different, found.num_both_nan) == (1, 1)
    assert (found.max_abs, found.max_rel, found.worst) == (INF, INF, (2,))
    assert math.isnan(found.worst_a)
    assert found.worst_b == 2.0


def test_other_nan_payloads_and_signs_of_zero_are_equal_values_of_other_bits() -> None:
    a = torch.tensor([0x7FC00001, 0, 0x3F800000], dtype=torch.int32).view(torch.float32)
    b = torch.tensor([0x7FC00002, -(2**31), 0x3F800000], dtype=torch.int32).view(torch.float32)
    found = tensor_diff(a, b)
    assert not found.is_bitwise_equal
    assert found.is_equal
    assert found.values == ValueDiff(num_both_nan=1)


@pytest.mark.parametrize(("a", "b"), [(INF, 1.0), (1.0, INF), (INF, -INF), (-INF, NAN)])
def test_infinities(a: float, b: float) -> None:
    found = values_diff(torch.tensor([a, INF]), torch.tensor([b, INF]))
    assert (found.num_different, found.max_abs, found.max_rel, found.worst) == (1, INF, INF, (0,))


@pytest.mark.parametrize(
    ("a", "b", "max_abs"),
    [
        (torch.tensor([-(2**63), 5]), torch.tensor([2**63 - 1, 5]), 2**64 - 1),
        (torch.tensor([2**62 + 1]), torch.tensor([2**62]), 1),
        (torch.tensor([2**64 - 1], dtype=torch.uint64), torch.tensor([0], dtype=torch.uint64), 2**64 - 1),
        (torch.tensor([2**64 - 1], dtype=torch.uint64), torch.tensor([-(2**63)]), 2**64 - 1 + 2**63),
        (torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([1, 0], dtype=torch.uint8), 255),
        (torch.tensor([-128], dtype=torch.int8), torch.tensor([127], dtype=torch.int8), 255),
        (torch.tensor([200], dtype=torch.uint8), torch.tensor([-56], dtype=torch.int8), 256),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1),
        (torch.tensor([True]), torch.tensor([7]), 6),
    ],
)
def test_integers_are_exact(a: torch.Tensor, b: torch.Tensor, max_abs: int) -> None:
    found = values_diff(a, b)
    assert found.max_abs == max_abs
    assert isinstance(found.max_abs, int)
    assert found.num_different == sum(x != y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_different_dtypes_are_compared_by_value() -> None:
    assert tensor_diff(torch.tensor([1.0, 2.0]), torch.tensor([1, 2])).is_equal
    assert tensor_diff(torch.tensor([2**63], dtype=torch.uint64), torch.tensor([2.0**63]).double()).is_equal
    third = values_diff(torch.tensor([1 / 3]), torch.tensor([1 / 3], dtype=torch.float64))
    assert third.max_abs == abs(float(np.float32(1 / 3)) - 1 / 3)
    assert tensor_diff(torch.tensor([1.5]), torch.tensor([1.5 + 0j])).is_equal
    small = torch.tensor([0.5, -448.0])
    assert tensor_diff(small.to(torch.float8_e4m3fn), small).is_equal


def test_complex_numbers_differ_by_magnitude() -> None:
    found = values_diff(torch.tensor([3 + 4j, 1j]), torch.tensor([0j, 1j]))
    assert (found.max_abs, found.max_rel, found.worst_a, found.worst_b) == (5.0, INF, 3 + 4j, 0j)
    assert values_diff(torch.tensor([complex(NAN, 1)]), torch.tensor([complex(2, NAN)])).num_both_nan == 1
    assert values_diff(torch.tensor([complex(INF, 1)]), torch.tensor([complex(INF, 2)])).max_abs == INF


def test_float4_counts_two_values_and_places_them_in_one_element() -> None:
    a, b = (torch.tensor([[0, x]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2) for x in (0x70, 0x10))
    found = values_diff(a, b)
    assert (found.num_different, found.max_abs, found.worst) == (1, 5.5, (0, 1))
    assert "packs two" in tensor_diff(a, torch.ones(1, 2)).why_not


def test_layout_is_no_difference() -> None:
    a = torch.randn(300, 400)
    assert tensor_diff(a, a.t().contiguous().t()).is_bitwise_equal
    b = a.t().clone()
    b[7, 9] += 1
    assert values_diff(a, b.t()).worst == (9, 7)
    assert tensor_diff(a[:, :1].expand(300, 5), a[:, :1].repeat(1, 5)).is_bitwise_equal


def test_a_tensor_without_bytes_is_not_called_equal() -> None:
    a = checkpoint_of({"t": torch.ones(2)})
    b = checkpoint_of({"t": torch.ones(2)})
    b.root["t"] = replace(b.root["t"], storage=MemoryStorage(memoryview(b"")), kind="meta")
    for found, why in ((diff(a, b), "b has no values"), (diff(b, b), "neither has values")):
        assert [(t.is_equal, t.why_not) for t in found.tensors] == [(False, why)]
        assert not found.is_same


def test_ties() -> None:
    shared = torch.randn(4, 4)
    a = {"x": shared, "y": shared, "z": shared.t(), "p": torch.ones(2), "q": torch.ones(2)}
    twins = torch.ones(2)
    b = {"x": shared, "y": shared, "z": shared.t().clone(), "p": twins, "q": twins}
    found = diff_of(a, b)
    assert found.ties_broken == (("x", "y", "z"),)
    assert found.ties_new == (("p", "q"),)
    assert found.has_same_values
    assert not found.has_same_tensors
    assert not found.is_same
    assert diff_of(a, a).is_same


def test_views_of_one_storage_that_share_no_element_are_not_tied() -> None:
    fused = torch.randn(6, 6)
    rows, columns = fused.chunk(3, dim=0), fused.chunk(3, dim=1)
    for parts in (rows, columns):
        a = {str(i): part for i, part in enumerate(parts)}
        assert diff_of(a, {key: part.clone() for key, part in a.items()}).is_same
    whole = {"w": fused, "q": fused[:, :2], "k": fused[2:]}
    apart = {"w": fused.clone(), "q": fused[:, :2].clone(), "k": fused[2:].clone()}
    assert diff_of(whole, apart).ties_broken == (("w", "q", "k"),)


def test_names_that_are_only_on_one_side_break_no_tie() -> None:
    shared = torch.ones(2)
    found = diff_of({"x": shared, "y": shared}, {"x": shared})
    assert (found.only_in_a, found.ties_broken) == (("y",), ())


def test_data() -> None:
    a = {
        "epoch": 3,
        "loss": NAN,
        "flag": True,
        "betas": (0.9, 0.999),
        "gone": "x",
        "empty": {},
        "path": Opaque("pathlib.PosixPath", ("a", "b")),
        "args": Opaque("argparse.Namespace", state={"lr": 0.1, "same": None}),
        "kind": Global("pkg.A"),
    }
    b = a | {
        "epoch": 4,
        "flag": 1,
        "betas": [0.9, 0.999],
        "empty": OrderedDict(),
        "path": Opaque("pathlib.PosixPath", ("a", "c")),
        "args": Opaque("argparse.Namespace", state={"lr": 0.2, "same": None}),
        "kind": Global("pkg.B"),
        "new": b"x",
    }
    del b["gone"]
    found = diff_of(a, b)
    assert (found.data_only_in_a, found.data_only_in_b) == (("gone",), ("new",))
    changed = {d.path: d for d in found.data_changed}
    assert list(changed) == ["epoch", "flag", "path", "args.lr", "kind"]
    assert changed["epoch"] == DataDiff("epoch", 3, 4)
    assert found.has_same_tensors
    assert not found.is_same
    assert diff_of(a, a).is_same


SEQUENCES: dict[str, tuple[Any, Any, bool]] = {
    "equal": ([1, 2.5, None, "a", NAN], [1, 2.5, None, "a", math.nan * 1], True),
    "a tuple": ([1, 2], (1, 2), True),
    "another NaN": ([float("nan")], [float("nan")], True),
    "NaN against a number": ([NAN], [1.0], False),
    "an integer and a float": ([1, 2], [1, 2.0], False),
    "an integer and a bool": ([1], [True], False),
    "a complex NaN": ([complex(0, NAN)], [complex(1, NAN)], True),
    "longer": ([1], [1, 1], False),
    "nested": ([1, [2, [3]]], [1, [2, [3]]], True),
    "nested otherwise": ([1, [2, [3]]], [1, [2, [4]]], False),
}


@pytest.mark.parametrize(("a", "b", "is_same"), SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_of_data(a: Any, b: Any, is_same: bool) -> None:
    assert diff_of({"x": a}, {"x": b}).is_same is is_same


def test_progress_adds_up_to_both_sides() -> None:
    base = torch.zeros(2 * BLOCK_BYTES, dtype=torch.uint8)
    late = base.clone()
    late[-1] = 1
    a = checkpoint_of({"same": base, "late": base, "shape": base[:5], "cast": base[:9], "a": base[:7]})
    b = checkpoint_of({"same": base, "late": late, "shape": base[:6], "cast": base[:9].long(), "b": base[:3]})
    done: list[int] = []
    diff(a, b, progress=done.append)
    assert sum(done) == sum(entry.num_bytes for c in (a, b) for entry in c.tensors.values())
    assert min(done) >= 0


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_formats_do_not_matter(tmp_path: Path) -> None:
    tree = {
        "w": torch.randn(30, 40).t(),
        "half": torch.randn(5).bfloat16(),
        "small": torch.randn(6).to(torch.float8_e4m3fn),
        "i": torch.arange(3),
        "none": torch.empty(0, 2),
        "one": torch.tensor(1.5),
        "c": torch.randn(3, dtype=torch.complex64),
    }
    torch.save(tree, tmp_path / "a.pt")
    torch.save(tree, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({name: tensor.contiguous() for name, tensor in tree.items()}, tmp_path / "a.safetensors")
    tree["w"][3, 4] += 1
    torch.save(tree, tmp_path / "b.pt")
    with open_checkpoint(tmp_path / "a.pt") as a:
        for name in ("old.pt", "a.safetensors"):
            with open_checkpoint(tmp_path / name) as other:
                assert diff(a, other).is_same
        with open_checkpoint(tmp_path / "b.pt") as b:
            (changed,) = diff(a, b).different
    assert changed.name == "w"
    assert changed.values is not None
    assert (changed.values.num_different, changed.values.worst) == (1, (3, 4))


def test_an_unreadable_tensor_is_an_error_and_never_equal() -> None:
    class Damaged(Storage):
        num_bytes = 8

        def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
            raise CorruptError("damaged", "t")

    entry = TensorEntry("", BY_NAME["float32"], (2,), (1,), Damaged(), 0)
    with pytest.raises(CorruptError, match="damaged"):
        diff(checkpoint_of({"t": torch.ones(2)}), Checkpoint("test", Path("test"), {"t": entry}))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tensors() -> None:
    a = checkpoint_of({"t": torch.zeros(64 * BLOCK_BYTES, dtype=torch.bfloat16)})
    b = checkpoint_of({"t": torch.ones(64 * BLOCK_BYTES, dtype=torch.bfloat16)})
    diff(a, b)
    tracemalloc.start()
    found = diff(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tensors[0].values is not None
    assert peak < 64 * BLOCK_BYTES


def test_bitwise_equal_checkpoints_need_no_numpy() -> None:
    code = """
import sys
from pathlib import Path
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.formats import open_checkpoint
from ptsave.verbs.diff import diff
made = [Checkpoint("test", Path("t"), {"t": TensorEntry("", BY_NAME["float32"], (2,), (1,),
        MemoryStorage(memoryview(bytes(8))), 0)}) for _ in range(2)]
assert diff(*made).is_same
assert "numpy" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nan_and_infinity_are_told_apart() -> None:
    a = torch.tensor([NAN, 1.0, INF, -INF, 2.0, NAN, 5.0])
    b = torch.tensor([1.0, NAN, 1.0, INF, 2.5, NAN, 5.0])
    found = values_diff(a, b)
    assert (found.num_nan_in_a, found.num_nan_in_b, found.num_infinite, found.max_finite) == (1, 1, 2, 0.5)
    words = describe(TensorDiff("a", "float32", "float32", (7,), (7,), False, found))
    assert words == (
        "1 value differs by 0.5, 1 value is NaN here alone, 1 value is NaN there alone, "
        "2 values are infinite in one alone, or with the other sign"
    )
    alone = values_diff(torch.tensor([NAN, 1.0]), torch.tensor([0.0, 1.0]))
    assert "inf" not in describe(TensorDiff("a", "float32", "float32", (2,), (2,), False, alone))


def test_a_relative_difference_to_nearly_nothing_is_left_out(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0])}, tmp_path / "a.pt")
    torch.save({"a": torch.tensor([1.0, 1e-9]), "b": torch.tensor([1.5])}, tmp_path / "b.pt")
    different = diff_paths(tmp_path / "b.pt", tmp_path / "a.pt").different
    found = {tensor.name: describe(tensor) for tensor in different}
    assert found == {
        "a": "1 value differs by 1e-09",
        "b": "1 value differs by 0.5 (0.5 relative)",
    }
