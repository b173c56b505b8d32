"""The check `whole`: all that the file holds is a listed tensor, or known bookkeeping."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ptsave.core.parts.placeholders import placeholders
from ptsave.core.verdict import Counted, Finding
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
