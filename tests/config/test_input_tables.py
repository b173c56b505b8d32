"""The tables of inputs: parsed from a TOML, and kept in a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptsave.config.input_tables import recorded_inputs
from ptsave.config.inputs import DataTensor, InputsSpec, PlainValue, RandomTensor
from ptsave.errors import CorruptError
from tests.config.test_toml import MODEL, load


def test_positional_inputs(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL + "[[inputs]]\nshape = [2]\n[[inputs]]\nvalue = 3\n")
    assert config.inputs is not None
    assert config.inputs.positional == (RandomTensor((2,)), PlainValue(3))


def test_an_argument_of_forward_may_be_called_file(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL + "[inputs.file]\nshape = [2]\n")
    assert config.inputs is not None
    assert (config.inputs.file, config.inputs.named) == (None, {"file": RandomTensor((2,))})


def test_positional_inputs_survive_a_record() -> None:
    spec = InputsSpec((RandomTensor((2,)), PlainValue([1, "a"])))
    assert recorded_inputs(spec.to_json(), "").positional == spec.positional


def test_numbers_that_json_lacks_survive_a_record(tmp_path: Path) -> None:
    inputs = load(tmp_path, MODEL + "[inputs.x]\ndata = [[nan, inf], [-inf, 1]]").inputs
    assert inputs is not None
    text = json.dumps(inputs.to_json(), allow_nan=False)
    again = recorded_inputs(json.loads(text), "").named["x"]
    assert isinstance(again, DataTensor)
    assert str(again.data) == "[[nan, inf], [-inf, 1]]"


@pytest.mark.parametrize(
    "document",
    [
        {"named": 3},
        {"positional": {}},
        {"other": {}},
        {"named": {"x": {"shape": [10**12]}}},
        {"named": {"x": {"shape": [1], "dtype": "float99"}}},
        {"named": {"x": {"value": {"_target_": "os.system", "_args_": ["true"]}}}},
        {"named": {"x": {"value": [{"_import_": "this.d"}]}}},
    ],
)
def test_malformed_inputs_in_a_record_are_corrupt(document: dict[str, object]) -> None:
    with pytest.raises(CorruptError, match="record is malformed"):
        recorded_inputs(document, "a.pt")
