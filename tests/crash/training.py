"""A training as anyone writes one, to be killed: a small model with dropout, shuffled batches, a schedule."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import ptsave
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.formats.run_folder import FILE_NAME, litter_of
from ptsave.training.runs.lock import NAME as LOCK
from ptsave.verbs.audit import audit

NUM_STEPS = 40
KEPT = {"keep_last": 2, "keep_best": ("loss", "min")}
MOST_FILES = 3
"""The last two and the best, when a save has ended."""


def train(folder: str, result: str, num_steps: int = NUM_STEPS) -> None:
    """Train to the end, from wherever `folder` says; then write the weights to `result`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.8)
    numbers = torch.Generator().manual_seed(1)
    examples = TensorDataset(torch.randn(70, 16, generator=numbers), torch.randn(70, 1, generator=numbers))
    loader = ptsave.ResumableDataLoader(examples, batch_size=16, shuffle=True)
    state = ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=schedule, data=loader)
    warnings.simplefilter("always")
    with ptsave.Checkpoints(folder, **KEPT) as keeper:
        keeper.on_signal(signal.SIGTERM)
        step = keeper.resume(state)
        while step < num_steps:
            for x, y in loader:
                loss = (model(x) - y).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                keeper.save(state, step=step, epoch=loader.epoch, metrics={"loss": loss})
                step += 1
                if step == num_steps:
                    break
    torch.save(model.state_dict(), f"{result}.new")
    os.replace(f"{result}.new", result)


def problems_of(folder: Path) -> list[str]:
    """What is in the folder of a training that was just killed and should not be."""
    problems = []
    litter = litter_of(folder)
    for path in folder.iterdir():
        if FILE_NAME.fullmatch(path.name):
            try:
                with open_checkpoint(path) as checkpoint:
                    failed = [finding for finding in audit(checkpoint) if finding.level == "fail"]
                    problems += [f"{path.name}: {finding.message}" for finding in failed]
            except PtsaveError as error:
                problems.append(f"{path.name}: {error}")
        elif path not in litter and path.name != LOCK:
            problems.append(f"{path.name} is a stranger")
    return problems


def num_files(folder: Path) -> int:
    """How many checkpoints there are."""
    return sum(FILE_NAME.fullmatch(path.name) is not None for path in folder.iterdir())


def problems_of_kept(folder: Path, before: int) -> list[str]:
    """Whether a life that began with `before` checkpoints has left too many.

    A save ends by removing all that it supersedes, and a kill may come between the two: one more than is
    kept, or one more than there were.
    """
    most = max(MOST_FILES, before) + 1
    return [f"keeps {num_files(folder)} files, not {most}"] if num_files(folder) > most else []


if __name__ == "__main__":
    train(*sys.argv[1:3])
