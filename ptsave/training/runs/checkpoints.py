"""Checkpoints: keeps the folder of a run, from which a training resumes wherever it was stopped."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ptsave.core.address import Address, Location, located
from ptsave.distributed.group import Group, training_group
from ptsave.errors import (
    CorruptError,
    MissingFileError,
    RefusedError,
    UsageError,
    WriteError,
)
from ptsave.formats.run_folder import RunFile, file_name
from ptsave.storage.system import naming
from ptsave.training.apart.divide import Division, divide
from ptsave.training.apart.table import WEIGHTS, few
from ptsave.training.items import Path as ItemPath
from ptsave.training.preemption import Signals
from ptsave.training.runs.background import Background
from ptsave.training.runs.contents import step_of, tree_of
from ptsave.training.runs.files import RunFiles
from ptsave.training.runs.reading import RunReader
from ptsave.training.runs.retention import Retention, parse_best
from ptsave.training.runs.seen_by_all import check_listings, check_one_folder
from ptsave.training.runs.snapshot import HostMemory
from ptsave.training.state import TrainingState
from ptsave.verbs.request import python_verb

if TYPE_CHECKING:
    from ptsave.training.runs.sharded_write import ShardedWriter


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

    The folder may be an address, `s3://BUCKET/runs/exp1`, `gs://…` or `az://…`: everything is the same there.

    With `torch.distributed`, call everything on every rank: rank 0 writes, all resume from the same file.
    Where parameters are sharded over the ranks (FSDP2, tensor parallelism), each writes its part of a folder,
    `step-000000123.dcp`, that plain `torch.distributed.checkpoint.load` opens; another number of ranks, or
    one process, can go on from it.
    """

    @python_verb
    def __init__(
        self,
        folder: str | os.PathLike[str] | Address,
        *,
        keep_last: int | None = None,
        keep_best: tuple[str, Literal["min", "max"]] | tuple[str, Literal["min", "max"], int] | None = None,
        keep_every: int | None = None,
    ) -> None:
        """Nothing is written to `folder` before the first save.

        `keep_last`: how many of the newest checkpoints stay, at least 1; by default all do. Beside them stay
        the best by `keep_best`, a metric, whether less or more of it is better and how many (1), and those
        whose step is a multiple of `keep_every`. A new one is in place before an old one is removed. Files
        that are damaged, or that ptsave did not write, are never removed.

        Raises: UsageError; RefusedError for an address that a run cannot be kept at, or whose store's library
        is not installed.
        """
        self.folder = _place(folder)
        """Where the run is: a path, or an address."""
        for name, number in (("keep_last", keep_last), ("keep_every", keep_every)):
            if number is not None and number < 1:
                raise UsageError(f"{name}={number!r} keeps nothing", "Checkpoints", "give 1 or more")
        self._best = parse_best(keep_best)
        self._files = RunFiles(self.folder, Retention(keep_last, self._best, keep_every))
        self._memory = HostMemory()
        self._sharded: ShardedWriter | None = None
        self._group: Group | None = None
        """Of all ranks, for the keeper alone; a write in the background uses it too."""
        self._asking: Group | None = None
        """For what is asked meanwhile."""
        self._background = Background()
        self._signals = Signals()
        self._has_saved = False
        self._has_told = False
        """Whether it was said that ranks have different weights."""

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

        Raises: RefusedError where the folder has later steps of a run that was not resumed, or another
        process saves in it (from the first save on, until its keeper is closed or the process ends);
        LossyError for what is not plain data; what the write before has raised (WriteError).
        """
        self._group = group = training_group(self._group)
        step, number = self._meet(step, group)
        self._begin_run(step, group)
        tree = group.together(lambda: tree_of(state.state_dict(), step, epoch, metrics))
        division = divide(tree, _kinds_of(state), group)
        if not self._has_saved:
            group.from_first(self._hold)
        finish = (
            self._sharded_writer().begin(self._files, division, step, group)
            if division.is_folder
            else group.together(lambda: self._copied(division.tree, step, group))
        )
        self._has_saved = True
        self._background.start(finish, f"the checkpoint of step {step}")
        self._tell_different(division, group)
        if number:
            group.together(self.wait)
            raise SystemExit(128 + number)

    def _meet(self, step: Any, group: Group) -> tuple[int, int]:
        """Wait for the write before, whose failure is no reason to leave without another try; then for the
        other ranks. Returns the step of all, and the signal that came to any of them, or 0.

        Raises: what the write has raised; UsageError, RankError.
        """
        failures: list[Exception] = []

        def begin() -> int:
            try:  # before anything else: the write uses the group too
                self.wait()
            except Exception as error:
                failures.append(error)
            return step_of(step)

        agreed = group.together(begin, says="saves step {}".format)
        number = group.largest(self._signals.noted)

        def tell() -> None:
            for error in failures:
                if not number:
                    raise error
                warnings.warn(f"an earlier save failed: {error}", stacklevel=5)

        group.together(tell)
        return agreed, number

    def _copied(self, tree: Mapping[str, Any], step: int, group: Group) -> Callable[[], None]:
        """What writes a copy of `tree`, on rank 0; nothing on the others."""
        if not group.is_first:
            return lambda: None
        snapshot = self._memory.snapshot(tree, self.folder / file_name(step))
        return partial(self._files.write, snapshot, step)

    def _tell_different(self, division: Division, group: Group) -> None:
        """Say once which weights the ranks have each their own of: it may be a fault of the training."""
        if division.different and not self._has_told and group.is_first:
            names = few(division.different)
            warnings.warn(
                f"the ranks hold different values of {names}: each rank's are kept, for that rank",
                stacklevel=3,
            )
        self._has_told = self._has_told or bool(division.different)

    def _sharded_writer(self) -> ShardedWriter:
        if self._sharded is None:
            from ptsave.training.runs.sharded_write import ShardedWriter  # imports torch.distributed

            self._sharded = ShardedWriter()
        return self._sharded

    def wait(self) -> None:
        """Return when what was saved is durably in place.

        Raises: what the write has raised: WriteError for a full or failing disk. It is raised once.
        """
        try:
            self._background.wait()
        finally:
            while self._files.notes:
                warnings.warn(self._files.notes.pop(0), stacklevel=2)

    def _begin_run(self, step: int, group: Group) -> None:
        """At the first save: see that it does not go back, and that all ranks have one folder.

        Raises: RefusedError, alike on all ranks; WriteError.
        """
        if self._has_saved:
            return
        group.from_first(lambda: self._refuse_to_go_back(step))
        check_one_folder(self._files, group)

    def _hold(self) -> None:
        """Raise RefusedError where another training saves in the folder."""
        try:
            self._files.hold()
        except WriteError:  # the write says more about it
            return

    def _refuse_to_go_back(self, step: int) -> None:
        """Raise RefusedError where a run is begun anew beside another one: `latest` would be the other's."""
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

    def resume(
        self,
        state: Stateful,
        *,
        allow_missing: str | Sequence[str] = (),
        allow_unexpected: str | Sequence[str] = (),
        min_coverage: float = 0.5,
    ) -> int:
        """Give `state` what the newest good checkpoint holds; returns the step to begin with, 0 without one.

        Every byte is checked against its checksum. A damaged checkpoint is passed over with a warning, and
        the one before it is taken. A warning also names what could not be restored.

        `allow_missing`, `allow_unexpected`, `min_coverage`: how far the modules of a `TrainingState` may
        differ from those in the checkpoint, as in its `load_state_dict`. A replaced layer keeps its values.

        Raises: CorruptError when there are checkpoints and all are damaged: a training never starts anew over
        a damaged run; LossyError when the state does not fit, UsageError for an option that `state` does not
        take; then nothing was changed.
        """
        allowed = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
        load = _loading(state, **allowed, min_coverage=min_coverage)
        self._group = group = training_group(self._group)

        if group.is_first and (holder := self._files.holder()) is not None:
            warnings.warn(f"another training saves in {self.folder}: {holder}", stacklevel=2)

        def begin() -> Mapping[str, Any]:
            self.wait()
            return state.state_dict() if group.handle is not None else {}

        live = group.together(begin, says=lambda _: "resumes")
        if group.size > 1:
            check_listings(self._files, group)
        reading = RunReader(live, _kinds_of(state), group)
        num_damaged = 0
        for file in self._newest_first(group):
            found, problem = reading.read(file)
            if not problem:
                self._files.note_intact(file)
                notes = group.together(lambda: [*found[1], *load(found[0])])  # noqa: B023
                everyones = dict.fromkeys(note for one in group.gather(notes) for note in one)
                _tell(list(everyones) if group.is_first else ())
                return file.step + 1
            num_damaged += 1
            if group.is_first:
                self._files.note_damaged(file, problem)
                warnings.warn(f"passed over {file.path}: {problem}", stacklevel=2)
        if num_damaged:
            raise CorruptError(
                f"all {num_damaged} checkpoints of the run are damaged",
                str(self.folder),
                "`ptsave verify` says how; move them away to start anew",
            )
        return 0

    def _newest_first(self, group: Group) -> Iterator[RunFile[Location]]:
        """What rank 0 finds in the folder, the latest step first, on every rank."""
        files = self._files.newest_first()
        while (file := group.from_first(lambda: next(files, None))) is not None:
            yield file

    def latest(self) -> Location | None:
        """The checkpoint of the latest step that opens; None when there is none.

        Waits for what is being written. Its tensors are not read: `resume` and `ptsave verify` do.

        Raises: what a write has raised, like `wait`.
        """
        self.wait()
        return next((file.path for file in self._files.newest_first() if not file.problem), None)

    def best(self) -> Location | None:
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
        """From now on the signals `numbers` (SIGTERM without any) only ask to stop: the next `save` leaves.

        A loop that saves now and then asks `should_stop` at each step. The end of the `with` block, or
        `close`, gives the signals back. A second SIGINT is a KeyboardInterrupt. Where they go to all
        processes of the job, DataLoaders' workers that begin after this stay at their work: all those of a
        ResumableDataLoader, and those of others that are forks.

        Raises: UsageError outside the main thread.
        """
        self._signals.install(*(numbers or (signal.SIGTERM,)))

    @property
    def should_stop(self) -> bool:
        """Whether a signal asks to stop: then save. With `torch.distributed`, every rank asks each time."""
        return self._received() != 0

    def _received(self) -> int:
        """The signal that came, to any rank; 0 when none did. Every rank calls it."""
        self._asking = training_group(self._asking)
        return self._asking.largest(self._signals.noted)

    def close(self) -> None:
        """Wait for what is being written, give the signals back, and free the memory of the copies.

        Raises: what a write has raised, like `wait`.
        """
        try:
            self.wait()
        finally:
            self._files.let_go()
            self._signals.restore()
            self._memory.release()
            if self._sharded is not None:
                self._sharded.release()
            for group in filter(None, (self._group, self._asking)):
                group.leave()
            self._group = self._asking = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close. After a signal that no save has obeyed, leave with 128 + its number all the same."""
        asks = error is None and self._signals.are_held
        number = self._received() if asks else 0  # before this rank may raise
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            warnings.warn(f"the last save failed: {failure}", stacklevel=2)
        if number:
            raise SystemExit(128 + number)


def _loading(state: Stateful, **options: Any) -> Callable[[Mapping[str, Any]], Sequence[str]]:
    """What gives `state` its values, with those `options` that say something.

    Raises: UsageError for one that nothing would look at.
    """
    given = {name: value for name, value in options.items() if value not in ((), 0.5)}
    if given and not isinstance(state, TrainingState):
        what = f"{min(given)}= would not be used: it is about a TrainingState"
        raise UsageError(what, "Checkpoints.resume", "resume one, or leave it out")
    return partial(state.load_state_dict, **given)


def _kinds_of(state: Stateful) -> dict[ItemPath, str]:
    return state.kinds() if isinstance(state, TrainingState) else {("model_state_dict",): WEIGHTS}


def _place(folder: str | os.PathLike[str] | Address) -> Location:
    """Where a run is. Raises: UsageError."""
    where = located(folder)
    if isinstance(where, Address):
        return replace(where, key=where.key.strip("/"))
    return naming.reachable(Path(os.path.abspath(where)))


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(f"resumed, but {note}", stacklevel=3)
