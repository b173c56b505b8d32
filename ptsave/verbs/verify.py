"""verify: choose the checks that the flags ask for, run those of the file, and give a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ptsave.config.lock import FILE_NAME
from ptsave.config.toml import Config, load_config
from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, places
from ptsave.core.names import hint_for
from ptsave.core.verdict import Verdict
from ptsave.errors import Option, Text, UsageError
from ptsave.formats.writers import BY_NAME
from ptsave.sign.statement import recorded_root
from ptsave.sign.trusted import SignedBy
from ptsave.verbs.checks import FILE_CHECKS
from ptsave.verbs.checks.cause import damage, difference, lost, program_cause, resumption, unsigned
from ptsave.verbs.checks.subject import Asked, Subject
from ptsave.verbs.request import option
from ptsave.verbs.signing import lock_for

Began = Callable[[str], None]

NEED_A_MODEL = ("keys", "behaviour", "roundtrip")
"""The checks that `models.verify.checks` alone has: to name them takes no torch."""

RECORD = "--record"
CONFIG = Option("config", "CONFIG")
ALWAYS = ("--json", "--quiet", "--verbose", "--report", "--strict", "--recursive")
"""The flags that say what is done with any verdict."""
OF_LIST_CHECKS = ("--list-checks", "--json", "--quiet", "--verbose")
USED_BY: Mapping[str, Sequence[str]] = {
    "--config": (*NEED_A_MODEL, "resume", "against", RECORD),
    "--trust-recorded": (*NEED_A_MODEL, "resume", "against", RECORD),
    "--set": (*NEED_A_MODEL, "resume", "against", RECORD),
    "--app-dir": (*NEED_A_MODEL, "resume", "against", RECORD),
    "--select": (*NEED_A_MODEL, "against", RECORD),
    "--device": ("behaviour", "roundtrip", "against", RECORD),
    "--through": ("roundtrip",),
    "--against": ("against",),
    "--close": ("against",),
    "--allow": ("safe",),
    "--threads": ("bytes", *NEED_A_MODEL, RECORD),
    "--allow-infinite": ("finite",),
    "--signed-by": ("signature",),
    "--signature": ("signature",),
    "--identity": ("signature",),
    "--issuer": ("signature",),
    "--rename": ("signature",),
    "--only": ("signature",),
    "--lock": ("signature",),
    "--pin": ("signature",),
}
"""Which checks, and whether `--record`, look at a flag. One that nothing would look at is refused."""
OF_A_MODEL = ("--select", "--device", "--through", "--app-dir", RECORD)
"""The flags that are about the model which a config or the record names."""


OF_SIGNATURES = ("--signature", "--rename", "--only", "--identity", "--issuer")
CALLED = {
    **dict.fromkeys(("nan", "inf", "nans"), "finite"),
    **dict.fromkeys(("crc", "hash", "digest", "checksum", "integrity"), "bytes"),
    **dict.fromkeys(("pickle", "security", "malware", "scan"), "safe"),
    **dict.fromkeys(("names", "shapes", "dtypes"), "keys"),
    **dict.fromkeys(("output", "outputs", "forward", "inference"), "behaviour"),
}
"""What else people call a check."""
SIGNED_BY = Option("signed_by", "KEY")


def choose(
    checks: str | None,
    *,
    config: Location | None = None,
    trusted: Sequence[str] = (),
    against: Location | None = None,
    close: bool = False,
    through: str | None = None,
    record: bool = False,
    given: Sequence[str] = (),
    infinite: Sequence[str] = (),
    signed_by: Callable[[Config | None], SignedBy | None] = lambda config: None,
    overrides: Sequence[str] = (),
    pin: bool = False,
    lock: Location | None = None,
) -> Asked:
    """What the flags ask for: without `--checks`, all, and `against` where there is a second checkpoint.

    OTHER may be a config: without `-c`, it is that of the checkpoint, too. `given`: the flags of the command
    line, spelled in full. `signed_by`: whose signatures are asked for, by the flags and the config, which has
    the `overrides`.

    Raises: UsageError with the nearest name, where flags do not go together, for one that what was asked for
    would not look at, or for a check that lacks what it needs.
    """
    known = [*FILE_CHECKS, *NEED_A_MODEL]
    names = [name for name in known if name != "against" or against is not None]
    other_config = against if against is not None and against.suffix == ".toml" else None
    if config is not None and trusted:
        both = (Option("config"), " and ", Option("trust_recorded"), " both name the class")
        raise UsageError(both, "", "give one of the two")
    if config is None and not trusted:
        config = other_config
    asked = Asked(
        names if checks is None else _listed(checks, known, Option("checks"), "checks"),
        checks is not None,
        config,
        trusted,
        against if other_config is None else None,
        other_config,
        [] if through is None else _listed(through, list(BY_NAME), Option("through"), "formats"),
        close,
        record,
        given,
        infinite,
        signed_by(None if config is None else load_config(config, overrides)),
        None if pin else lock_for(lock),
        (lock or Path(FILE_NAME)) if pin else None,
    )
    _refuse_unused(asked)
    return asked


def about_one(asked: Asked) -> list[str]:
    """The flags among those given that are about one checkpoint, and so not about a run."""
    of_each = (
        *ALWAYS,
        "--checks",
        "--allow",
        "--allow-infinite",
        "--signed-by",
        "--identity",
        "--issuer",
        "--lock",
    )
    return [flag for flag in asked.given if flag not in of_each]


def _refuse_unused(asked: Asked) -> None:
    """Insist that something looks at every flag that was given.

    Raises: UsageError.
    """
    users = {*asked.names, *([RECORD] if asked.records else [])}
    for flag in asked.given:
        if flag == "--set" and asked.config is None:
            raise UsageError((option(flag), " overrides a value of a config"), "", ("name one with ", CONFIG))
        is_for_other = flag == "--select" and asked.has_other
        if flag in OF_A_MODEL and not asked.has_model and not is_for_other:
            raise UsageError((option(flag), " is about the model"), "", ("name its config with ", CONFIG))
        if flag == "--close" and not asked.has_other:
            hint: Text = ("name a second checkpoint with ", Option("against", "OTHER"))
            raise UsageError((option(flag), " is for a comparison"), "", hint)
        if flag in OF_SIGNATURES and asked.signed_by is None:
            hint = ("name a key with ", SIGNED_BY)
            raise UsageError((option(flag), " is about signatures"), "", hint)
        says_whose = flag == "--config" and asked.signed_by is not None and "--signed-by" not in asked.given
        if says_whose and "signature" in users:
            continue
        if flag in USED_BY and users.isdisjoint(USED_BY[flag]):
            checks = " or ".join(name for name in USED_BY[flag] if name != RECORD)
            hint = (f"leave it out, or add {checks} to ", Option("checks"))
            by = Option("checks", ",".join(asked.names))
            raise UsageError((option(flag), " would not be used by ", by), "", hint)
    if asked.records and asked.pin_into is not None:
        what = (option(RECORD), " changes what ", option("--pin"), " approves")
        raise UsageError(what, "", "record first, then pin")
    if not asked.by_name:
        return
    if "against" in asked.names and not asked.has_other:
        hint = ("name it with ", Option("against", "OTHER"))
        raise UsageError("the check against needs a second checkpoint", Option("checks"), hint)
    has_pin = asked.lock is not None or asked.pin_into is not None
    if "signature" in asked.names and asked.signed_by is None and not has_pin:
        hint = ("name it with ", SIGNED_BY)
        raise UsageError("the check signature needs a key", Option("checks"), hint)
    for name in NEED_A_MODEL:
        if name in asked.names and not asked.has_model:
            hint = ("name its config with ", CONFIG)
            raise UsageError(f"the check {name} needs a model", Option("checks"), hint)


def _listed(text: str, known: Sequence[str], where: Option, kind: str) -> list[str]:
    """The names in a comma-separated list, each of them known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            meant = CALLED.get(name)
            hint = f"did you mean {meant!r}?" if meant in known else hint_for(name, known, kind)
            raise UsageError(f"unknown name {name!r}", where, hint)
    if not names:
        raise UsageError("the list is empty", where, f"known {kind}: {', '.join(known)}")
    return names


def total_bytes(names: Sequence[str], checkpoint: Checkpoint, other: Checkpoint | None) -> int:
    """How many bytes the checks of the file will read, for a progress bar."""
    size = sum(entry.num_bytes for entry in checkpoint.tensors.values())
    passes = sum(name in names for name in ("bytes", "finite", "against"))
    passes += "signature" in names and "bytes" not in names
    beside = sum(entry.num_bytes for entry in other.tensors.values()) if other is not None else 0
    return size * passes + beside


class Times:
    """How long each check takes: from its beginning to that of the next one, or to the end."""

    def __init__(self, told: Began = lambda check: None) -> None:
        """`told` is told the name of each."""
        self._told = told
        self._running: tuple[str, float] | None = None
        self._seconds: dict[str, float] = {}

    def began(self, check: str) -> None:
        """Note that `check` begins, for the first time or again."""
        self.ended()
        self._told(check)
        self._running = check, time.monotonic()

    def ended(self) -> Mapping[str, float]:
        """Note that no further check is running. Returns the seconds of each."""
        if self._running is not None:
            check, start = self._running
            self._seconds[check] = self._seconds.get(check, 0.0) + time.monotonic() - start
            self._running = None
        return self._seconds


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
    left_out = [name for name in NEED_A_MODEL if name in subject.asked.names]
    skipped = [Finding(name, "skipped", "", Kind.NEEDS_CONFIG) for name in left_out]
    checkpoint, other = subject.checkpoint, subject.other
    bad = [name for name in places(found, "bytes", "fail") if name in checkpoint.tensors]
    cause = damage(bad, len(checkpoint.tensors), "checksum") if bad else ""
    if not bad and other is not None:
        cause = difference(found, *subject.compared, other.path)
    cause = cause or unsigned(found) or program_cause(found, checkpoint) or lost(found) or resumption(found)
    return Verdict((*found, *skipped), cause)


def proven_root(checkpoint: Checkpoint, findings: Sequence[Finding]) -> str:
    """One hash of all tensors, where `findings` say that the digests in the record are right; else empty."""
    found = [finding for finding in findings if finding.check == "bytes"]
    is_proven = bool(found) and all(finding.level == "ok" for finding in found)
    return recorded_root(checkpoint.tensors.values(), checkpoint.record) if is_proven else ""


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
