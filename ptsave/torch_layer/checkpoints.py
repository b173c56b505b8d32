"""Checkpoints: the keeper of a run's folder, from which a training goes on wherever it was stopped."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from ptsave.errors import CorruptError, MissingFileError, RankError, RefusedError, UnreadableError, UsageError
from ptsave.formats.run_folder import RunFile, file_name
from ptsave.torch_layer import ranks
from ptsave.torch_layer.background import Background
from ptsave.torch_layer.preemption import Signals
from ptsave.torch_layer.retention import Retention, parse_best
from ptsave.torch_layer.run_contents import state_of, step_of, tree_of
from ptsave.torch_layer.run_files import RunFiles
from ptsave.torch_layer.snapshot import HostMemory
from ptsave.torch_layer.whole import read_whole

NOTHING, FAILED = -1, -2
"""What rank 0 tells the others in place of a step."""


class Stateful(Protocol):
    """What is kept: a `ptsave.TrainingState`, or anything with its two methods."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state: plain data and tensors, which may be the live ones."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> Sequence[str]:
        """Give everything its state back; returns in words what could not be."""


class Checkpoints:
    """Keeps the checkpoints of one run in one folder.

    >>> keeper = ptsave.Checkpoints("runs/exp1", keep_last=3, keep_best=("val_loss", "min"))
    >>> state = ptsave.TrainingState(model=model, optimizer=optimizer, data=loader)
    >>> with keeper:
    ...     for step in range(keeper.resume(state), total):
    ...         train(step)
    ...         keeper.save(state, step=step, metrics={"val_loss": loss})

    A step is saved when it is done: after `save(state, step=s)` a resumed training begins with step `s + 1`.
    Each checkpoint is one file, `step-000000123.pt`, that plain `torch.load(weights_only=True)` opens: the
    dictionary with `step`, `epoch`, `metrics`, `model_state_dict`, `optimizer_state_dict`, … It is complete
    and durable when it has its name, and what is in the folder is all that there is to know of a run.

    With `torch.distributed`, call everything on every rank: rank 0 writes, all resume from the same file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int | None = None,
        keep_best: tuple[str, Literal["min", "max"]] | tuple[str, Literal["min", "max"], int] | None = None,
        keep_every: int | None = None,
    ) -> None:
        """Nothing is written before the first save.

        `keep_last`: how many of the newest checkpoints stay, at least 1; by default all do. Beside them stay
        the best by `keep_best`, a metric, whether less or more of it is better and how many (1), and those
        whose step is a multiple of `keep_every`. A new one is in place before an old one is removed. Files
        that are damaged, or that ptsave did not write, are never removed.

        Raises: UsageError.
        """
        self.folder = Path(os.path.abspath(folder))
        for name, number in (("keep_last", keep_last), ("keep_every", keep_every)):
            if number is not None and number < 1:
                raise UsageError(f"{name}={number!r} keeps nothing", "Checkpoints", "give 1 or more")
        self._best = parse_best(keep_best)
        self._files = RunFiles(self.folder, Retention(keep_last, self._best, keep_every))
        self._memory = HostMemory()
        self._background = Background()
        self._signals = Signals()
        self._has_saved = False

    # --- saving

    def save(
        self,
        state: Stateful,
        *,
        step: int,
        epoch: float | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Save the state after `step`. Returns when it is copied to host memory; a thread writes it then.

        `step`: 0 or more, the one that was just done. `metrics`: numbers, or tensors of one element, by name;
        they are kept in the file.

        At most one write is in flight: a save waits for the one before. What that one raised is raised here,
        and then this state was not saved; `wait` shows earlier whether all is well. A full disk or a failing
        one leaves every older checkpoint in place, and the training can go on.

        After a signal that `on_signal` names, the state is written before this raises SystemExit with the
        code 128 + the signal's number.

        Raises: RefusedError where the folder has later steps of a run that was not resumed; LossyError for
        what is not plain data; what the write before has raised (WriteError).
        """
        step = step_of(step)
        number = self._signals.received()
        if ranks.is_first():
            self._wait_for_last(is_leaving=bool(number))
            self._refuse_to_go_back(step)
            snapshot = self._memory.snapshot(
                tree_of(state.state_dict(), step, epoch, metrics), self.folder / file_name(step)
            )
            self._has_saved = True
            self._background.start(
                partial(self._files.write, snapshot, step), f"the checkpoint of step {step}"
            )
            if number:
                self.wait()
        if number:
            ranks.meet()
            raise SystemExit(128 + number)

    def wait(self) -> None:
        """Return when what was saved is durably in place.

        Raises: what the write has raised: WriteError for a full or failing disk. It is raised once.
        """
        try:
            self._background.wait()
        finally:
            while self._files.notes:
                warnings.warn(self._files.notes.pop(0), stacklevel=2)

    def _wait_for_last(self, *, is_leaving: bool) -> None:
        """Wait for the write before this one; its failure is no reason to leave without another try."""
        try:
            self.wait()
        except Exception as error:
            if not is_leaving:
                raise
            warnings.warn(f"an earlier save failed: {error}", stacklevel=3)

    def _refuse_to_go_back(self, step: int) -> None:
        """Raise RefusedError where a run is begun anew beside another one: `latest` would be the other's."""
        if self._has_saved:
            return
        try:
            latest = next((file for file in self._files.newest_first() if not file.problem), None)
        except MissingFileError:  # the write says more about it
            return
        if latest is not None and latest.step > step:
            raise RefusedError(
                f"step {step} comes before {latest.path.name}, which is there already",
                str(self.folder),
                "resume from it, remove it, or name another folder",
            )

    # --- going on

    def resume(self, state: Stateful) -> int:
        """Give `state` what the newest good checkpoint holds; returns the step to begin with, 0 without one.

        Every byte of it is held against its checksum. One that is damaged is passed over with a warning, and
        the one before is taken; so is told what could not be restored.

        Raises: CorruptError when there are checkpoints and all are damaged: a training never starts anew over
        a damaged run; LossyError when the state does not fit; then nothing was changed.
        """
        self.wait()
        try:
            file = self._resume(state) if ranks.is_first() else None
        except BaseException:
            ranks.of_first(FAILED)
            raise
        step = ranks.of_first(NOTHING if file is None else file.step)
        if step == FAILED:
            raise RankError("rank 0 could not resume", str(self.folder), "its own message says why")
        if (
            step != NOTHING
            and (number := ranks.of_first(file.number if file is not None else 0))
            and not file
        ):
            tree = state_of(read_whole(self.folder / file_name(step, number)))
            tree.pop("rng_state", None)  # rank 0's
            _tell(state.load_state_dict(tree))
        return 0 if step == NOTHING else step + 1

    def _resume(self, state: Stateful) -> RunFile | None:
        """Restore from the newest good checkpoint; returns it.

        Raises: CorruptError.
        """
        num_damaged = 0
        for file in self._files.newest_first():
            problem = file.problem
            if not problem:
                try:
                    tree = read_whole(file.path)
                except UnreadableError as error:
                    problem = error.what
                    self._files.note_damaged(file, problem)
            if not problem:
                self._files.note_whole(file.path)
                _tell(state.load_state_dict(state_of(tree)))
                return file
            num_damaged += 1
            warnings.warn(f"passed over {file.path}: {problem}", stacklevel=3)
        if num_damaged:
            raise CorruptError(
                f"all {num_damaged} checkpoints of the run are damaged",
                str(self.folder),
                "`ptsave verify` says how; move them away to start anew",
            )
        return None

    def latest(self) -> Path | None:
        """The checkpoint of the latest step that opens; None when there is none.

        Waits for what is being written. Its tensors are not read: `resume` and `ptsave verify` do.

        Raises: what a write has raised, like `wait`.
        """
        self.wait()
        return next((file.path for file in self._files.newest_first() if not file.problem), None)

    def best(self) -> Path | None:
        """The best checkpoint by the metric of `keep_best`, of equal ones the latest; NaN is never best.

        Waits for what is being written. None when no checkpoint has the metric.

        Raises: UsageError without `keep_best`; what a write has raised, like `wait`.
        """
        if self._best is None:
            raise UsageError("there is no best without a metric", "Checkpoints", "give keep_best")
        self.wait()
        ranked = self._best.ranked(self._files.usable())
        return ranked[0].path if ranked else None

    # --- leaving

    def on_signal(self, *numbers: int) -> None:
        """From now on these signals (SIGTERM if none is named) only ask to stop: the next `save` leaves.

        A loop that saves now and then asks `should_stop` at each step. The end of the `with` block, or
        `close`, gives the signals back. A second SIGINT is a KeyboardInterrupt. Send them to the training's
        process alone: a DataLoader's workers end on a SIGTERM of their own, and their batches are missed.

        Raises: UsageError outside the main thread.
        """
        self._signals.install(*(numbers or (signal.SIGTERM,)))

    @property
    def should_stop(self) -> bool:
        """Whether a signal asks to stop: then save. With `torch.distributed`, every rank asks each time."""
        return self._signals.received() != 0

    def close(self) -> None:
        """Wait for what is being written, give the signals back, and free the memory of the copies.

        Raises: what a write has raised, like `wait`.
        """
        try:
            self.wait()
        finally:
            self._signals.restore()
            self._memory.release()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close. After a signal that no save has obeyed, leave with 128 + its number all the same."""
        number = self._signals.received() if error is None else 0
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            warnings.warn(f"the last save failed: {failure}", stacklevel=2)
        if number:
            raise SystemExit(128 + number)


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(f"not restored: {note}", stacklevel=4)
