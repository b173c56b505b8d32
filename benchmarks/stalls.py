"""How long a call that saves keeps the training loop: `stalls.py CASE FOLDER BYTES` prints it as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

NUM_SAVES = 4
"""The first one is not counted: it allocates what the others use again."""

State = dict[str, torch.Tensor]
Seconds = list[float]


def state_dict(num_bytes: int, num_tensors: int = 200) -> State:
    """Float32 tensors of random values."""
    rows = max(1, num_bytes // num_tensors // 4096)
    torch.manual_seed(0)
    return {f"layers.{i}.weight": torch.rand(rows, 1024) for i in range(num_tensors)}


def stalls(save: Callable[[int], Callable[[], Any]]) -> Seconds:
    """What each call of `save` took, of which each returns how to wait until its file is there."""
    taken = []
    for step in range(NUM_SAVES):
        begin = time.perf_counter()
        wait = save(step)
        taken.append(time.perf_counter() - begin)
        wait()
    return taken


class _State:
    """What a TrainingState is to the keeper."""

    def __init__(self, state: State) -> None:
        self.state = state

    def state_dict(self) -> Mapping[str, Any]:
        return {"model_state_dict": self.state}

    def load_state_dict(self, state: Mapping[str, Any], /) -> list[str]:
        return []


def ptsave(folder: str, state: State) -> Seconds:
    """In the background, durably, with digests and read back."""
    from ptsave import Checkpoints

    keeper = Checkpoints(folder, keep_last=1)

    def save(step: int) -> Callable[[], Any]:
        keeper.save(_State(state), step=step)
        return keeper.wait

    return stalls(save)


def torch_save(folder: str, state: State) -> Seconds:
    """In the loop."""

    def save(step: int) -> Callable[[], Any]:
        torch.save({"model_state_dict": state}, Path(folder) / f"{step % 2}.pt")
        return lambda: None

    return stalls(save)


def dcp(folder: str, state: State) -> Seconds:
    """In the background, as torch does it by default."""
    from torch.distributed.checkpoint.state_dict_saver import async_save

    warnings.simplefilter("ignore")  # that there is one process only

    def save(step: int) -> Callable[[], Any]:
        future: Any = async_save(state, checkpoint_id=Path(folder) / str(step % 2), no_dist=True)
        return getattr(future, "upload_completion", future).result  # type: ignore[no-any-return]

    return stalls(save)


CASES = {"ptsave": ptsave, "ptsave-first": ptsave, "torch": torch_save, "dcp": dcp}

if __name__ == "__main__":
    case = sys.argv[1]
    first, *rest = CASES[case](sys.argv[2], state_dict(int(sys.argv[3])))
    print(json.dumps({"wall_s": first if case.endswith("-first") else statistics.median(rest)}))
