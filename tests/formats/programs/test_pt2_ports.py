"""What the JSON of an exported program says of what goes in and comes out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.core.nodes import Port
from ptsave.formats import open_checkpoint
from ptsave.formats.programs.pt2_ports import described


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor, n: int = 2) -> Any:
        y = self.linear(x) + self.count
        self.count.add_(1)
        return {"y": y, "cat": torch.cat([y, y]) * mask[0], "n": n}


def test_named_sizes_and_values_that_are_fixed(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            Module(),
            (torch.ones(2, 4),),
            {"mask": torch.ones(2, 3, dtype=torch.float64), "n": 3},
            dynamic_shapes={"x": {0: batch}, "mask": {0: batch}, "n": None},
        )
        torch.export.save(program, tmp_path / "m.pt2")
    with open_checkpoint(tmp_path / "m.pt2") as checkpoint:
        (found,) = checkpoint.programs
    (symbol,) = (str(size) for size in program.range_constraints)
    x, mask, n = found.inputs
    assert (x, mask) == (Port("x", "float32", (symbol, 4)), Port("mask", "float64", (symbol, 3)))
    assert n == Port("n", "int, always 3")
    y, cat, constant = found.outputs
    assert (y.type, y.shape) == ("float32", (symbol, 3))
    assert cat.type == "float64"
    assert cat.shape is not None
    assert (symbol in str(cat.shape[0]), cat.shape[1]) == (True, 3)
    assert "Symbol" not in str(cat.shape[0])
    assert constant.type == "int, always 3"
    assert found.operators["aten.linear.default"] == 1
    assert found.producer == f"torch {torch.__version__}"


@pytest.mark.parametrize(
    "program",
    [
        {},
        {"graph_module": 3, "opset_version": [], "torch_version": {}},
        {"graph_module": {"graph": [], "signature": {"input_specs": {}, "output_specs": 1}}},
        {"graph_module": {"graph": {"nodes": [1, {"target": 2}], "tensor_values": []}}},
        {"graph_module": {"signature": {"input_specs": [1, {}, {"user_input": []}, {"other": {}}]}}},
    ],
)
def test_what_is_malformed_is_not_told(program: Any) -> None:
    found = described(program, "m")
    assert (found.inputs, found.outputs, found.operators) == ([], [], {})


@pytest.mark.parametrize(
    ("meta", "port"),
    [
        (None, Port("x", "?")),
        ({"dtype": True, "sizes": 1}, Port("x", "?", ())),
        (
            {"dtype": 7, "sizes": [1, {}, {"as_int": "1"}, {"as_expr": {"expr_str": 1}}]},
            Port("x", "float32", ("?",) * 4),
        ),
    ],
)
def test_a_tensor_of_which_little_is_said(meta: Any, port: Port) -> None:
    spec = {"user_input": {"arg": {"as_tensor": {"name": "x"}}}}
    module = {"graph": {"tensor_values": {"x": meta}}, "signature": {"input_specs": [spec]}}
    assert described({"graph_module": module}, "m").inputs == [port]
