"""verify: run checks on a checkpoint, and give a verdict.

A check is one function that takes a Subject and yields Findings; the first line of its docstring is
its line in `--list-checks`. The checks here need the file alone; those that need a live model are in
`models.verify.checks`, and the command line puts the two tables together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from ptsave.config.toml import Tolerance
from ptsave.core.cause import damage, difference, first_names, resumption
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.global_names import WORDS, kind_of
from ptsave.core.names import hint_for, matches
from ptsave.core.parts.placeholders import placeholders
from ptsave.core.parts.select import Content, comparable
from ptsave.core.parts.training import dotted, find_parts
from ptsave.core.values.tolerances import tolerance
from ptsave.core.verdict import Counted, Finding, Verdict, places
from ptsave.errors import UsageError
from ptsave.formats.kinds.quantized import is_quantized
from ptsave.formats.writers import BY_NAME
from ptsave.verbs.audit import audit
from ptsave.verbs.diff import Diff, belonging_to_tensors, describe, diff_contents
from ptsave.verbs.resume import has_training_state
from ptsave.verbs.resume import resume as find_resumable
from ptsave.verbs.stats import non_finite


@dataclass(frozen=True)
class Asked:
    """What a user asks of verify."""

    names: Sequence[str]
    """The checks to run."""
    by_name: bool = False
    """Whether the user named them: then each says so where there is nothing to check."""
    config: Path | None = None
    trusted: Sequence[str] = ()
    """Globs of what may be imported of what the record names."""
    other: Path | None = None
    """A second checkpoint."""
    other_config: Path | None = None
    """A config whose fresh model stands in for a second checkpoint."""
    through: Sequence[str] = ()
    """Formats that `roundtrip` goes through."""
    is_close: bool = False
    """Whether `against` accepts values within a tolerance."""
    records: bool = False
    """Whether today's behaviour is written into the record of what passes."""
    given: Sequence[str] = ()
    """The flags of the command line, spelled in full."""
    infinite: Sequence[str] = ()
    """Globs of the tensors in which `finite` accepts infinities."""

    @property
    def has_model(self) -> bool:
        return self.config is not None or bool(self.trusted)

    @property
    def has_other(self) -> bool:
        return self.other is not None or self.other_config is not None

    @property
    def about_one(self) -> list[str]:
        """The flags among those given that are about one checkpoint, and so not about a run."""
        return [
            flag for flag in self.given if flag not in (*ALWAYS, "--checks", "--allow", "--allow-infinite")
        ]


@dataclass(frozen=True)
class Subject:
    """What the checks of a file look at."""

    checkpoint: Checkpoint
    other: Checkpoint | None = None
    asked: Asked = Asked(())
    allow: Sequence[str] = ()
    """Globs of the dotted names that `safe` accepts."""
    progress: Callable[[int], None] | None = None
    tolerance: Tolerance | None = None
    """The config's own."""
    parameters: Callable[[], Mapping[str, tuple[int, ...]]] | None = None
    """Names and shapes of the architecture's parameters in its order, where there is a config."""
    select: str | None = None
    """The key of the model's state dict, where the user named it."""
    shared: Checkpoint | None = None
    """What `checkpoint` is one rank's share of."""

    @property
    def whole(self) -> Checkpoint:
        """The checkpoint with the tensors of all ranks."""
        return self.shared or self.checkpoint

    @cached_property
    def compared(self) -> tuple[Content, Content]:
        """What of the checkpoint and of the other one is held side by side.

        Raises: UsageError, AmbiguousError.
        """
        assert self.other is not None
        is_of_model = self.asked.other_config is not None
        return comparable(self.checkpoint, self.other, is_of_model, self.select)

    @property
    def is_partly_compared(self) -> bool:
        return any(side.num_left_out for side in self.compared)


Began = Callable[[str], None]
Check = Callable[[Subject], Iterator[Finding]]

MODEL_CHECKS = ("keys", "behaviour", "roundtrip")
"""The checks that `models.verify.checks` alone has: to name them takes no torch."""

RECORD = "--record"
ALWAYS = ("--json", "--quiet", "--verbose", "--report", "--strict")
"""The flags that say what is done with any verdict."""
OF_LIST_CHECKS = ("--list-checks", "--json", "--quiet", "--verbose")
USED_BY: Mapping[str, Sequence[str]] = {
    "--config": (*MODEL_CHECKS, "resume", "against", RECORD),
    "--trust-recorded": (*MODEL_CHECKS, "resume", "against", RECORD),
    "--set": (*MODEL_CHECKS, "resume", "against", RECORD),
    "--app-dir": (*MODEL_CHECKS, "resume", "against", RECORD),
    "--select": (*MODEL_CHECKS, "against", RECORD),
    "--device": ("behaviour", "roundtrip", "against", RECORD),
    "--through": ("roundtrip",),
    "--against": ("against",),
    "--close": ("against",),
    "--allow": ("safe",),
    "--allow-infinite": ("finite",),
}
"""Which checks, and whether `--record`, look at a flag. One that nothing would look at is refused."""
OF_A_MODEL = ("--select", "--device", "--through", "--app-dir", RECORD)
"""The flags that are about the model which a config or the record names."""


def bytes_(subject: Subject) -> Iterator[Finding]:
    """Container bounds, zip CRCs and every recorded digest; names the damaged tensor."""
    yield from audit(subject.checkpoint, subject.progress)


def safe(subject: Subject) -> Iterator[Finding]:
    """Nothing in the file would run; lists every name outside the known shapes."""
    uses = subject.checkpoint.globals.values()
    for use in uses:
        kind = kind_of(use.name)
        what = f"{use.used_for} {use.count}×; {WORDS[kind]}"
        is_exact = use.name in subject.allow
        if kind == "runs" and is_exact:
            yield Finding("safe", "warn", use.name, f"{what}, and allowed by its full name", kind)
        elif kind != "runs" and (is_exact or matches(use.name, subject.allow)):
            yield Finding("safe", "ok", use.name, f"{what}; allowed", kind)
        else:
            also = "; only its full name allows it" if matches(use.name, subject.allow) else ""
            yield Finding("safe", "fail", use.name, f"{what}; a plain unpickler imports it{also}", kind)
    yield from subject.checkpoint.beside
    if num_files := subject.checkpoint.num_code_files:
        message = f"carries a program ({num_files} files): torch runs it when it loads or calls the model"
        yield Finding("safe", "warn", "", message)
    elif not uses and not subject.checkpoint.beside:
        yield Finding("safe", "ok", "", "names nothing that could run")


def whole(subject: Subject) -> Iterator[Finding]:
    """Every storage, record and shard is a listed tensor or known bookkeeping; names what is left out.

    Empty tensors that stand in for weights are named too: the weights are left out of this file.
    """
    accounts = subject.checkpoint.accounts
    for left in accounts.left_out[:MAX_NAMED]:
        size = f" ({left.num_bytes} bytes)" if left.num_bytes else ""
        yield Finding("whole", "fail", left.name, f"is left out: {left.what}{size}")
    if (more := len(accounts.left_out) - MAX_NAMED) > 0:
        yield Finding("whole", "fail", "", f"{more} more are left out")
    stand_ins = placeholders(subject.whole.root)
    for name, why in islice(stand_ins.items(), MAX_NAMED):
        yield Finding("whole", "fail", name, f"{why}: the weight is in another file")
    if (more := len(stand_ins) - MAX_NAMED) > 0:
        yield Finding("whole", "fail", "", f"{more} more weights are in other files")
    if accounts.transient:
        first = accounts.transient[0].name
        one = f"buffer ({first}) is not in its module's state dict, which makes it again"
        many = f"buffers (such as {first}) are not in their modules' state dicts, which make them again"
        yield Finding("whole", "ok", "", Counted(len(accounts.transient), one, many))
    if not accounts.left_out and not stand_ins:
        parts = f", and all {accounts.num_parts} storages are accounted for" if accounts.num_parts else ""
        num_tensors = len(subject.checkpoint.tensors)
        yield Finding(
            "whole",
            "ok",
            "",
            Counted(num_tensors, f"tensor is all there is{parts}", f"tensors are all there is{parts}"),
        )


MAX_NAMED = 100
"""How many of the things that are left out are named one by one."""


def finite(subject: Subject) -> Iterator[Finding]:
    """No NaN and no infinity in any floating-point tensor, but for a training's single numbers."""
    looked = bad = 0
    spared = []
    judged = _holders_of_weights(subject.whole)
    for name, nans, infinities in non_finite(subject.checkpoint, progress=subject.progress):
        is_allowed = not nans and matches(name, subject.asked.infinite)
        is_number = not subject.checkpoint.tensors[name].shape and not name.startswith(judged)
        if (nans or infinities) and (is_allowed or is_number):
            spared.append(name)
            continue
        looked += 1
        if nans or infinities:
            bad += 1
            yield Finding("finite", "fail", name, f"{nans} NaN, {infinities} infinite")
    for name, leaf in subject.checkpoint.data.items():
        scale = leaf.state.get("scale", 1.0) if is_quantized(leaf) else 1.0
        if not math.isfinite(scale):
            bad += 1
            yield Finding("finite", "fail", name, f"its scale is {scale}")
    for name in spared:
        what = "infinite where that is allowed" if matches(name, subject.asked.infinite) else _NO_WEIGHT
        yield Finding("finite", "ok", name, what)
    if not looked and not bad:
        yield Finding("finite", "skipped", "", "there is no floating-point tensor")
    elif not bad:
        one, many = (f"floating-point {noun}, every element finite" for noun in ("tensor", "tensors"))
        yield Finding("finite", "ok", "", Counted(looked, one, many))


_NO_WEIGHT = "not finite, and neither a weight nor an optimizer's state"


def _holders_of_weights(checkpoint: Checkpoint) -> tuple[str, ...]:
    """How the names of weights and of optimizers' states begin; all names where no part is one of these."""
    parts = find_parts(checkpoint.root)
    places = [*parts.models, *parts.optimizers]
    return tuple(f"{dotted(place)}." if place else "" for place in places) or ("",)


def resume(subject: Subject) -> Iterator[Finding]:
    """Optimizer state covers the parameters in order and shape; what is missing is listed."""
    if subject.asked.by_name or has_training_state(subject.checkpoint):
        yield from find_resumable(subject.checkpoint, subject.parameters() if subject.parameters else None)


def against(subject: Subject) -> Iterator[Finding]:
    """The same tensors and the same behaviour as OTHER, whatever the two formats."""
    if subject.other is None:
        yield Finding("against", "skipped", "", "needs a second checkpoint: --against OTHER")
        return
    one, other = subject.compared
    own = subject.tolerance or Tolerance()
    allowed = partial(tolerance, rtol=own.rtol, atol=own.atol) if subject.asked.is_close else None
    found = diff_contents(one, other, progress=subject.progress, tolerance=allowed)
    for name in found.only_in_a:
        yield Finding("against", "fail", name, f"is not in {subject.other.path}")
    for name in found.only_in_b:
        yield Finding("against", "fail", name, f"is only in {subject.other.path}")
    close = [tensor for tensor in found.different if allowed is not None and tensor.is_close]
    for tensor in found.different:
        if tensor not in close:
            yield Finding("against", "fail", tensor.name, describe(tensor))
    for names in found.ties_broken:
        yield Finding("against", "warn", names[0], f"shares memory with {', '.join(names[1:])} here only")
    for names in found.ties_new:
        yield Finding("against", "warn", names[0], f"shares memory with {', '.join(names[1:])} there only")
    if close:
        such = f"(such as {close[0].name!r}: {describe(close[0])})"
        of, verb = f"of {len(found.tensors)} tensors", "is" if len(close) == 1 else "are"
        yield Finding("against", "ok", "", f"{len(close)} {of} {such} {verb} within the tolerance")
    yield from _against_data(
        found, belonging_to_tensors(one) | belonging_to_tensors(other), subject.other.path
    )
    if subject.is_partly_compared:
        left_out = one.num_left_out, other.num_left_out
        message = f"only the models: {left_out[0]} tensors here and {left_out[1]} there were not compared"
        yield Finding("against", "skipped", "", message)
    if not found.tensors and not found.only_in_a and not found.only_in_b:
        yield Finding("against", "ok", "", "neither holds a tensor")
    if found.tensors and not found.different and not found.only_in_a and not found.only_in_b:
        message = Counted(len(found.tensors), "tensor is bitwise equal", "tensors are bitwise equal")
        yield Finding("against", "ok", "", message)


def _against_data(found: Diff, of_tensors: set[str], there: Path) -> Iterator[Finding]:
    """What differs beside the tensors: a part of one (a scale) is a failure, a training's number is not."""
    differing = {
        **{change.path: "is another there" for change in found.data_changed},
        **dict.fromkeys(found.data_only_in_a, f"is not in {there}"),
        **dict.fromkeys(found.data_only_in_b, f"is only in {there}"),
    }
    for path, words in differing.items():
        if path in of_tensors:
            yield Finding("against", "fail", path, words)
    others = [path for path in differing if path not in of_tensors]
    if others:
        verb = "values that are no tensors differ or are in one alone"
        count = Counted(len(others), "value that is no tensor differs or is in one alone", verb)
        yield Finding("against", "warn", "", f"{count}: {first_names(others)}")


FILE_CHECKS: dict[str, Check] = {
    "bytes": bytes_,
    "safe": safe,
    "whole": whole,
    "finite": finite,
    "resume": resume,
    "against": against,
}

SHARED_CHECKS = ("bytes", "finite")
"""The checks that look at one tensor at a time, so that several processes can share the tensors."""


def choose(
    checks: str | None,
    *,
    config: Path | None = None,
    trusted: Sequence[str] = (),
    against: Path | None = None,
    close: bool = False,
    through: str | None = None,
    record: bool = False,
    given: Sequence[str] = (),
    infinite: Sequence[str] = (),
) -> Asked:
    """What the flags ask for: without `--checks`, all, and `against` where there is a second checkpoint.

    OTHER may be a config: without `-c`, it is that of the checkpoint, too. `given`: the flags of the command
    line, spelled in full.

    Raises: UsageError with the nearest name, where flags do not go together, for one that what was asked for
    would not look at, or for a check that lacks what it needs.
    """
    known = [*FILE_CHECKS, *MODEL_CHECKS]
    names = [name for name in known if name != "against" or against is not None]
    other_config = against if against is not None and against.suffix == ".toml" else None
    if config is not None and trusted:
        raise UsageError("--config and --trust-recorded both name the class", "", "give one of the two")
    if config is None and not trusted:
        config = other_config
    asked = Asked(
        names if checks is None else _listed(checks, known, "--checks", "checks"),
        checks is not None,
        config,
        trusted,
        against if other_config is None else None,
        other_config,
        [] if through is None else _listed(through, list(BY_NAME), "--through", "formats"),
        close,
        record,
        given,
        infinite,
    )
    _refuse_unused(asked)
    return asked


def _refuse_unused(asked: Asked) -> None:
    """Insist that something looks at every flag that was given.

    Raises: UsageError.
    """
    users = {*asked.names, *([RECORD] if asked.records else [])}
    for flag in asked.given:
        if flag == "--set" and asked.config is None:
            raise UsageError("--set overrides a value of a config", "", "name one with --config CONFIG")
        is_for_other = flag == "--select" and asked.has_other
        if flag in OF_A_MODEL and not asked.has_model and not is_for_other:
            raise UsageError(f"{flag} is about the model", "", "name its config with --config CONFIG")
        if flag == "--close" and not asked.has_other:
            hint = "name a second checkpoint with --against OTHER"
            raise UsageError("--close is for a comparison", "", hint)
        if flag in USED_BY and users.isdisjoint(USED_BY[flag]):
            checks = " or ".join(name for name in USED_BY[flag] if name != RECORD)
            hint = f"leave it out, or add {checks} to --checks"
            raise UsageError(f"{flag} would not be used by --checks {','.join(asked.names)}", "", hint)
    if not asked.by_name:
        return
    if "against" in asked.names and not asked.has_other:
        hint = "name it with --against OTHER"
        raise UsageError("the check against needs a second checkpoint", "--checks", hint)
    for name in MODEL_CHECKS:
        if name in asked.names and not asked.has_model:
            raise UsageError(
                f"the check {name} needs a model", "--checks", "name its config with --config CONFIG"
            )


def _listed(text: str, known: Sequence[str], flag: str, kind: str) -> list[str]:
    """The names in a comma-separated list, each of them known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown name {name!r}", flag, hint_for(name, known, kind))
    if not names:
        raise UsageError("names nothing", flag, f"known {kind}: {', '.join(known)}")
    return names


def total_bytes(names: Sequence[str], checkpoint: Checkpoint, other: Checkpoint | None) -> int:
    """How many bytes the checks of the file will read, for a progress bar."""
    size = sum(entry.num_bytes for entry in checkpoint.tensors.values())
    passes = sum(name in names for name in ("bytes", "finite", "against"))
    beside = sum(entry.num_bytes for entry in other.tensors.values()) if other is not None else 0
    return size * passes + beside


def verify_file(subject: Subject, began: Began) -> list[Finding]:
    """What the checks find that need the file alone; `began` is told the name of each."""
    findings: list[Finding] = []
    for name, check in FILE_CHECKS.items():
        if name in subject.asked.names:
            began(name)
            findings += check(subject)
    return findings


def without_model(subject: Subject, found: Sequence[Finding]) -> Verdict:
    """The verdict without a model: what needs one was skipped, not passed."""
    left_out = [name for name in MODEL_CHECKS if name in subject.asked.names]
    skipped = [Finding(name, "skipped", "", "needs a config: -c CONFIG") for name in left_out]
    checkpoint, other = subject.checkpoint, subject.other
    bad = [name for name in places(found, "bytes", "fail") if name in checkpoint.tensors]
    cause = damage(bad, len(checkpoint.tensors), "checksum") if bad else ""
    if not bad and other is not None:
        cause = difference(found, *subject.compared, other.path)
    cause = cause or resumption(found)
    return Verdict((*found, *skipped), cause)


def facts(
    checkpoint: Checkpoint, model: str | None, device: str, seconds: float
) -> dict[str, str | int | float]:
    """What was verified, for a report: names and plain values in the order in which to show them."""
    tensors = checkpoint.tensors.values()
    known: dict[str, str | int | float] = {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "tensors": len(tensors),
        "bytes": sum({entry.view: entry.num_bytes for entry in tensors}.values()),
        "seconds": seconds,
    }
    if model is not None:
        known |= {"class": model, "device": device}
    environment = checkpoint.record.environment if checkpoint.record is not None else None
    return known | {f"saved with {name}": text for name, text in (environment or {}).items()}
