"""The words in which a verdict says what happened, where the files alone show it."""

from __future__ import annotations

from collections.abc import Sequence

from ptsave.core.address import Location
from ptsave.core.finding import Finding, first_names, places
from ptsave.core.parts.select import Content


def damage(bad: Sequence[str], total: int, checksum: str) -> str:
    """That some of `total` tensors are not what was written."""
    verb, its = ("does", "its") if len(bad) == 1 else ("do", "their")
    return f"damaged: {len(bad)} of {total} tensors {verb} not match {its} {checksum} ({first_names(bad)})"


def difference(findings: Sequence[Finding], here: Content, there: Content, path: Location) -> str:
    """How the tensors differ from those of `path`, which `--against` names; empty where they do not."""
    known = here.tensors.keys() | there.tensors.keys()
    bad = [name for name in places(findings, "against", "fail") if name in known]
    if not bad:
        return ""
    verb = "differs" if len(bad) == 1 else "differ"
    return f"not the same weights as {path}: {len(bad)} of {len(known)} tensors {verb} ({first_names(bad)})"


def resumption(findings: Sequence[Finding]) -> str:
    """Why a training cannot go on as it was; empty where it can."""
    bad = [finding for finding in findings if (finding.check, finding.level) == ("resume", "fail")]
    if not bad:
        return ""
    return f"training state does not fit: {bad[0]}"
