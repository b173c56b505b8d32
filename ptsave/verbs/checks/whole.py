"""The check `whole`: all that the file holds is a listed tensor, or known bookkeeping."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ptsave.core.finding import Finding, Kind
from ptsave.core.parts.placeholders import placeholders
from ptsave.verbs.checks.subject import Subject

MAX_NAMED = 100
"""How many of the things that are left out are named one by one."""


def whole(subject: Subject) -> Iterator[Finding]:
    """Every storage, record and shard is a listed tensor or known bookkeeping; names what is left out.

    Empty tensors that stand in for weights are named too: the weights are left out of this file.
    """
    accounts = subject.checkpoint.accounts
    for left in accounts.left_out[:MAX_NAMED]:
        size = f" ({left.num_bytes} bytes)" if left.num_bytes else ""
        yield Finding("whole", "fail", left.name, Kind.LEFT_OUT, facts={"what": f"{left.what}{size}"})
    if (more := len(accounts.left_out) - MAX_NAMED) > 0:
        yield Finding("whole", "fail", "", Kind.MORE_LEFT_OUT, more)
    stand_ins = placeholders(subject.whole.root)
    for name, why in islice(stand_ins.items(), MAX_NAMED):
        yield Finding("whole", "fail", name, Kind.ELSEWHERE, facts={"why": why})
    if (more := len(stand_ins) - MAX_NAMED) > 0:
        yield Finding("whole", "fail", "", Kind.MORE_ELSEWHERE, more)
    if accounts.transient:
        first = (accounts.transient[0].name,)
        yield Finding("whole", "ok", "", Kind.TRANSIENT, len(accounts.transient), first)
    if not accounts.left_out and not stand_ins:
        kind = Kind.ALL_ACCOUNTED if accounts.num_parts else Kind.ALL_THERE
        facts = {"num_storages": accounts.num_parts}
        yield Finding("whole", "ok", "", kind, len(subject.checkpoint.tensors), facts=facts)
