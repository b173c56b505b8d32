"""The check `program`: an exported program computes today, in its own runtime, what its record says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptsave.config.recorded import told_by
from ptsave.core.behaviour import Behaviour, Sample
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.errors import UnreadableError
from ptsave.storage.files import InputFile
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.programs import onnx, pt2
from ptsave.verbs.programs.nodes import Nodes

CHECK = "program"
FORMATS = ("onnx", "pt2")
MAX_NODES = 100_000
"""Cap on the nodes that are compared with those that were exported."""


def program(subject: Subject) -> Iterator[Finding]:
    """An exported program has its nodes and, where this check is named, computes what was recorded."""
    checkpoint = subject.whole
    record = checkpoint.record
    if checkpoint.format not in FORMATS or record is None or record.program is None:
        if subject.asked.by_name:
            yield Finding(CHECK, "skipped", "", Kind.NO_PROGRAM_RECORD)
        return
    if why := _cannot_look(checkpoint):
        yield Finding(CHECK, "skipped", "", Kind.NO_RUNTIME, facts={"nodes": "", "why": why})
        return
    try:
        nodes = [*_nodes(_digests(checkpoint), record.program)]
    except UnreadableError:
        raise
    except Exception as error:  # what the onnx library raises has no common base
        yield Finding(CHECK, "fail", "", Kind.UNREADABLE, facts={"why": first_line(error)})
        return
    failed = [finding for finding in nodes if finding.level == "fail"]
    compared = {"nodes": "its nodes are those that were exported; " if nodes and not failed else ""}
    if not subject.asked.by_name:  # a runtime works for as long as the file has it work
        yield from failed or [Finding(CHECK, "skipped", "", Kind.PROGRAM_NOT_RUN, facts=compared)]
        return
    yield from failed
    told = told_by(checkpoint)
    if told.behaviour is None or told.behaviour_inputs is None:
        why = next((fault.what for fault in told.faults.values()), "there is none")
        yield Finding(CHECK, "fail", "record", Kind.UNREADABLE, facts={"why": why})
        return
    if told.behaviour_inputs.needs_files:
        yield Finding(CHECK, "skipped", "", Kind.INPUTS_IN_FILES)
        return
    if checkpoint.globals:
        yield Finding(CHECK, "skipped", "", Kind.PROGRAM_UNSAFE)
        return
    if why := cannot_run(checkpoint):
        yield Finding(CHECK, "skipped", "", Kind.NO_RUNTIME, facts={**compared, "why": why})
        return
    yield from [] if failed else nodes  # that they are the same is no proof where nothing runs
    try:
        found: Mapping[str, Sample]
        if subject.run_pt2 is not None and checkpoint.format == "pt2":
            found = subject.run_pt2(checkpoint, told.behaviour_inputs)
        else:
            assert isinstance(checkpoint.path, Path)
            found = onnx.run_onnx(checkpoint.path, told.behaviour_inputs, record.program)
    except UnreadableError:
        raise
    except Exception as error:  # each runtime has its own way to say that it cannot run a program
        yield Finding(CHECK, "fail", "", Kind.PROGRAM_FAILS, facts={"why": first_line(error)})
        return
    yield from _outputs(told.behaviour, found, record.program)


def first_line(error: Exception) -> str:
    """What a runtime raised, on one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def cannot_run(checkpoint: Checkpoint) -> str:
    """Why there is nothing here to run a program with; empty where there is."""
    runtime = "torch" if checkpoint.format == "pt2" else "onnxruntime"
    if find_spec(runtime) is None:
        return f"{runtime} is not installed"
    if checkpoint.format == "onnx" and checkpoint.wrappings:
        return "onnxruntime reads no archive and no compressed file"
    return _cannot_look(checkpoint)


def _cannot_look(checkpoint: Checkpoint) -> str:
    """Why the nodes of a program are not looked at; empty where they are."""
    if sum(sum(one.operators.values()) for one in checkpoint.programs) > MAX_NODES:
        return f"it has more than {MAX_NODES:,} nodes"
    if checkpoint.format == "pt2":
        return ""
    if find_spec("onnx") is None:
        return "onnx is not installed"
    return "" if isinstance(checkpoint.path, Path) else "onnxruntime reads local files"


def _digests(checkpoint: Checkpoint) -> Nodes:
    """The nodes of a program as they are today."""
    file = file_of(checkpoint)
    if checkpoint.format == "pt2":
        return pt2.node_digests(file)
    return onnx.node_digests(file.read_at(0, file.size_bytes))


def file_of(checkpoint: Checkpoint) -> InputFile:
    """The open file of a program: the bytes that were checked."""
    (file,) = (held for held in checkpoint.held if isinstance(held, InputFile))
    return file


def _nodes(now: Nodes, recorded: Mapping[str, Any]) -> Iterator[Finding]:
    """Nodes that are not what was exported."""
    then = recorded.get("nodes")
    if not isinstance(then, dict) or not now:
        return
    changed = [name for name in now if name in then and then[name] != now[name][0]]
    added = [name for name in now if name not in then]
    gone = [str(name) for name in then if name not in now]
    for names, kind in ((changed, Kind.OTHER_NODE), (added, Kind.NEW_NODE)):
        for name in names:
            yield Finding(CHECK, "fail", name, kind, facts={"operator": now[name][1] or "the graph's"})
    for name in gone:
        yield Finding(CHECK, "fail", name, Kind.GONE_NODE)
    if not (changed or added or gone):
        yield Finding(CHECK, "ok", "", Kind.SAME_NODES, len(now) - 1)


def _outputs(
    recorded: Behaviour, found: Mapping[str, Sample], program: Mapping[str, Any]
) -> Iterator[Finding]:
    rounding = program.get("rounding")
    for path, then in recorded.outputs.items():
        now = found.get(path)
        if now is None:
            why = {"why_not": "the program does not return it"}
            yield Finding(CHECK, "fail", path, Kind.OUTPUT_UNLIKE, facts=why)
        elif (now.shape, now.dtype) != (then.shape, then.dtype):
            why = {"why_not": f"{then.dtype} {list(then.shape)} → {now.dtype} {list(now.shape)}"}
            yield Finding(CHECK, "fail", path, Kind.OUTPUT_UNLIKE, facts=why)
        elif now.digest == then.digest:
            yield Finding(CHECK, "ok", path, Kind.EQUAL_OUTPUT)
        else:
            allowed = _allowed(rounding, path)
            relative = _relative(then, now)
            off = f"{relative:.2g} relative off, rounding explains {allowed:.2g}"
            is_explained = relative <= allowed and then.num_odd == now.num_odd
            kind = Kind.OUTPUT_EXPLAINED if is_explained else Kind.OUTPUT_DIFFERS
            facts = {"off": off, "besides": ""}
            yield Finding(CHECK, "ok" if is_explained else "fail", path, kind, facts=facts)


MOST_ALLOWED = 0.25
"""No record excuses more: beyond it, nothing would be compared."""


def _allowed(rounding: Any, path: str) -> float:
    """How far an output may be from the recorded one: each is as far from the exact one as rounding goes."""
    both = rounding.get(path) if isinstance(rounding, dict) else None
    if not isinstance(both, list) or not all(type(x) in (int, float) and x >= 0 for x in both):
        return 0.0
    return min(float(sum(both)), MOST_ALLOWED)


def _relative(then: Sample, now: Sample) -> float:
    off = math.dist(then.sketch, now.sketch) if len(then.sketch) == len(now.sketch) else math.inf
    return off / then.norm if then.norm else (math.inf if off else 0.0)
