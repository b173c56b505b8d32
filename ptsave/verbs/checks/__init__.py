"""The checks of `verify` that need the file alone, one file each; `models.verify` has those of a live model.

A check is one function that takes a Subject and yields Findings. The first line of its docstring is its line
in `--list-checks`. A new one is one file here and one line in FILE_CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ptsave.core.finding import Finding
from ptsave.verbs.checks.against import against
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.finite import finite
from ptsave.verbs.checks.program import program
from ptsave.verbs.checks.resume import resume
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.signature import signature
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.checks.whole import whole

Check = Callable[[Subject], Iterator[Finding]]

FILE_CHECKS: dict[str, Check] = {
    "bytes": bytes_,
    "safe": safe,
    "signature": signature,
    "whole": whole,
    "finite": finite,
    "resume": resume,
    "program": program,
    "against": against,
}

SHARED_CHECKS = ("bytes", "finite")
"""The checks that look at one tensor at a time, so that several processes can share the tensors."""
