"""Programs for deployment: made by torch's own exporters, run in their runtimes, compared with the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ptsave.config.inputs import InputsSpec
    from ptsave.core.behaviour import Sample
    from ptsave.core.checkpoint import Checkpoint
    from ptsave.core.finding import Finding


def run_pt2(checkpoint: Checkpoint, inputs: InputsSpec) -> Mapping[str, Sample]:
    """What the program of an open `.pt2` computes from `inputs`; torch is imported only then."""
    from ptsave.export.pt2 import run_pt2 as run

    return run(checkpoint, inputs)


def run_beside(checkpoint: Checkpoint, model: nn.Module, inputs: InputsSpec) -> Iterator[Finding]:
    """Findings on what an open program computes in its runtime beside what `model` does."""
    from ptsave.export.beside import run_beside as run

    return run(checkpoint, model, inputs)
