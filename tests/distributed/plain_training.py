"""What people write on torch.distributed.checkpoint alone: load a training, and save it again.

`python -m` of this module under torchrun, with the path of a checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from tests.distributed.trainer import build, digests


def main() -> None:
    dist.init_process_group("gloo")
    model = build({"dp": dist.get_world_size()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = {
        "model_state_dict": get_model_state_dict(model),
        "optimizer_state_dict": get_optimizer_state_dict(model, optimizer),
    }
    dcp.load(state, checkpoint_id=sys.argv[1])
    set_model_state_dict(model, state["model_state_dict"])
    set_optimizer_state_dict(model, optimizer, state["optimizer_state_dict"])
    found = digests(model, optimizer)
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    for name, options in (("nested.dcp", None), ("flat.dcp", flat)):
        optim = get_optimizer_state_dict(model, optimizer, options=options)
        dcp.save({"model": get_model_state_dict(model), "optim": optim}, checkpoint_id=name)
    if dist.get_rank() == 0:
        Path("digests.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    os._exit(0)  # threads of torch's may abort a Python that is taken down
