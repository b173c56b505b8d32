"""One rank of many cases: each loads a checkpoint over all ranks, and says what the model holds and returns.

`python -m` of this module under torchrun, with the name of a file of cases.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ptsave.config.toml import load_config
from ptsave.core.parts.select import select_model
from ptsave.distributed.group import Group
from ptsave.distributed.joined import joined
from ptsave.distributed.load import shard_and_fill
from ptsave.distributed.plan import make_plan
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.models.behaviour.trace import digest_of
from ptsave.models.build import build_model
from ptsave.models.inputs import output_tensors
from ptsave.models.load import arguments_for, run
from ptsave.models.weights.own_shard import gathered, num_local_bytes


def _digests(model: torch.nn.Module) -> dict[str, str]:
    """Of every tensor, buffers outside the state dict included, gathered whole."""
    named = {**dict(model.named_buffers()), **model.state_dict()}
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    return {name: digest_of(gathered(tensor).detach()) for name, tensor in tensors.items()}


def _case(group: Group, case: dict[str, Any]) -> dict[str, Any]:
    config = load_config(Path(case["config"]), case.get("set", []))
    plan = make_plan(config, group)
    lines: list[str] = []
    with open_checkpoint(case["path"]) as checkpoint:
        model = build_model(config.model, device="meta", app_dir=Path())
        selection = select_model(checkpoint)
        spec = config.model
        shard_and_fill(group, plan, spec, checkpoint, selection, lines.append, skeleton=model)
    state = model.state_dict(keep_vars=True)
    found: dict[str, Any] = {
        "bytes": group.gather(num_local_bytes(model)),
        "split": [name for name, tensor in state.items() if isinstance(tensor, DTensor)],
        "digests": _digests(model),
        "warnings": lines,
    }
    if case.get("runs", True):
        plan.check_runs(model)
        output = gathered(run(plan.replicate(model), arguments_for(config.inputs, None, model, "cpu")))
        tensors = output_tensors(output).values()
        found["output"] = [number for tensor in tensors for number in tensor.flatten().tolist()]
        found["digest"] = [digest_of(tensor) for tensor in tensors]
    return found


def main() -> None:
    with joined("cpu") as group:
        results = []
        for case in json.loads(Path(sys.argv[1]).read_text()):
            try:
                results.append(_case(group, case))
            except PtsaveError as error:
                results.append({"error": str(error), "hint": error.hint, "kind": type(error).__name__})
        if group.is_first:
            Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    os._exit(0)  # as the command line does: threads of torch's may abort a Python that is taken down
