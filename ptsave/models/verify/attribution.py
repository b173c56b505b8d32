"""One line that says what happened, from evidence: whose fault it is when a model is not the same."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ptsave.core.checkpoint import check_viewed
from ptsave.core.finding import Finding, Kind, counted, failed_of, first_names, places
from ptsave.core.values.digest import HEX_DIGITS
from ptsave.models.behaviour.replay import Replay
from ptsave.models.source import changed_parts, source_digest
from ptsave.models.verify.behaviour import coarser_dtype
from ptsave.models.verify.subject import ModelSubject
from ptsave.storage.scan import tensor_digest
from ptsave.verbs.checks.cause import (
    another_runtime,
    damage,
    departure,
    difference,
    is_same_runtime,
    lost,
    program_cause,
    resumption,
    unsigned,
)
from ptsave.verbs.checks.program import FORMATS as PROGRAMS
from ptsave.verbs.verify import NEED_A_MODEL


def attribute(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """What explains the findings, the surest evidence first; empty where there is nothing to explain."""
    for clue in (
        _training,
        _ties,
        _weights,
        _program,
        _keys,
        _lost,
        _other,
        _resume,
        _dtype,
        _code,
        _buffers,
        _outside,
        _numerics,
        _signature,
    ):
        if line := clue(subject, findings):
            return line
    return ""


def _training(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    stuck = failed_of(findings, Kind.TRAIN_MODE, Kind.TRAIN_MODE_INSIDE)
    return f"left in train mode: {first_names([name or 'the model' for name in stuck])}" if stuck else ""


# --- the weights ----------------------------------------------------------------------------------------


def _weights(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """Digests and CRCs: damaged, exchanged, or other weights altogether."""
    tensors = subject.checkpoint.tensors
    bad = [name for name in places(findings, "bytes", "fail") if name in tensors]
    bad = bad or list(_mismatched_digests(subject, findings))
    total = len(tensors)
    if not bad:
        return ""
    if swapped := _swapped(subject, bad):
        return f"exchanged: {swapped[0]!r} and {swapped[1]!r} hold each other's values"
    if len(bad) * 2 > total > 1:
        return f"not the same weights: {len(bad)} of {total} tensors do not match their digests"
    return damage(bad, total, "digest")


def _mismatched_digests(subject: ModelSubject, findings: Sequence[Finding]) -> Iterator[str]:
    """Where `bytes` was not among the checks and the model is not what it was: which weights are not."""
    departs = subject.replayed is not None and not subject.replayed.is_bitwise_equal
    if any(finding.check == "bytes" for finding in findings) or not (departs or subject.damage):
        return
    recorded, algorithm = _recorded_digests(subject)
    check_viewed([entry for name, entry in subject.checkpoint.tensors.items() if name in recorded])
    for name, entry in subject.checkpoint.tensors.items():
        if name in recorded and recorded[name] != tensor_digest(entry, algorithm):
            yield name


def _recorded_digests(subject: ModelSubject) -> tuple[Mapping[str, str], str]:
    digests = subject.checkpoint.record.digests if subject.checkpoint.record else None
    if digests is None or digests.algorithm not in HEX_DIGITS:
        return {}, ""
    return digests.tensors, digests.algorithm


def _swapped(subject: ModelSubject, bad: Sequence[str]) -> tuple[str, str] | None:
    """Two tensors each of which has the digest that is recorded of the other."""
    recorded, algorithm = _recorded_digests(subject)
    tensors = subject.checkpoint.tensors
    known = [name for name in bad if name in recorded and name in tensors][:64]
    now = {name: tensor_digest(tensors[name], algorithm) for name in known}
    for i, one in enumerate(known):
        for other in known[i + 1 :]:
            if now[one] == recorded[other] and now[other] == recorded[one]:
                return one, other
    return None


def _ties(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """Ties that were lost, where nothing else is wrong with the weights."""
    lost = failed_of(findings, Kind.LOST_TIE, Kind.NEW_TIE)
    bad = {name for name in places(findings, "bytes", "fail") if name in subject.checkpoint.tensors}
    return f"lost ties: {first_names(lost)}" if lost and bad <= set(lost) else ""


def _dtype(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    recorded, found = subject.behaviour, subject.replayed
    if recorded is None or (coarse := coarser_dtype(subject, recorded)) is None:
        return ""
    now = Counter(entry.dtype.name for entry in subject.selection.tensors.values())
    moved = {name: count for name, count in recorded.dtypes.items() if now.get(name, 0) < count}
    new = [name for name, count in now.items() if recorded.dtypes.get(name, 0) < count]
    tensors = counted(sum(moved.values()), "tensor", "tensors")
    line = f"dtype changed: {tensors} {', '.join(moved)} → {', '.join(new)}"
    if found is None:
        return line
    if found.is_bitwise_equal:
        return f"{line}, outputs bitwise equal"
    if found.is_same:
        return f"{line}, outputs within {coarse} tolerance"
    changed = _changed_code(subject) or _changed_arguments(subject)
    return f"{line}, outputs outside {coarse} tolerance{_from(found)}" + (f"; {changed}" if changed else "")


# --- the code -------------------------------------------------------------------------------------------


def _keys(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """Whether it is a checkpoint of another model, where a check looked at the model."""
    if not {finding.check for finding in findings} & {*NEED_A_MODEL, "resume", "against"}:
        return ""
    missing = tuple(name for name in subject.fit.missing if name not in subject.unused)
    fit = replace(subject.fit, missing=missing)
    if fit.fits:
        return ""
    changed = _changed_code(subject) or _changed_arguments(subject)
    why = f"; {changed}" if changed else ""
    return f"another architecture: {fit.summary()}{why}"


def _lost(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    return lost(findings)


def _code(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    found = subject.replayed
    changed = _changed_code(subject) or _changed_arguments(subject)
    if not changed or found is None:
        return ""
    buffers = f", {first_names(subject.lost_buffers)} made otherwise" if subject.lost_buffers else ""
    if found.is_bitwise_equal:
        effect = "outputs bitwise equal"
    elif found.has_same_outputs:
        effect = "outputs explained by rounding"
    else:
        effect = "outputs differ"
    return f"{changed}, weights intact{buffers}, {effect}{_from(found)}"


def _changed_code(subject: ModelSubject) -> str:
    """What of the model's source is not what it was."""
    record = subject.checkpoint.record
    described = record.model if record is not None and record.model is not None else {}
    parts = described.get("source_parts")
    if isinstance(parts, dict):
        changed = changed_parts(parts, subject.skeleton)
        if changed:
            names = first_names([_part(name) for name in changed])
            return f"class changed since save: {names} differs (source digest)"
        return ""
    digest = described.get("source_digest")
    if digest and source_digest(subject.skeleton) not in (None, digest):
        kind = type(subject.skeleton)
        return f"class changed since save: {kind.__module__}.{kind.__qualname__} differs (source digest)"
    return ""


def _part(name: str) -> str:
    """`forward of pkg.mod.Net` for the method, `pkg.mod.SCALE` for what a module holds."""
    owner, _, method = name.rpartition(".")
    return name if owner in sys.modules or name in sys.modules else f"{method} of {owner}"


def _changed_arguments(subject: ModelSubject) -> str:
    """Which hyperparameters of the config are not the recorded ones."""
    record = subject.checkpoint.record
    if record is None or record.model is None:
        return ""
    if "factory" in record.model or subject.config.model.is_factory:
        return ""
    if subject.told.model is None:
        return ""
    then = subject.told.model.to_json().get("args", {})
    now = subject.config.model.to_json().get("args", {})
    changed = list(_different("", then, now))
    return f"config changed since save: {', '.join(changed[:4])}" if changed else ""


def _different(path: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _different(f"{path}.{key}" if path else str(key), then.get(key), now.get(key))
    elif then != now:
        yield f"{path} {then!r} → {now!r}"


def _buffers(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    recreated = failed_of(findings, Kind.UNINITIALISED)
    departs = subject.replayed is not None and not subject.replayed.is_same
    lost = list(dict.fromkeys([*recreated, *(subject.lost_buffers if departs else [])]))
    return (
        f"uninitialised buffer: {first_names(lost)} is not in the state dict, and not what it was"
        if lost
        else ""
    )


def _outside(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """What neither the state dict nor a buffer keeps: drawn anew by a constructor or at import."""
    if subject.replayed is None or subject.replayed.is_same or not subject.recreated:
        return ""
    names = first_names(subject.recreated)
    return f"recreated: {names} is outside the state dict, and not what it was (drawn at random?)"


def _numerics(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    found, recorded = subject.replayed, subject.behaviour
    if found is None or recorded is None or found.is_bitwise_equal or not found.is_deterministic:
        return ""
    worst = max((excess.relative for excess in found.excesses.values()), default=0.0)
    moves = [f"{name} {old} → {new}" for name, (old, new) in found.environment.items()]
    where = f", {', '.join(moves[:3])}" if moves else ", the same environment"
    digests = "all digests match" if _recorded_digests(subject)[0] else "there are no digests"
    how = f"{digests}{where}, {worst:.2g} relative"
    if found.is_same:
        return f"numerics: {how}, explained by {_precision(recorded.dtypes)}"
    return f"changed numerics: {how}, more than rounding explains{_from(found)}"


def _other(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """What is not as in the checkpoint, or the config, that `--against` names."""
    failed = {finding.check for finding in findings if finding.level == "fail"}
    if subject.other is None or "against" not in failed or "behaviour" in failed:
        return ""
    programs = [side for side in (subject.checkpoint, subject.other) if side.format in PROGRAMS]
    computed = departure([one for one in findings if one.check == "against"]) if programs else ""
    if line := difference(findings, *subject.sides, subject.other.path):
        return f"{line}; and another graph: {computed}" if subject.graph_is_equal is False else line
    if computed:
        others = [program for program in programs if not is_same_runtime(program)]
        return f"{another_runtime(others[0])}, {computed}" if others else computed
    found = subject.compared
    return f"another function than {subject.other.path}: the tensors are equal{_from(found) if found else ''}"


def _program(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    return program_cause(findings, subject.checkpoint)


def _resume(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    failed = {finding.check for finding in findings if finding.level == "fail"}
    return resumption(findings) if failed == {"resume"} else ""


def _signature(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    return unsigned(findings)


def _precision(dtypes: Mapping[str, int]) -> str:
    floats = {name: count for name, count in dtypes.items() if "float" in name or "complex" in name}
    return max(floats, key=lambda name: floats[name]) if floats else "rounding"


# --- words ----------------------------------------------------------------------------------------------


def _from(found: Replay) -> str:
    """Where a difference begins."""
    if found.is_same or found.first is None:
        return ""
    return f" from {found.first.module!r} on" if found.first.module else ""
