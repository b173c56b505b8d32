"""verify under torchrun: the ranks share the bytes, run the model together, and come to one verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from ptsave.core.behaviour import Call, Sample
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, merge
from ptsave.core.parts.keys import Wanted
from ptsave.core.parts.select import Selection
from ptsave.core.verdict import Verdict
from ptsave.distributed.group import Group
from ptsave.distributed.load import shard_and_fill
from ptsave.distributed.plan import Plan, PlanError, make_plan
from ptsave.distributed.sameness import (
    Look,
    check_same_config,
    check_same_folder,
    check_same_outputs,
)
from ptsave.distributed.shares import share_of
from ptsave.errors import UsageError
from ptsave.models.behaviour import trace
from ptsave.models.behaviour.trace import Trace
from ptsave.models.build import build_model
from ptsave.models.load import config_for
from ptsave.models.verify.attribution import attribute
from ptsave.models.verify.behaviour import behaviour
from ptsave.models.verify.checks import keys
from ptsave.models.verify.one import Request
from ptsave.models.verify.subject import ModelSubject
from ptsave.models.weights.fill import Warn


def share(group: Group, checkpoint: Checkpoint) -> Checkpoint:
    """The part of a checkpoint whose bytes this rank looks at, as a checkpoint."""
    mine = share_of(checkpoint.tensors, group.rank, group.size)
    checks = checkpoint.parts_of_checks[group.rank :: group.size]
    if not checkpoint.parts_of_checks and group.is_first:
        checks = checkpoint.checks
    record = checkpoint.record
    if record is not None and record.digests is not None:
        known = {
            name: digest
            for name, digest in record.digests.tensors.items()
            if name in mine or (group.is_first and name not in checkpoint.tensors)
        }
        record = replace(record, digests=replace(record.digests, tensors=known))
    return replace(checkpoint, root=mine, checks=checks, parts_of_checks=[], record=record)


def merged(group: Group, findings: Sequence[Finding]) -> list[Finding]:
    """What all ranks found of one check, counts added up; the same list on every rank."""
    return merge([finding for part in group.gather(list(findings)) for finding in part])


@dataclass(kw_only=True)
class ShardedSubject(ModelSubject):
    """A model that is loaded over all ranks, and watched by rank 0."""

    group: Group
    plan: Plan

    def load(
        self, source: Checkpoint, selection: Selection, skeleton: nn.Module | None = None, **how: bool
    ) -> nn.Module:
        """A model of its own, which FSDP2 makes another class of: the skeleton stays what it is."""
        model, _ = shard_and_fill(
            self.group,
            self.plan,
            self.config.model,
            source,
            selection,
            self.warn,
            skeleton=build_model(self.config.model, device="meta", app_dir=self.app_dir),
            app_dir=self.app_dir,
            is_checked=False,
            wanted=Wanted(extras="drop"),
        )
        self.plan.check_runs(model)
        return model.eval()


def sharded_subject(group: Group, request: Request, source: Checkpoint, warn: Warn) -> ShardedSubject:
    """The model of the request's config, or else of the record, as the ranks check it together.

    Raises: UsageError for the config; RankError when the ranks do not have the same one.
    """
    config = config_for(source, request.asked.config, request.overrides, request.asked.trusted)
    check_same_config(group, config)
    check_same_folder(group, source)
    plan = make_plan(config, group)
    return ShardedSubject(
        source, config, group.device, request.select, request.app_dir, warn=warn, group=group, plan=plan
    )


def verify_model(
    subject: ShardedSubject,
    names: Collection[str],
    found: Sequence[Finding],
    began: Callable[[str], None],
) -> Verdict:
    """Run the checks among `names` that need the model; the verdict is over these and what was `found`.

    Every rank calls it, and gets the same verdict.

    Raises: UsageError where the model cannot be built or sharded.
    """
    findings = list(found)
    if "keys" in names:
        began("keys")
        findings += keys(subject)
    if "behaviour" in names:
        began("behaviour")
        with _together(subject.group, subject) as wrong:
            findings += behaviour(subject)
        if wrong:  # says nothing of the checkpoint
            raise wrong[0]
    if "roundtrip" in names:
        findings.append(Finding("roundtrip", "skipped", "", Kind.ONE_PROCESS))
    growth = subject.replayed.growth if subject.replayed is not None else ()
    verdict = Verdict(tuple(findings), attribute(subject, findings), tuple(growth))
    return subject.group.from_first(lambda: verdict)


@contextmanager
def _together(group: Group, subject: ShardedSubject) -> Iterator[list[PlanError]]:
    """While open, every rank goes by what rank 0 saw of a forward pass, so that all do the same next.

    Where the plan splits tensors, what modules saw parts of is left out, since the record has the whole
    tensor; the model's own outputs stay. Yields what is wrong with the plan, as it is found.
    """
    plan, wrong = subject.plan, list[PlanError]()

    def watch(run: Callable[[], Trace]) -> Trace:
        try:
            return _watched(run)
        except PlanError as error:
            wrong.append(error)
            raise

    def _watched(run: Callable[[], Trace]) -> Trace:
        seen: Trace | UsageError
        try:
            with plan.blamed():
                seen = run()
        except UsageError as error:
            seen = type(error)(error.what, error.where, error.hint)
        if plan.splits_tensors:
            outputs = seen.outputs if isinstance(seen, Trace) else {}
            looks = {path: Look(s.shape, s.norm, s.sketch) for path, s in outputs.items()}
            check_same_outputs(group, looks, f"{plan.where}: tensor")
        outcome = group.from_first(lambda: seen)
        if isinstance(outcome, UsageError):
            raise outcome
        if plan.splits_tensors and subject.behaviour is not None:
            outcome.calls = _comparable(subject.behaviour.calls, outcome.calls)
        return outcome

    token = trace.together.set(watch)
    try:
        yield wrong
    finally:
        trace.together.reset(token)


def _comparable(recorded: Sequence[Call], now: Sequence[Call]) -> list[Call]:
    """Today's calls without the tensors of which they saw a part."""
    known = {call.key: call for call in recorded}

    def kept(old: Mapping[str, Sample], new: Mapping[str, Sample]) -> Mapping[str, Sample]:
        return new if [s.shape for s in old.values()] == [s.shape for s in new.values()] else {}

    return [
        replace(new, inputs=kept(old.inputs, new.inputs), outputs=kept(old.outputs, new.outputs))
        if (old := known.get(new.key)) is not None
        else new
        for new in now
    ]
