"""The numbers of `[inputs]` without torch: those that a model is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from ptsave.config.arrays import arrays
from ptsave.config.input_tables import parse_inputs
from ptsave.config.model import ConfigPlace
from ptsave.errors import UsageError
from ptsave.models.inputs import make_inputs, output_tensors

PLACE = ConfigPlace("model.toml", ("inputs",))


class Anything(nn.Module):
    def forward(self, *args: object, **kwargs: object) -> None: ...


def test_arrays_are_the_tensors_that_a_model_is_given() -> None:
    spec = parse_inputs(
        {
            "a": {"shape": ["batch=3", 4]},
            "b": {"shape": [2, 3], "dtype": "int64", "low": -5, "high": 9},
            "c": {"shape": [7], "dtype": "bool"},
            "d": {"shape": [2, 2], "dtype": "float16", "low": 0.0, "high": 1.0},
            "e": {"shape": [3], "dtype": "complex64"},
            "f": {"data": [[1.5, 2], [3, 4]]},
            "g": {"data": [1, 2], "dtype": "int32"},
            "h": {"list": [{"shape": [2]}, {"value": 3}, {"dict": {"x": {"shape": [1, 2]}}}]},
            "i": {"value": "mean"},
        },
        PLACE,
        Path(),
    )
    given = make_inputs(spec, Anything())
    expected = [t.numpy() for name, t in output_tensors(given.kwargs).items() if name != "h.1"]
    found = list(arrays(spec))
    assert [array.dtype for array in found] == [array.dtype for array in expected]
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]


def test_a_named_size_is_its_example_and_can_be_another() -> None:
    spec = parse_inputs({"x": {"shape": ["batch=4", "n=2", 3]}, "y": {"shape": ["batch=4"]}}, PLACE, Path())
    assert spec.sizes == {"batch": 4, "n": 2}
    assert [array.shape for array in arrays(spec)] == [(4, 2, 3), (4,)]
    assert [array.shape for array in arrays(spec.with_sizes({"batch": 1}))] == [(1, 2, 3), (1,)]
    assert spec.to_json()["named"]["x"]["shape"] == ["batch=4", "n=2", 3]


@pytest.mark.parametrize("size", ["batch", "batch=x", "1b=3", "if=3", "b=-1", "", " = 4", True, 1.5])
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(UsageError):
        parse_inputs({"x": {"shape": [size]}}, PLACE, Path())


def test_a_name_has_one_example() -> None:
    with pytest.raises(UsageError, match="'b' is both 3 and 4"):
        parse_inputs({"x": {"shape": ["b=3"]}, "y": {"shape": ["b=4"]}}, PLACE, Path())
