"""A training with DataLoaders' workers, for tests that signal all its processes.

`python -m` of this module with a folder, how workers start, and the kind of loader.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import ptsave

NUM_SAMPLES = 1000


class Slow(Dataset[torch.Tensor]):
    """Samples that take their time; the processes that make them leave their numbers in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        (self.folder / f"worker-{os.getpid()}").touch()
        time.sleep(0.01)
        return torch.tensor([float(index)])


def main() -> None:
    folder, method, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    options: dict[str, Any] = {
        "num_workers": 2,
        "multiprocessing_context": multiprocessing.get_context(method),
    }
    make: Any = ptsave.ResumableDataLoader if kind == "resumable" else DataLoader
    loader = make(Slow(folder), batch_size=2, **options)
    model = torch.nn.Linear(1, 1)
    parts = {"data": loader} if kind == "resumable" else {}
    state = ptsave.TrainingState(model=model, **parts)
    with ptsave.Checkpoints(folder / "run") as keeper:
        keeper.on_signal()
        step = keeper.resume(state)
        for batch in loader:
            print(step, batch.flatten().tolist(), flush=True)
            if keeper.should_stop and (folder / "go").exists():
                keeper.save(state, step=step)
            step += 1
            if step == 5 and not keeper.should_stop:
                (folder / "ready").touch()
    print("finished", flush=True)


if __name__ == "__main__":
    main()
