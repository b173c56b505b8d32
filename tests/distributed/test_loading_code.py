"""Over ranks, too, `load` and `resume` take what strict `load_state_dict` takes, and make the same of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.launch import torchrun
from tests.models.weights.test_loading_code import CASES

SHARDED_BY_NO_MESH = {"lazy", "observers", "observers of no version"} | {
    case for case in CASES if case.startswith("scalars")
}
"""What `fully_shard` itself refuses: parameters and buffers that have no shape yet, or no dimension."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_is_strict_load_state_dict(tmp_path: Path) -> None:
    for number, (make, change) in enumerate(CASES.values()):
        torch.manual_seed(1)
        torch.save(change(make().state_dict()), tmp_path / f"{number}.pt")
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
