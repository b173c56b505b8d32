"""What of a model came from a file: each tensor counted once, and the parts make up the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.parts.coverage import Coverage, ModulePart, account
from ptsave.core.parts.keys import Expected
from ptsave.core.storage import MemoryStorage

EMPTY = MemoryStorage(memoryview(b""))


def entries(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorEntry]:
    dtype = BY_NAME["float32"]
    return {n: TensorEntry(n, dtype, s, contiguous_strides(s), EMPTY, 0) for n, s in shapes.items()}


def wanted(shapes: dict[str, tuple[int, ...]]) -> dict[str, Expected]:
    return {name: Expected(shape, "float32") for name, shape in shapes.items()}


def test_by_module() -> None:
    shapes = {"body.0.weight": (4, 4), "body.0.bias": (4,), "body.1.weight": (2, 4), "head.weight": (2, 2)}
    found = entries({name: shape for name, shape in shapes.items() if name.startswith("body.0")})
    fresh, coverage = account(wanted(shapes), found, ["body.1.weight", "head.weight"])
    assert fresh == ("body.1.weight", "head.weight")
    assert coverage.parts == (
        ModulePart("body.0", True, 2, 20, 0),
        ModulePart("body.1", False, 1, 8, 0),
        ModulePart("head", False, 1, 4, 0),
    )
    assert coverage.sentence() == "2 of 4 tensors, 20 of 32 elements (62.5%)"


def test_a_tied_parameter_is_fresh_under_all_names_or_none() -> None:
    model = {
        "embed.weight": Expected((3, 2), "float32"),
        "head.weight": Expected((3, 2), "float32", tied_to="embed.weight"),
    }
    fresh, coverage = account(model, entries({"embed.weight": (3, 2)}), ["head.weight"], ["head.weight"])
    assert fresh == ()
    assert (coverage.num_tensors, coverage.share) == (1, 1.0)
    assert coverage.tied == {"head.weight": "embed.weight"}
    fresh, coverage = account(model, {}, ["head.weight"], ["head.weight"])
    assert fresh == ("embed.weight", "head.weight")
    assert (coverage.num_tensors, coverage.num_tensors_from_file, coverage.tied) == (1, 0, {})


def test_buffers_that_the_model_computes_do_not_count() -> None:
    model = {
        "norm.weight": Expected((3,), "float32"),
        "norm.running_mean": Expected((3,), "float32", is_buffer=True),
        "norm.mask": Expected((9,), "float32", is_buffer=True, is_recomputed=True),
    }
    _, coverage = account(model, entries({"norm.weight": (3,)}), ["norm.running_mean"])
    assert coverage.num_elements == 6
    assert coverage.parts[1] == ModulePart("norm.running_mean", False, 1, 3, 1)


def test_a_lazy_parameter_has_the_size_of_the_files() -> None:
    model = {"lazy.weight": Expected(None, "float32"), "other.weight": Expected(None, "float32")}
    _, coverage = account(model, entries({"lazy.weight": (5, 2)}), ["other.weight"])
    assert (coverage.num_elements, coverage.num_tensors) == (10, 2)


def test_nothing_is_covered_wholly() -> None:
    assert account({}, {}, []) == ((), Coverage(0, 0, 0, 0, ()))
    assert Coverage(0, 0, 0, 0, ()).share == 1.0
    assert Coverage(2, 1, 0, 0, ()).share == 0.5


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(names, st.integers(0, 5), max_size=12), st.data())
def test_parts_make_up_the_model(sizes: dict[str, int], data: st.DataObject) -> None:
    shapes = {name: (size,) for name, size in sizes.items()}
    fresh = [name for name in shapes if data.draw(st.booleans())]
    found = entries({name: shape for name, shape in shapes.items() if name not in fresh})
    told, coverage = account(wanted(shapes), found, fresh)
    assert sorted(told) == sorted(fresh)
    assert sum(part.num_tensors for part in coverage.parts) == coverage.num_tensors == len(shapes)
    assert sum(part.num_elements for part in coverage.parts) == coverage.num_elements
    filled = [part for part in coverage.parts if part.is_from_file]
    assert sum(part.num_elements for part in filled) == coverage.num_elements_from_file
