"""Computing with tensors that have no memory: what torch says of them, without its compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ptsave.models.weights.shapes_only import ShapesOnly

COMPUTED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda a, b: a + b,
    "scale": lambda a, b: a * 2,
    "negative": lambda a, b: -a,
    "integers divided": lambda a, b: a.long() / 2,
    "compared": lambda a, b: a > 0,
    "chosen": lambda a, b: torch.where(a > 0, a, b),
    "broadcast": lambda a, b: a + b[0],
    "broadcast both": lambda a, b: a[:, :1] * b[:1],
    "transposed": lambda a, b: a.t() * 2,
    "with a scalar tensor": lambda a, b: a * torch.tensor(2.0, dtype=torch.float64),
    "halves": lambda a, b: a.half() + b.bfloat16(),
    "complex": lambda a, b: torch.view_as_real(a * 1j).exp(),
    "several": lambda a, b: torch.frexp(a),
    "joined": lambda a, b: torch.cat([a, b, a.half()]),
    "joined at the end": lambda a, b: torch.cat([a, b[:, :2]], dim=-1),
    "joined in the middle": lambda a, b: torch.cat([a[None], b[None]], dim=1),
    "stacked": lambda a, b: torch.stack([a, b], dim=-1),
    "zeros": lambda a, b: torch.zeros_like(a, dtype=torch.int8),
    "full": lambda a, b: torch.full_like(a, 3),
    "noise": lambda a, b: torch.randn_like(a.t()),
    "in place": lambda a, b: a.mul_(2),
    "views": lambda a, b: a.view(-1)[2:].chunk(2),
    "left to torch": lambda a, b: a @ b.t(),
    "on the CPU": lambda a, b: torch.ones(2) * 2,
}


@pytest.mark.parametrize("case", COMPUTED)
def test_the_shapes_and_dtypes_are_those_of_torch(case: str) -> None:
    a, b = (torch.empty(3, 4, device="meta") for _ in range(2))
    with torch.no_grad():
        theirs = COMPUTED[case](a, b)
        with ShapesOnly():
            ours = COMPUTED[case](a, b)
    facts = [[(t.shape, t.dtype, t.stride(), t.device) for t in tree_leaves(made)] for made in (ours, theirs)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize(
    "compute",
    [
        lambda a: a + torch.empty(5, device="meta"),
        lambda a: torch.cat([a, a[:, :2]]),
        lambda a: torch.cat([a, a[0]]),
        lambda a: torch.stack([a, a[:2]]),
        lambda a: torch.cat([a, a], dim=7),
        lambda a: a + torch.ones(3, 4),
        lambda a: bool((a == a).all()),
        lambda a: torch.equal(a, a),
        lambda a: a.tolist(),
    ],
)
def test_what_does_not_fit_or_asks_for_values_is_torchs_error(compute: Callable[[Tensor], Any]) -> None:
    a = torch.empty(3, 4, device="meta")
    with pytest.raises((RuntimeError, IndexError, NotImplementedError)) as theirs:
        compute(a)
    with pytest.raises(theirs.type) as ours, ShapesOnly():
        compute(a)
    assert str(ours.value) == str(theirs.value)


LOADING = """
import sys, torch, ptsave
from torch import nn

class Old(nn.Linear):
    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        parts = [state.pop(f"{prefix}{name}") * 2 for name in "qkv"]
        state[f"{prefix}weight"] = torch.cat([*parts, torch.stack(parts)[0]])
        state.setdefault(f"{prefix}bias", torch.zeros_like(state[f"{prefix}weight"][:, 0]))
        super()._load_from_state_dict(state, prefix, metadata, *rest)

parts = {name: torch.full((2, 3), float(i)) for i, name in enumerate("qkv")}
torch.save(parts, sys.argv[1])
model = ptsave.load(sys.argv[1], Old(3, 8))
assert model.weight[:, 0].tolist() == [0, 0, 2, 2, 4, 4, 0, 0] and not model.bias.any()
print(*(name for name in ("sympy", "torch._dynamo") if name in sys.modules))
"""


@pytest.mark.slow
def test_a_load_through_code_that_computes_does_not_import_the_compiler(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOADING, tmp_path / "m.pt"], capture_output=True, text=True, check=False
    )
    assert (run.stdout.strip(), run.stderr) == ("", "")
