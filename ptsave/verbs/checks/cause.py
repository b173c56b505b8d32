"""The words in which a verdict says what happened, where the files alone show it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, failed_of, first_names, places
from ptsave.core.parts.select import Content


def damage(bad: Sequence[str], total: int, checksum: str) -> str:
    """That some of `total` tensors are not what was written."""
    verb, its = ("does", "its") if len(bad) == 1 else ("do", "their")
    return f"damaged: {len(bad)} of {total} tensors {verb} not match {its} {checksum} ({first_names(bad)})"


def lost(findings: Sequence[Finding]) -> str:
    """That tensors which the record knows are gone; empty where none is."""
    gone = failed_of(findings, Kind.NOT_IN_FILE)
    noun = "tensor that was recorded is" if len(gone) == 1 else "tensors that were recorded are"
    return f"lost: {len(gone)} {noun} not in the file ({first_names(gone)})" if gone else ""


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


def program_cause(findings: Sequence[Finding], checkpoint: Checkpoint) -> str:
    """What explains that a program is not what was recorded; empty where it is."""
    failed = [finding for finding in findings if finding.check == "program" and finding.level == "fail"]
    nodes = [f for f in failed if f.kind in (Kind.OTHER_NODE, Kind.NEW_NODE, Kind.GONE_NODE)]
    if nodes:
        first = nodes[0]
        operator = first.facts.get("operator")
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        return f"another graph: {first.where}{f' ({operator})' if operator else ''}{more}"
    if not failed:
        return ""
    if not is_same_runtime(checkpoint):
        return f"{another_runtime(checkpoint)}, {failed[0]}"
    return f"changed numerics: weights, graph and runtime are those that were recorded; {failed[0]}"


def is_same_runtime(checkpoint: Checkpoint) -> bool:
    """Whether what runs a program here is what ran it when it was exported, as far as its record tells."""
    program = checkpoint.record.program if checkpoint.record is not None else None
    return program is None or program.get("runtime") == runtime_version(checkpoint.format)


def another_runtime(checkpoint: Checkpoint) -> str:
    """`another runtime: onnxruntime 1.31.0 → onnxruntime 1.32.0`."""
    program = (checkpoint.record.program if checkpoint.record is not None else None) or {}
    return f"another runtime: {program.get('runtime')} → {runtime_version(checkpoint.format)}"


def departure(findings: Sequence[Finding]) -> str:
    """Where a program that ran beside its model departs from it, in one line; empty where it does not."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if fails := [f for f in failed if f.kind in (Kind.PROGRAM_FAILS, Kind.PROGRAM_FAILS_AT)]:
        return fails[0].message
    outputs = [f.where for f in failed if f.kind in (Kind.OUTPUT_DIFFERS, Kind.OUTPUT_UNLIKE)]
    begins = ""
    for first in failed:
        if first.kind is Kind.PROGRAM_DEPARTS:
            begins = f" from {first.where!r} on ({first.facts['module']})"
        elif first.kind is Kind.PROGRAM_DEPARTS_BEFORE:
            begins = f", in the code of {first.facts['module']} before {first.facts['before']!r}"
        if begins:
            break
    verb = "differs" if len(outputs) == 1 else "differ"
    return f"the program computes otherwise: {first_names(outputs)} {verb}{begins}" if outputs else ""


def runtime_version(format: str) -> str:
    """`onnxruntime 1.32.0`: what runs the programs of a format here."""
    package = "onnxruntime" if format == "onnx" else "torch"
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def unsigned(findings: Sequence[Finding]) -> str:
    """Why no signature or pin holds that should; empty where one does, or none was asked for."""
    bad = [finding for finding in findings if (finding.check, finding.level) == ("signature", "fail")]
    if bad and bad[0].kind in (Kind.NOT_PINNED, Kind.NOT_IN_LOCK):
        return f"not what was approved: {bad[0]}"
    return f"not what was signed, or not by whom: {bad[0]}" if bad else ""
