"""verify: a verdict on a checkpoint, by one process or by all ranks, or on the folder of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ptsave.cli.launch import launched
from ptsave.core.address import Location, on_disk
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding
from ptsave.core.verdict import Verdict
from ptsave.distributed.group import is_first_rank
from ptsave.errors import UsageError
from ptsave.formats import open_checkpoint
from ptsave.render import as_json
from ptsave.render.terminal import Mode, progress, warn
from ptsave.render.verify import checking, show_checks, show_recorded, show_verdict, show_workflow_commands
from ptsave.verbs import verify as verb
from ptsave.verbs.checks import FILE_CHECKS, SHARED_CHECKS
from ptsave.verbs.checks.subject import Asked, Subject
from ptsave.verbs.runs import is_run, refuse_flags

if TYPE_CHECKING:
    from ptsave.distributed.group import Group
    from ptsave.models.verify.subject import ModelSubject

Outcome = tuple[Verdict, Mapping[str, str | int | float]]
"""A verdict, and what a report says of how it came about."""


@dataclass(frozen=True)
class Request:
    """What to verify, and how."""

    path: Location
    asked: Asked
    allow: Sequence[str]
    overrides: Sequence[str]
    select: str | None
    device: str
    app_dir: Path
    report: Path | None = None
    is_strict: bool = False
    """Whether warnings count as failures."""


def list_checks(mode: Mode) -> None:
    """Show what each check proves."""
    from ptsave.models.verify.checks import MODEL_CHECKS

    if is_first_rank():
        show_checks(mode, {**FILE_CHECKS, **MODEL_CHECKS})


def verify(mode: Mode, request: Request) -> bool:
    """Come to a verdict, show it, and write it to the report; returns whether it is yes.

    Raises: UsageError for flags that do not go together, and what opening a checkpoint raises.
    """
    if is_run(request.path):
        if not is_first_rank():
            return True  # one process does it, and says what came of it
        _check_report(request)
        return _show(mode, _verify_run(mode, request), request)
    with launched(request.device) as group:
        if is_first_rank():
            _check_report(request)
        outcome = _verify_alone(mode, request) if group is None else _verify_together(mode, request, group)
        return _show(mode, outcome, request)


def _verify_alone(mode: Mode, request: Request) -> Outcome:
    asked, start, began = request.asked, time.monotonic(), checking(mode)
    with ExitStack() as opened:
        source = opened.enter_context(open_checkpoint(request.path))
        other = opened.enter_context(open_checkpoint(asked.other)) if asked.other is not None else None
        if asked.has_model:
            from ptsave.models.imports import in_front

            opened.enter_context(in_front(request.app_dir))
        model = _model(request, source, other) if asked.has_model else None
        if model is not None:
            other = model.other
        _check_report(request)  # now that the inputs are known
        with progress(mode, "reading", verb.total_bytes(asked.names, source, other)) as advance:
            subject = Subject(source, other, asked, request.allow, advance, select=request.select)
            if model is not None:
                subject = replace(subject, parameters=model.parameters, tolerance=model.config.tolerance)
            findings = verb.verify_file(subject, began)
        if model is None:
            verdict = verb.without_model(subject, findings)
        else:
            from ptsave.models.verify.run import verify_model

            verdict = verify_model(model, asked.names, findings, began)
        verdict = replace(verdict, is_strict=request.is_strict)
        source.check_unchanged()
        if other is not None:
            other.check_unchanged()
        if model is not None and asked.records and verdict.is_yes:
            from ptsave.models.save import add_behaviour

            show_recorded(mode, add_behaviour(model))
        target = model.config.model.target if model is not None else None
        return verdict, verb.facts(source, target, request.device, time.monotonic() - start)


def _model(request: Request, source: Checkpoint, other: Checkpoint | None) -> ModelSubject:
    from ptsave.models.verify.run import subject_of

    return subject_of(
        source,
        other,
        request.asked.config,
        request.overrides,
        trusted=request.asked.trusted,
        other_config=request.asked.other_config,
        select=request.select,
        device=request.device,
        app_dir=request.app_dir,
        through=request.asked.through,
        warn=warn,
    )


def _verify_together(mode: Mode, request: Request, group: Group) -> Outcome:
    """The ranks share the bytes and run the model together; all come to the same verdict."""
    from ptsave.distributed.verify import sharded_subject, verify_model

    asked, start, began = request.asked, time.monotonic(), group.speak(checking(mode))
    for flag in ("--against", "--record", "--through"):
        if flag in asked.given:
            raise UsageError(f"{flag} is for one process", "", "run it without torchrun")
    with ExitStack() as opened:
        source = opened.enter_context(open_checkpoint(request.path))
        if is_first_rank():
            _check_report(request)
        model = None
        subject = Subject(source, None, asked, request.allow)
        if asked.has_model:
            from ptsave.models.imports import in_front

            say, app_dir = group.speak(warn), request.app_dir
            opened.enter_context(in_front(app_dir))
            model = sharded_subject(
                group, source, asked.config, request.overrides, asked.trusted, request.select, app_dir, say
            )
            subject = replace(subject, parameters=model.parameters)
        findings = _shared_findings(subject, group, began)
        if model is None:
            verdict = verb.without_model(subject, findings)
        else:
            verdict = verify_model(model, asked.names, findings, began)
        source.check_unchanged()
        target = model.config.model.target if model is not None else None
        facts = verb.facts(source, target, request.device, time.monotonic() - start)
        verdict = replace(verdict, is_strict=request.is_strict)
        return verdict, {**facts, "ranks": group.size}


def _shared_findings(subject: Subject, group: Group, began: verb.Began) -> list[Finding]:
    """What the checks of the file find; where a check can be shared, each rank looks at its own tensors."""
    from ptsave.distributed.verify import merged, share

    own = replace(subject, checkpoint=share(group, subject.checkpoint), shared=subject.checkpoint)
    findings: list[Finding] = []
    for name, check in FILE_CHECKS.items():
        if name in subject.asked.names:
            began(name)
            findings += merged(group, list(check(own))) if name in SHARED_CHECKS else check(subject)
    return findings


def _verify_run(mode: Mode, request: Request) -> Outcome:
    from ptsave.formats.run_folder import list_run
    from ptsave.verbs import verify_run as verb_of_run

    path, asked = on_disk(request.path, "the folder of a run"), request.asked
    refuse_flags(path, verb.about_one(asked))
    start, files = time.monotonic(), list_run(path)
    _check_report(request)
    with progress(mode, "reading", verb_of_run.total_bytes(files, asked)) as advance:
        verdict = verb_of_run.verify_run(
            files, asked, allow=request.allow, progress=advance, began=checking(mode)
        )
    verdict = replace(verdict, is_strict=request.is_strict)
    return verdict, verb_of_run.facts(path, files, time.monotonic() - start)


def _check_report(request: Request) -> None:
    """Whether the report can be written, asked before the work whose result would be lost."""
    if request.report is not None:
        from ptsave.render.report import check_report_path

        check_report_path(request.report)


def _show(mode: Mode, outcome: Outcome, request: Request) -> bool:
    """Print and write the outcome, where this process speaks for all; returns whether it is yes."""
    (verdict, facts), path, report = outcome, request.path, request.report
    if not is_first_rank():
        return verdict.is_yes
    if report is not None:
        from ptsave.render.report import write_report

        write_report(report, verdict, facts, as_json.versioned(as_json.verdict(verdict, path)))
    show_verdict(mode, verdict, path)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from ptsave.render.report import annotation_lines

        show_workflow_commands(annotation_lines(verdict, str(path)))
    return verdict.is_yes
