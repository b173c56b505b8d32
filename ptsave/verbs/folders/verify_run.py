"""verify on the folder of a training run: the checks of each checkpoint, and one verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from ptsave.core.address import Location
from ptsave.core.finding import Finding, Kind
from ptsave.core.verdict import Verdict
from ptsave.errors import UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.formats.run_folder import RunFile
from ptsave.verbs.checks import FILE_CHECKS
from ptsave.verbs.checks.subject import Asked, Subject
from ptsave.verbs.folders.runs import FORMAT
from ptsave.verbs.verify import Began, Times

READING_CHECKS = ("bytes", "finite")
"""Those that read every byte."""


def verify_run(
    files: Sequence[RunFile[Location]],
    asked: Asked,
    *,
    allow: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    began: Began,
) -> Verdict:
    """Every finding says which checkpoint it is about; `began` is told the name of each.

    None needs a model or a second checkpoint: the flags that give one are refused for a run.
    """
    findings: list[Finding] = []
    times = Times()
    damaged: set[str] = set()
    for file in files:
        began(file.path.name)
        for finding in _findings(file, asked, allow, progress, times.began):
            if (finding.check, finding.level) == ("bytes", "fail"):
                damaged.add(file.path.name)
            where = f"{file.path.name}: {finding.where}" if finding.where else file.path.name
            findings.append(replace(finding, where=where))
    return Verdict(tuple(findings), _what_resumes(files, damaged), seconds=times.ended())


def total_bytes(files: Sequence[RunFile[Location]], asked: Asked) -> int:
    """How many bytes `verify_run` reads at most, for a progress bar."""
    return sum(file.num_bytes for file in files) * sum(name in asked.names for name in READING_CHECKS)


def facts(
    folder: Location, files: Sequence[RunFile[Location]], seconds: float
) -> dict[str, str | int | float]:
    """What was verified, for a report."""
    num_bytes = sum(file.num_bytes for file in files)
    return {
        "path": str(folder),
        "format": FORMAT,
        "checkpoints": len(files),
        "bytes": num_bytes,
        "seconds": seconds,
    }


def _findings(
    file: RunFile[Location],
    asked: Asked,
    allow: Sequence[str],
    progress: Callable[[int], None] | None,
    began: Began,
) -> Iterator[Finding]:
    if file.problem:
        yield Finding("bytes", "fail", "", Kind.UNREADABLE, facts={"why": file.problem})
        return
    try:
        with open_checkpoint(file.path) as checkpoint:
            subject = Subject(checkpoint, None, asked, allow, progress)
            for name, check in FILE_CHECKS.items():
                if name in asked.names and name != "against":
                    began(name)
                    yield from check(subject)
            checkpoint.check_unchanged()
    except UnreadableError as error:
        yield Finding("bytes", "fail", "", Kind.UNREADABLE, facts={"why": error.what})


def _what_resumes(files: Sequence[RunFile[Location]], damaged: Collection[str]) -> str:
    """Which checkpoint a training would go on from, where it is not the newest one."""
    good = [file for file in files if file.path.name not in damaged]
    if not good and len(files) == 1:
        return "the only checkpoint is damaged: a training cannot go on from it"
    if not good:
        return f"all {len(files)} checkpoints are damaged: a training cannot go on from any"
    if good[-1] is files[-1]:
        return ""
    number = f"{len(damaged)} of {len(files)} checkpoints {'is' if len(damaged) == 1 else 'are'} damaged"
    return f"{number}; a training would go on from {good[-1].path.name}"
