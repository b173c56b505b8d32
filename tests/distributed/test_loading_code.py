"""Over ranks, too, `load` and `resume` take what strict `load_state_dict` takes, and make the same of it."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import torchrun
from tests.models.weights.test_loading_code import CASES

SHARDED_BY_NO_MESH = {"lazy", "observers", "observers of no version"} | {
    case for case in CASES if case.startswith("scalars")
}
"""What `fully_shard` itself refuses: parameters and buffers that have no shape yet, or no dimension."""


TENSOR = """
[model]
factory = "tests.models.weights.test_loading_code.build_inside"
[model.args]
case = ""
[parallel]
mesh = {tp = 2}
[parallel.tensor]
up = "colwise"
"""


def inside(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict of a model whose `up` has `state`, with its versions."""
    moved: Any = OrderedDict((f"up.{name}", value) for name, value in state.items())
    if hasattr(state, "_metadata"):
        moved._metadata = {f"up.{name}".rstrip("."): about for name, about in state._metadata.items()}
    return moved  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_is_strict_load_state_dict(tmp_path: Path) -> None:
    for number, (make, change) in enumerate(CASES.values()):
        torch.manual_seed(1)
        state = change(make().state_dict())
        torch.save(state, tmp_path / f"{number}.pt")
        torch.save(inside(state), tmp_path / f"{number}-inside.pt")
    (tmp_path / "tensor.toml").write_text(TENSOR)
    (tmp_path / "cases.json").write_text(json.dumps(list(CASES)))
    done = torchrun(2, "cases.json", cwd=tmp_path, module="tests.distributed.coded")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    others = {name: said for name, said in results.items() if said not in ("same", "refused")}
    for name in [name for name, said in others.items() if said.startswith("cannot be sharded")]:
        assert name.partition(": ")[2] in SHARDED_BY_NO_MESH, others
        del others[name]
    why = {"load: lazy": "has no shape yet"}
    for way in ("into", "resume", "parts"):  # no rank has the model's own values, or whole parameters
        why |= {f"{way}: its own values": "which no rank has whole: 'bias' was made of the model's own"}
        why |= {f"{way}: its own method": "which no rank has whole: its load_state_dict cannot assign"}
    assert {name for name, said in others.items() if why.get(name, "?") in said} == set(others), others
