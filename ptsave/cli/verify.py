"""verify: a verdict on a checkpoint, by one process or by all ranks, or on the folder of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ptsave.cli.launch import launched
from ptsave.core.address import Location
from ptsave.core.finding import Finding
from ptsave.core.verdict import Verdict
from ptsave.distributed.group import is_first_rank, is_under_torchrun
from ptsave.errors import EXIT_NO, EXIT_OK, PtsaveError, RefusedError, UnreadableError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.models.verify.one import Listener, Outcome, Request, verify_path, verify_run
from ptsave.render import as_json
from ptsave.render.terminal import Mode, progress, warn
from ptsave.render.verify import (
    checking,
    show_checks,
    show_one,
    show_pinned,
    show_recorded,
    show_summary,
    show_verdict,
    show_workflow_commands,
)
from ptsave.verbs import verify as verb
from ptsave.verbs.checks import FILE_CHECKS, SHARED_CHECKS
from ptsave.verbs.checks.signature import signature
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.folders.runs import is_run
from ptsave.verbs.request import option

if TYPE_CHECKING:
    from ptsave.distributed.group import Group


def list_checks(mode: Mode) -> None:
    """Show what each check proves."""
    from ptsave.models.verify.checks import MODEL_CHECKS

    if is_first_rank():
        show_checks(mode, {**FILE_CHECKS, **MODEL_CHECKS})


def verify(mode: Mode, request: Request, report: Location | None, typed: str) -> bool:
    """Come to a verdict, show it, and write it to the report; returns whether it is yes.

    `typed`: the command line, which the report shows.

    Raises: UsageError for flags that do not go together, and what opening a checkpoint raises.
    """

    def check_report() -> None:
        """Whether the report can be written, asked before the work whose result would be lost."""
        if report is not None and is_first_rank():
            from ptsave.render.report import check_report_path

            check_report_path(report)

    bar = partial(progress, mode)
    said = (partial(show_recorded, mode), partial(show_pinned, mode))
    listener = Listener(warn, bar, checking(mode), check_report, *said)
    if is_run(request.path):
        if not is_first_rank():
            return True  # one process does it, and says what came of it
        check_report()
        return _show(mode, verify_run(request, listener), request, report, typed)
    with launched(request.device) as group:
        check_report()
        if group is None:
            outcome = verify_path(request, listener)
        else:
            outcome = _verify_together(request, group, listener)
        return _show(mode, outcome, request, report, typed)


def verify_all(
    mode: Mode,
    request: Request,
    paths: Sequence[Location],
    others: Sequence[str],
    report: Location | None,
    typed: str,
) -> int:
    """Come to a verdict on each of `paths`, show each and how many say what; returns the worst exit code.

    One that cannot be read, or is refused, is an error of its own, and the others are verified all the same.
    `others`: the names of what lies beside them and is not looked into. `typed`: the command line, which the
    report shows.

    Raises: UsageError for flags that do not go together, or are about one checkpoint.
    """
    for flag in ("--against", "--record", "--signature"):
        if flag in request.asked.given:
            raise UsageError((option(flag), " is about one checkpoint"), "", f"such as {paths[0]}")
    if is_under_torchrun():
        raise UsageError("one process verifies several checkpoints", "", "run it without torchrun")
    if report is not None:
        from ptsave.render.report import check_report_path

        check_report_path(report)
    bar, pinned = partial(progress, mode), partial(show_pinned, mode)
    listener = Listener(warn, bar, checking(mode), pinned=pinned)
    results: list[tuple[Location, Outcome | PtsaveError]] = []
    for path in paths:
        try:
            verdict_of = verify_run if is_run(path) else verify_path
            outcome: Outcome | PtsaveError = verdict_of(replace(request, path=path), listener)
        except (UnreadableError, RefusedError) as error:
            outcome = error
        results.append((path, outcome))
        show_one(mode, outcome, path)
        if not isinstance(outcome, PtsaveError):
            _annotate(outcome[0], path)
    document = as_json.verdicts(results, others)
    if report is not None:
        from ptsave.render.report import write_reports

        write_reports(report, results, as_json.versioned(document), typed)
    show_summary(mode, document)
    return max(_exit_code(outcome) for _, outcome in results)


def _exit_code(outcome: Outcome | PtsaveError) -> int:
    if isinstance(outcome, PtsaveError):
        return outcome.exit_code
    return EXIT_OK if outcome[0].is_yes else EXIT_NO


def _annotate(verdict: Verdict, path: Location) -> None:
    """Say it to the CI runner, where there is one that listens."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from ptsave.render.report import annotation_lines

        show_workflow_commands(annotation_lines(verdict, str(path)))


def _verify_together(request: Request, group: Group, listener: Listener) -> Outcome:
    """The ranks share the bytes and run the model together; all come to the same verdict."""
    from ptsave.distributed.verify import sharded_subject, verify_model

    asked, start, times = request.asked, time.monotonic(), verb.Times(group.speak(listener.began))
    for flag in ("--against", "--record", "--through", "--pin"):
        if flag in asked.given:
            raise UsageError((option(flag), " is for one process"), "", "run it without torchrun")
    with ExitStack() as opened:
        source = opened.enter_context(open_checkpoint(request.path))
        listener.opened()
        model = None
        subject = Subject(source, None, asked, request.allow)
        if asked.has_model:
            from ptsave.models.imports import in_front

            opened.enter_context(in_front(request.app_dir))
            model = sharded_subject(group, request, source, group.speak(listener.warn))
            subject = replace(subject, parameters=model.parameters)
        findings = _shared_findings(subject, group, times.began)
        if model is None:
            verdict = verb.without_model(subject, findings)
        else:
            verdict = verify_model(model, asked.names, findings, times.began)
        source.check_unchanged()
        target = model.config.model.target if model is not None else None
        facts = verb.facts(source, target, request.device, time.monotonic() - start)
        root = verb.proven_root(source, findings)
        verdict = replace(verdict, is_strict=request.is_strict, seconds=times.ended(), root=root)
        return verdict, {**facts, "ranks": group.size}


def _shared_findings(subject: Subject, group: Group, began: verb.Began) -> list[Finding]:
    """What the checks of the file find; where a check can be shared, each rank looks at its own tensors."""
    from ptsave.distributed.pinned import gathered
    from ptsave.distributed.verify import merged, share

    own = replace(subject, checkpoint=share(group, subject.checkpoint), shared=subject.checkpoint)
    findings: list[Finding] = []
    for name, check in FILE_CHECKS.items():
        if name in subject.asked.names:
            began(name)
            if check is signature and subject.signed_algorithms:
                parts = gathered(group, own.checkpoint.tensors, own.digests(), subject.checkpoint.tensors)
                subject.signed_digests.update(parts)
            findings += merged(group, list(check(own))) if name in SHARED_CHECKS else check(subject)
    return findings


def _show(mode: Mode, outcome: Outcome, request: Request, report: Location | None, typed: str) -> bool:
    """Print and write the outcome, where this process speaks for all; returns whether it is yes."""
    (verdict, facts), path = outcome, request.path
    if not is_first_rank():
        return verdict.is_yes
    if report is not None:
        from ptsave.render.report import write_report

        document = partial(as_json.verdict, verdict, path, iter)
        write_report(report, verdict, {**facts, "command": typed}, lambda: as_json.versioned(document()))
    show_verdict(mode, verdict, path)
    _annotate(verdict, path)
    return verdict.is_yes
