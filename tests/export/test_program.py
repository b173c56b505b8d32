"""A module as torch's exported program: named sizes stay open, and what cannot be is said in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsave.config.input_tables import parse_inputs
from ptsave.config.inputs import InputsSpec
from ptsave.config.model import ConfigPlace
from ptsave.errors import RefusedError, UsageError
from ptsave.examples import TinyTransformer
from ptsave.export.program import Program, export_program, input_nodes
from ptsave.own_process import own_process
from tests.export.models import Branching, FixedBatch, Mlp
from tests.export.nets import Nested


def spec(**inputs: object) -> InputsSpec:
    return parse_inputs(inputs, ConfigPlace("model.toml", ("inputs",)), Path())


def export(model: object, inputs: InputsSpec) -> Program:
    with own_process():
        return export_program(model, inputs)  # type: ignore[arg-type]


def test_a_named_size_stays_open_even_where_the_example_is_one() -> None:
    program = export(Mlp(), spec(x={"shape": ["batch=1", 6]}))
    assert set(program.names.values()) == {"batch"}
    assert program.bounds["batch"][1] is None


@pytest.mark.slow
def test_a_size_whose_example_is_the_largest_possible_stays_open_up_to_it() -> None:
    model = TinyTransformer(64, 32, 4, 1, 16, 0.1)
    tokens = {"shape": ["batch=2", "tokens=16"], "dtype": "int64", "high": 64}
    program = export(model, spec(tokens=tokens))
    assert set(program.names.values()) == {"batch", "tokens"}
    assert program.bounds["tokens"][1] == 16


@pytest.mark.slow
def test_a_number_among_the_arguments_is_an_input_too() -> None:
    x = {"shape": ["batch=2", 4]}
    inputs = spec(batch={"dict": {"x": x, "y": x}}, pair={"list": [x, x]}, scale={"value": 0.5})
    program = export(Nested(), inputs)
    assert [node.name for node in input_nodes(program.exported)][-1] == "scale"


@pytest.mark.slow
def test_a_size_that_the_code_fixes_is_named_with_its_line() -> None:
    with pytest.raises(UsageError) as caught:
        export(FixedBatch(), spec(x={"shape": ["batch=4", 6]}))
    what = caught.value.what
    assert "the size 'batch', dimension 0 of the input 'x', to 4" in what
    assert "models.py:" in what
    assert "reshape(4, 3)" in what


def test_a_size_without_a_name_may_be_fixed() -> None:
    assert export(FixedBatch(), spec(x={"shape": [4, 6]})).names == {}


def test_control_flow_by_values_is_refused_with_its_line() -> None:
    with pytest.raises(RefusedError) as caught:
        export(Branching(), spec(x={"shape": ["batch=4", 6]}))
    assert "decides by the values of a tensor" in caught.value.what
    assert "models.py:" in caught.value.what
    assert "if x.sum() > 0:" in caught.value.what


def test_a_program_says_nothing_of_where_its_code_lay() -> None:
    exported = export(Mlp(), spec(x={"shape": ["batch=4", 6]})).exported
    assert not any("stack_trace" in node.meta for node in exported.graph.nodes)
