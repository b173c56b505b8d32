"""What the checks of a file look at, and what a user asks of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ptsave.config.inputs import InputsSpec
from ptsave.config.lock import LockFile, Pin
from ptsave.config.toml import Tolerance
from ptsave.core.address import Location
from ptsave.core.behaviour import Sample
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.parts.select import Content, comparable
from ptsave.sign.signer import signed_digest
from ptsave.sign.trusted import Authentic, SignedBy, authenticated
from ptsave.verbs.audit import Found, digests_of
from ptsave.verbs.signing import algorithms_of
from ptsave.verbs.stats import Counts

RunPt2 = Callable[[Checkpoint, InputsSpec], Mapping[str, Sample]]


@dataclass(frozen=True)
class Asked:
    """What a user asks of verify."""

    names: Sequence[str]
    """The checks to run."""
    by_name: bool = False
    """Whether the user named them: then each says so where there is nothing to check."""
    config: Location | None = None
    trusted: Sequence[str] = ()
    """Globs of what may be imported of what the record names."""
    other: Location | None = None
    """A second checkpoint."""
    other_config: Location | None = None
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
    signed_by: SignedBy | None = None
    """Whose signatures it must have."""
    lock: LockFile | None = None
    """What it must be, where that has a pin of it."""
    pin_into: Location | None = None
    """The lock that takes a pin of what passes."""

    @property
    def has_model(self) -> bool:
        return self.config is not None or bool(self.trusted)

    @property
    def has_other(self) -> bool:
        return self.other is not None or self.other_config is not None


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
    run_pt2: RunPt2 | None = None
    """What runs a `.pt2` on inputs, where torch is at hand."""
    counts: Counts = field(default_factory=dict)
    """The NaNs and infinities that were counted while another check read the tensors."""

    signed_digests: Found = field(default_factory=dict)
    """The digests that signatures and pins need, as far as the tensors were read for them."""

    @cached_property
    def authentic(self) -> Authentic:
        """What the keys that the user trusts have signed; nothing where no signature was asked for."""
        return (
            Authentic() if self.asked.signed_by is None else authenticated(self.whole, self.asked.signed_by)
        )

    @cached_property
    def pins(self) -> list[Pin]:
        """What it must be, as the lock says."""
        return [] if self.asked.lock is None else self.asked.lock.pins_of(self.whole)

    @cached_property
    def pin_algorithm(self) -> str:
        """Whose digests a new pin has: those of a signature or the record, where they prove something."""
        record = self.whole.record
        recorded = record.digests.algorithm if record is not None and record.digests is not None else None
        return next(iter(self.authentic.algorithms), signed_digest(None, recorded))

    @property
    def signed_algorithms(self) -> list[str]:
        """The digests that signatures and pins need."""
        new = [self.pin_algorithm] if self.asked.pin_into is not None else []
        return list(dict.fromkeys((*self.authentic.algorithms, *algorithms_of(self.pins), *new)))

    def digests(self) -> Found:
        """Those digests of all tensors, which are read for them now if no check has read them yet."""
        if not self.signed_digests:
            self.signed_digests.update(
                digests_of(self.checkpoint.tensors, self.signed_algorithms, self.progress)
            )
        return self.signed_digests

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
