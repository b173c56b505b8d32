"""The check `bytes`: the file is what was written."""

from __future__ import annotations

from collections.abc import Iterator

from ptsave.core.finding import Finding, Kind
from ptsave.formats.kinds.objects import why_outside
from ptsave.formats.kinds.sparse import why_not_made
from ptsave.verbs.audit import audit
from ptsave.verbs.checks.subject import Subject


def bytes_(subject: Subject) -> Iterator[Finding]:
    """Container bounds, zip CRCs and every recorded digest; names the damaged tensor."""
    counts = subject.counts if "finite" in subject.asked.names else None
    signed = subject.signed_algorithms if "signature" in subject.asked.names else ()
    found = subject.signed_digests if signed else None
    yield from audit(subject.checkpoint, subject.progress, counts, signed, found)
    for where, leaf in subject.checkpoint.data.items():
        if why := why_not_made(leaf) or why_outside(leaf):
            yield Finding("bytes", "fail", where, Kind.NOT_LOADED, facts={"loader": "torch", "why": why})
