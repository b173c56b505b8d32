"""One line that says what happened, from evidence: whose fault it is when a model is not the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptsave.core.digest import HEX_DIGITS, tensor_digest
from ptsave.core.verdict import Finding
from ptsave.specs import ModelSpec
from ptsave.torch_layer.checks import ModelSubject, coarser_dtype
from ptsave.torch_layer.source import changed_parts, source_digest


def attribute(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """What explains the findings, the surest evidence first; empty where there is nothing to explain."""
    for clue in (_training, _weights, _ties, _keys, _buffers, _dtype, _code, _numerics):
        if line := clue(subject, findings):
            return line
    return ""


def _training(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    stuck = [
        f.where for f in findings if f.check == "behaviour" and f.message.startswith("left in train mode")
    ]
    return f"left in train mode: {_names(stuck)} stay in training after eval()" if stuck else ""


def _weights(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    """Digests and CRCs: damaged, exchanged, or other weights altogether."""
    bad = list(
        dict.fromkeys(f.where for f in findings if f.check == "bytes" and f.level == "fail" and f.where)
    )
    bad += [name for name in _mismatched_digests(subject) if name not in bad]
    total = len(subject.checkpoint.tensors)
    if not bad:
        return ""
    if swapped := _swapped(subject, bad):
        return f"exchanged: {swapped[0]!r} and {swapped[1]!r} hold each other's values"
    if len(bad) * 2 > total and total > 1:
        return f"not the same weights: {len(bad)} of {total} tensors do not match their digests"
    verb = "does" if len(bad) == 1 else "do"
    return f"damaged: {len(bad)} of {total} tensors {verb} not match their digest ({_names(bad)})"


def _mismatched_digests(subject: ModelSubject) -> Iterator[str]:
    if subject.replayed is None or subject.replayed.is_bitwise_equal:
        return
    recorded = _recorded_digests(subject)
    for name, entry in subject.checkpoint.tensors.items():
        if name in recorded and recorded[name] != tensor_digest(entry, _algorithm(subject)):
            yield name


def _recorded_digests(subject: ModelSubject) -> Mapping[str, str]:
    digests = subject.checkpoint.record.digests if subject.checkpoint.record else None
    return digests.tensors if digests is not None and digests.algorithm in HEX_DIGITS else {}


def _algorithm(subject: ModelSubject) -> str:
    digests = subject.checkpoint.record.digests if subject.checkpoint.record else None
    return digests.algorithm if digests is not None else ""


def _swapped(subject: ModelSubject, bad: Sequence[str]) -> tuple[str, str] | None:
    """Two tensors each of which has the digest that is recorded of the other."""
    recorded, tensors = _recorded_digests(subject), subject.checkpoint.tensors
    known = [name for name in bad if name in recorded and name in tensors][:64]
    now = {name: tensor_digest(tensors[name], _algorithm(subject)) for name in known}
    for i, one in enumerate(known):
        for other in known[i + 1 :]:
            if now[one] == recorded[other] and now[other] == recorded[one]:
                return one, other
    return None


def _ties(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    lost = [f.where for f in findings if f.check == "keys" and f.message.startswith("lost tie")]
    return f"lost ties: {_names(lost)}" if lost else ""


def _keys(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    if subject.fit.fits:
        return ""
    changed = _changed_code(subject) or _changed_arguments(subject)
    why = f"; {changed}" if changed else ""
    return f"another architecture: {subject.fit.summary()}{why}"


def _buffers(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    departs = subject.replayed is not None and not subject.replayed.is_same
    if not departs or not subject.lost_buffers:
        return ""
    return f"uninitialised buffer: {_names(subject.lost_buffers)} is not what it was when it was recorded"


def _dtype(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    recorded, found = subject.behaviour, subject.replayed
    if recorded is None or (coarse := coarser_dtype(subject, recorded)) is None:
        return ""
    now = Counter(entry.dtype.name for entry in subject.selection.tensors.values())
    moved = {name: count for name, count in recorded.dtypes.items() if now.get(name, 0) < count}
    new = [name for name, count in now.items() if recorded.dtypes.get(name, 0) < count]
    number, old = sum(moved.values()), ", ".join(moved)
    if found is None:
        return f"dtype changed: {number} tensors {old} → {', '.join(new)}"
    how = "within" if found.is_same else "outside"
    return f"dtype changed: {number} tensors {old} → {', '.join(new)}, outputs {how} {coarse} tolerance"


def _code(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    found = subject.replayed
    if found is not None and found.is_bitwise_equal:
        return ""
    changed = _changed_code(subject) or _changed_arguments(subject)
    if not changed or found is None:
        return ""
    effect = "outputs explained by rounding" if found.is_same else "outputs differ"
    return f"{changed}, weights intact, {effect}"


def _changed_code(subject: ModelSubject) -> str:
    """What of the model's source is not what it was."""
    record = subject.checkpoint.record
    described = record.model if record is not None and record.model is not None else {}
    parts = described.get("source_parts")
    kind = type(subject.skeleton)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(parts, dict):
        changed = changed_parts(parts, subject.skeleton)
        if changed:
            return f"class changed since save: {_names(changed)} of {name} differs (source digest)"
        return ""
    digest = described.get("source_digest")
    if digest and source_digest(subject.skeleton) not in (None, digest):
        return f"class changed since save: {name} differs (source digest)"
    return ""


def _changed_arguments(subject: ModelSubject) -> str:
    """Which hyperparameters of the config are not the recorded ones."""
    record = subject.checkpoint.record
    if record is None or record.model is None:
        return ""
    then = ModelSpec.from_json(record.model, str(subject.checkpoint.path)).to_json().get("args", {})
    now = subject.config.model.to_json().get("args", {})
    if "factory" in record.model or subject.config.model.is_factory:
        return ""
    changed = list(_different("", then, now))
    return f"config changed since save: {', '.join(changed[:4])}" if changed else ""


def _different(path: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _different(f"{path}.{key}" if path else str(key), then.get(key), now.get(key))
    elif then != now:
        yield f"{path} {then!r} → {now!r}"


def _numerics(subject: ModelSubject, findings: Sequence[Finding]) -> str:
    found, recorded = subject.replayed, subject.behaviour
    if found is None or recorded is None or found.is_bitwise_equal or not found.is_deterministic:
        return ""
    worst = max((output.max_relative for output in found.outputs), default=0.0)
    moves = [f"{name} {old} → {new}" for name, (old, new) in found.environment.items()]
    where = f", {', '.join(moves[:3])}" if moves else ", the same environment"
    digests = "all digests match" if _recorded_digests(subject) else "there are no digests"
    if found.is_same:
        return f"numerics: {digests}{where}, {worst:.2g} relative, explained by {_precision(recorded.dtypes)}"
    module = f" in {found.first.module or 'the model itself'!r}" if found.first is not None else ""
    return f"changed numerics{module}: {digests}{where}, {worst:.2g} relative, more than rounding explains"


def _precision(dtypes: Mapping[str, int]) -> str:
    floats = {name: count for name, count in dtypes.items() if "float" in name}
    return max(floats, key=lambda name: floats[name]) if floats else "rounding"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown}, …" if len(names) > 3 else shown
