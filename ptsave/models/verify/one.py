"""verify in one process: a verdict on a checkpoint, or on the folder of a run. Only a model takes torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ptsave.config.lock import Pin
from ptsave.core.address import Address, Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding
from ptsave.core.verdict import Verdict
from ptsave.errors import RefusedError
from ptsave.formats import open_checkpoint
from ptsave.storage.opening import pinned
from ptsave.verbs import verify as verb
from ptsave.verbs.checks.subject import Asked, RunPt2, Subject
from ptsave.verbs.folders.runs import is_run, refuse_flags
from ptsave.verbs.request import Bar, reading, unseen
from ptsave.verbs.signing import pin_of, write_pin

if TYPE_CHECKING:
    from ptsave.models.save import Recorded
    from ptsave.models.verify.subject import ModelSubject, RunBeside

Outcome = tuple[Verdict, Mapping[str, str | int | float]]
"""A verdict, and what a report says of how it came about."""


@dataclass(frozen=True)
class Request:
    """What to verify, and how."""

    path: Location
    asked: Asked
    allow: Sequence[str] = ()
    overrides: Sequence[str] = ()
    select: str | None = None
    device: str = "cpu"
    app_dir: Path = Path()
    is_strict: bool = False
    """Whether warnings count as failures."""
    run_pt2: RunPt2 | None = None
    """What runs an exported program of torch's."""
    run_beside: RunBeside | None = None
    """What runs an exported program beside its model."""


@dataclass(frozen=True)
class Listener:
    """The functions to call with what happens on the way."""

    warn: Callable[[str], None]
    bar: Bar = unseen
    began: verb.Began = lambda check: None
    """Called with the name of each check, or of each checkpoint of a run."""
    opened: Callable[[], None] = lambda: None
    """Called once it is known which files are read."""
    recorded: Callable[[Recorded], None] = lambda recorded: None
    pinned: Callable[[Location, Pin], None] = lambda lock, pin: None
    """Called with the lock that has a new pin."""


@dataclass(frozen=True)
class _Opened:
    """What a verdict is on."""

    source: Checkpoint
    path: Location
    """Where `source` is, at the version that was opened."""
    other: Checkpoint | None
    model: ModelSubject | None


def verify_path(request: Request, listener: Listener) -> Outcome:
    """Come to a verdict.

    Raises: UsageError for options that do not go together, and what opening a checkpoint raises.
    """
    if is_run(request.path):
        return verify_run(request, listener)
    start, times = time.monotonic(), verb.Times(listener.began)
    with ExitStack() as stack:
        opened = _open(request, listener, stack)
        listener.opened()
        subject, findings = _check_file(request, opened, listener, times)
        verdict = replace(
            _judge(opened.model, subject, findings, times),
            is_strict=request.is_strict,
            seconds=times.ended(),
            root=verb.proven_root(opened.source, findings),
        )
        for checkpoint in (opened.source, opened.other):
            if checkpoint is not None:
                checkpoint.check_unchanged()
        if verdict.is_yes:
            _record(request, opened, listener)
            _pin(request, subject, listener)
        target = opened.model.config.model.target if opened.model is not None else None
        return verdict, verb.facts(opened.source, target, request.device, time.monotonic() - start)


def _open(request: Request, listener: Listener, stack: ExitStack) -> _Opened:
    """Open both checkpoints, and make a subject of the model, where there is one."""
    asked = request.asked
    path = pinned(request.path) if asked.records else request.path
    source = stack.enter_context(open_checkpoint(path))
    if asked.records and source.wrappings:
        what = f"nothing is written into a {source.wrappings[0].described}"
        raise RefusedError(what, str(source.path), "convert it to a file of its own, and record there")
    if asked.other is not None or asked.has_model:
        _ = source.tensors  # past the caps, before another file, or torch, takes memory too
    other = stack.enter_context(open_checkpoint(asked.other)) if asked.other is not None else None
    if not asked.has_model:
        return _Opened(source, path, other, None)
    from ptsave.models.imports import in_front
    from ptsave.models.verify.run import subject_of

    stack.enter_context(in_front(request.app_dir))
    model = subject_of(request, source, other, listener.warn)
    return _Opened(source, path, model.other, model)


def _check_file(
    request: Request, opened: _Opened, listener: Listener, times: verb.Times
) -> tuple[Subject, list[Finding]]:
    """What the checks of the file look at, and what they find."""
    source, other, model, asked = opened.source, opened.other, opened.model, request.asked
    size_bytes = source.source_bytes + (other.source_bytes if other is not None else 0)
    passing_bytes = verb.total_bytes(asked.names, source, other)
    with reading(listener.bar, "reading", size_bytes, passing_bytes) as advance:
        subject = Subject(
            source,
            other,
            asked,
            request.allow,
            advance,
            model.config.tolerance if model is not None else None,
            model.parameters if model is not None else None,
            request.select,
            run_pt2=request.run_pt2,
        )
        return subject, verb.verify_file(subject, times.began)


def _judge(
    model: ModelSubject | None, subject: Subject, findings: Sequence[Finding], times: verb.Times
) -> Verdict:
    """Run the checks of the model, where there is one, and say whose fault a failure is."""
    if model is None:
        return verb.without_model(subject, findings)
    from ptsave.models.verify.run import verify_model

    return verify_model(model, subject.asked.names, findings, times.began)


def _record(request: Request, opened: _Opened, listener: Listener) -> None:
    """Write today's behaviour into the record, where that was asked for."""
    if opened.model is None or not request.asked.records:
        return
    from ptsave.models.save import add_behaviour

    is_copy = isinstance(opened.path, Address) and isinstance(opened.source.path, Path)  # of the Hub's cache
    listener.recorded(add_behaviour(opened.model, opened.path if is_copy else None))


def _pin(request: Request, subject: Subject, listener: Listener) -> None:
    """Pin what is there, where that was asked for."""
    lock = request.asked.pin_into
    if lock is None:
        return
    keys = sorted({who.id for who, _ in subject.authentic.statements})
    pin = pin_of(subject.checkpoint, subject.digests(), subject.pin_algorithm, keys)
    write_pin(lock, subject.checkpoint, pin)
    listener.pinned(lock, pin)


def verify_run(request: Request, listener: Listener) -> Outcome:
    """Come to a verdict on the folder of a run.

    Raises: UsageError for an option that is about one checkpoint.
    """
    from ptsave.formats.run_folder import list_run
    from ptsave.verbs.folders import verify_run as verb_of_run

    path, asked = request.path, request.asked
    refuse_flags(path, verb.about_one(asked))
    start, files = time.monotonic(), list_run(path)
    listener.opened()
    size_bytes, passing_bytes = sum(file.num_bytes for file in files), verb_of_run.total_bytes(files, asked)
    with reading(listener.bar, "reading", size_bytes, passing_bytes) as advance:
        verdict = verb_of_run.verify_run(
            files, asked, allow=request.allow, progress=advance, began=listener.began
        )
    verdict = replace(verdict, is_strict=request.is_strict)
    return verdict, verb_of_run.facts(path, files, time.monotonic() - start)
