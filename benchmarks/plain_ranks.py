"""What one would write with torch alone: `torchrun … plain_ranks.py save SOURCE FOLDER LAYERS`, or `load`.

The model is built without memory and sharded, each rank fills its part in place from a checkpoint, and `save`
writes it again. torch makes the files durable by itself.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.distributed import WIDTH


def main() -> None:
    """Both commands, as ptsave has them."""
    case, source, folder, num_layers = sys.argv[1:]
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(int(num_layers))))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    load(model.state_dict(), checkpoint_id=source)
    if case == "save":
        save(model.state_dict(), checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    os._exit(0)  # threads of torch's may abort a Python that is taken down
