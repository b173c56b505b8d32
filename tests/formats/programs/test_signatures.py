"""What TorchScript code says of a module's `forward`."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from ptsave.core.nodes import Port
from ptsave.formats import open_checkpoint
from ptsave.formats.programs.signatures import MAX_SIGNATURE_CHARS, program_of

SCRIPTED = """
class M(torch.nn.Module):
    def forward(self, x: torch.Tensor, d: Dict[str, torch.Tensor], k: int = 3, w: str = "a,(b\'",
                o: Optional[torch.Tensor] = None):
        return x * k, k
"""


def test_a_scripted_and_a_traced_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripted.py").write_text(f"from typing import Dict, Optional\nimport torch\n{SCRIPTED}")
    monkeypatch.syspath_prepend(tmp_path)
    import scripted  # type: ignore[import-not-found]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(scripted.M()), tmp_path / "scripted.pt")
        linear = torch.nn.Sequential(torch.nn.Linear(4, 3))
        torch.jit.save(torch.jit.trace(linear, torch.ones(2, 4)), tmp_path / "traced.pt")
    with open_checkpoint(tmp_path / "scripted.pt") as checkpoint:
        (program,) = checkpoint.programs
    assert program.inputs == [
        Port("x", "Tensor"),
        Port("d", "Dict[str, Tensor]"),
        Port("k", "int"),
        Port("w", "str"),
        Port("o", "Optional[Tensor]"),
    ]
    assert program.outputs == [Port("", "Tuple[Tensor, int]")]
    with open_checkpoint(tmp_path / "traced.pt") as checkpoint:
        (program,) = checkpoint.programs
    assert (program.inputs, program.outputs) == ([Port("input", "Tensor")], [Port("", "Tensor")])


def code(signature: str) -> str:
    of_n = "class N(Module):\n  def forward(self) -> int:\n"
    return f"class M(Module):\n  a : int\n  def forward{signature}\n{of_n}"


def test_a_class_without_forward_has_no_program() -> None:
    assert (
        program_of("class M(Module):\n  a : int\nclass N(Module):\n  def forward(self) -> int:\n", "M")
        is None
    )
    assert program_of(code("(self) -> int:"), "K") is None
    assert program_of(code("(self) -> int:"), "N") is not None


@pytest.mark.parametrize(
    "signature",
    [
        "(self: M, x: Tensor",
        "(self: M, x: Tensor)",
        "(self: M, x: Tensor) ->",
        "(self: M, x: Tuple[Tensor) -> int:",
        '(self: M, x: str="a) -> int:',
        "(self: M, " + "x: Tensor, " * (MAX_SIGNATURE_CHARS // 10) + ") -> int:",
        "(" * 100_000,
    ],
)
def test_a_malformed_signature_is_not_told(signature: str) -> None:
    assert program_of(code(signature), "M") is None
