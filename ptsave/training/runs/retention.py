"""Which checkpoints of a run are kept: the last ones, the best ones, and every Nth step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ptsave.core.address import Location
from ptsave.core.names import hint_for
from ptsave.errors import UsageError
from ptsave.formats.run_folder import RunFile


@dataclass(frozen=True)
class Best:
    """What makes a checkpoint a good one."""

    metric: str
    """Its name in `metrics`."""
    is_max: bool
    """Whether more of it is better."""
    number: int = 1
    """How many of the best are kept."""

    def ranked(self, files: Iterable[RunFile[Location]]) -> list[RunFile[Location]]:
        """Those with the metric, the best first; of equal ones the later step. NaN is no value."""
        known = [file for file in files if not math.isnan(file.metrics.get(self.metric, math.nan))]
        sign = -1 if self.is_max else 1
        known.sort(key=lambda file: (sign * file.metrics[self.metric], *(-n for n in file.order)))
        return known


@dataclass(frozen=True)
class Retention:
    """How many checkpoints of a run are kept."""

    last: int | None = None
    """The newest ones, at least 1; None: all of them."""
    best: Best | None = None
    every: int | None = None
    """Also those of every step that is a multiple of this."""

    def superseded(
        self, files: Sequence[RunFile[Location]], just_written: Location
    ) -> list[RunFile[Location]]:
        """Those of `files`, the oldest first, that are not kept now that `just_written` is in place.

        What cannot be used, and what ptsave did not write, is never among them; what cannot be used does not
        count as one of the last either.
        """
        if self.last is None:
            return []
        usable = [file for file in files if not file.problem]
        kept = {file.path for file in (*usable[-self.last :], *self.favourites(usable))} | {just_written}
        return [file for file in usable if file.is_ours and file.path not in kept]

    def favourites(self, usable: Sequence[RunFile[Location]]) -> list[RunFile[Location]]:
        """Those that are kept however old they are."""
        found = [file for file in usable if self.every and file.step % self.every == 0]
        return found + (self.best.ranked(usable)[: self.best.number] if self.best is not None else [])


def parse_best(wanted: Any) -> Best | None:
    """What `keep_best` asks for.

    Raises: UsageError.
    """
    if wanted is None:
        return None
    if not isinstance(wanted, (tuple, list)) or len(wanted) not in (2, 3):
        raise UsageError(
            "keep_best names a metric and min or max", "Checkpoints", 'such as ("val_loss", "min")'
        )
    metric, mode, number = (*wanted, 1)[:3]
    if mode not in ("min", "max"):
        hint = hint_for(str(mode), ("min", "max"), "modes")
        raise UsageError(f"keep_best has the mode {mode!r}", "Checkpoints", hint)
    if not isinstance(metric, str) or type(number) is not int or number < 1:
        raise UsageError("keep_best names a metric and how many, 1 or more", "Checkpoints")
    return Best(metric, mode == "max", number)
