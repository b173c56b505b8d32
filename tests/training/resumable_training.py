"""Trainings to stop and to resume in real processes: `python resumable_training.py FOLDER full|resume`.

`full` runs each case to its end, saves its state on the way, and writes its weights at the end; `resume`, in
a new process with other seeds, begins from the saved state and writes its own.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.utils.data import Dataset

import ptsave

STEPS, SAVED_AT = 17, 8
"""Batches in all, and after how many the state is saved: in the middle of the second epoch."""


class Noisy(Dataset[Any]):
    """Samples with random augmentation, from every generator that a worker has."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(6) * random.random() + np.random.rand()
        return torch.full((6,), index / 23) + 0.1 * noise.float(), torch.tensor(index % 3)


def net() -> nn.Module:
    """A network with dropout, a buffer that counts, and weights that begin at random."""
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8), nn.Linear(8, 3)
    )


class Run:
    """A training: what it is made of, and how it makes one step."""

    def __init__(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.name = name
        self.model = net()
        self.loader = ptsave.ResumableDataLoader(
            Noisy(), 4, shuffle=True, num_workers=2 if name == "workers" else 0, seed=seed
        )
        self.extra: dict[str, Any] = {}
        self.accumulate = 3 if name in ("accumulation", "scaler") else 1
        OPTIMIZERS[name](self)
        parts: dict[str, Any] = {"optimizer": self.optimizer, "data": self.loader} | self.extra
        self.state = ptsave.TrainingState(model=self.model, **parts)
        self.micro = 0

    def step(self, batch: Any) -> None:
        """Forward, backward and, once enough gradients are added up, the update."""
        inputs, labels = batch
        scaler = self.extra.get("scaler")

        def loss() -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(inputs), labels) / self.accumulate

        if self.name == "lbfgs":

            def closure() -> torch.Tensor:
                self.optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            self.optimizer.step(closure)
            return
        value = loss()
        (scaler.scale(value) if scaler else value).backward()
        self.micro += 1
        if self.micro % self.accumulate:
            return
        for optimizer in self.optimizer if isinstance(self.optimizer, list) else [self.optimizer]:
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
        if scheduler := self.extra.get("scheduler"):
            scheduler.step(*([value.item()] if self.name == "plateau" else []))
        if ema := self.extra.get("ema"):
            ema.update_parameters(self.model)


def _with(make: Callable[[Run], Any], **extra: Callable[[Run], Any]) -> Callable[[Run], None]:
    def prepare(run: Run) -> None:
        run.optimizer = make(run)  # type: ignore[attr-defined]
        for name, value in extra.items():
            run.extra[name] = value(run)

    return prepare


def _adamw(run: Run) -> Any:
    return torch.optim.AdamW(run.model.parameters(), 1e-2)


def _sgd(run: Run) -> Any:
    return torch.optim.SGD(run.model.parameters(), 0.05, momentum=0.9, nesterov=True)


def _sequential(run: Run) -> Any:
    warm = lr_scheduler.LinearLR(run.optimizer, 0.1, total_iters=4)  # type: ignore[attr-defined]
    cosine = lr_scheduler.CosineAnnealingLR(run.optimizer, 10)  # type: ignore[attr-defined]
    return lr_scheduler.SequentialLR(run.optimizer, [warm, cosine], [4])  # type: ignore[attr-defined]


OPTIMIZERS: dict[str, Callable[[Run], None]] = {
    "sgd": _with(_sgd),
    "adam": _with(
        lambda run: torch.optim.Adam(run.model.parameters(), 1e-2, amsgrad=True), scheduler=_sequential
    ),
    "workers": _with(
        _adamw,
        scheduler=lambda run: lr_scheduler.OneCycleLR(run.optimizer, 0.02, total_steps=40),
        ema=lambda run: swa_utils.AveragedModel(run.model, use_buffers=True),
    ),
    "accumulation": _with(
        _adamw, scheduler=lambda run: lr_scheduler.MultiStepLR(run.optimizer, [1, 2, 4], gamma=0.5)
    ),
    "scaler": _with(
        _sgd, scaler=lambda run: torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    ),
    "plateau": _with(
        lambda run: torch.optim.RMSprop(run.model.parameters(), 1e-2, momentum=0.5),
        scheduler=lambda run: lr_scheduler.ReduceLROnPlateau(run.optimizer, patience=1),
    ),
    "lambda": _with(
        lambda run: torch.optim.NAdam(run.model.parameters(), 1e-2),
        scheduler=lambda run: lr_scheduler.LambdaLR(run.optimizer, lambda epoch: 0.9**epoch),
    ),
    "lbfgs": _with(lambda run: torch.optim.LBFGS(run.model.parameters(), 0.1, max_iter=3, history_size=4)),
    "several": _with(
        lambda run: [
            torch.optim.Adam(run.model[0].parameters(), 1e-2, foreach=True),
            torch.optim.SGD(
                [{"params": run.model[4].parameters()}, {"params": run.model[5].parameters(), "lr": 0.1}],
                0.01,
            ),
        ]
    ),
}


def train(run: Run, first: int, folder: Path | None = None) -> None:
    """Go on to STEPS; with `folder`, save there at SAVED_AT and go on."""
    done = first
    while done < STEPS:
        for batch in run.loader:
            run.step(batch)
            done += 1
            if done == SAVED_AT and folder is not None:
                ptsave.save(folder / f"{run.name}.pt", {"micro": run.micro, **run.state.state_dict()})
            if done == STEPS:
                break


def main(folder: Path, what: str) -> None:
    """Run every case."""
    for name in OPTIMIZERS:
        if what == "full":
            run = Run(name, seed=1)
            train(run, 0, folder)
        else:
            run = Run(name, seed=2)
            saved = ptsave.read_training(folder / f"{name}.pt")
            run.micro = saved.pop("micro")
            notes = run.state.load_state_dict(saved)
            assert notes == [], notes
            train(run, SAVED_AT)
        end = dict(run.model.state_dict())
        end |= (
            {f"ema.{key}": value for key, value in run.extra["ema"].state_dict().items()}
            if "ema" in run.extra
            else {}
        )
        torch.save(end, folder / f"{name}.{what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
