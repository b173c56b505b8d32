"""The only file that prints: results to stdout, everything else to stderr.

Every text that came from a file passes `escape` on its way out, so that a terminal never obeys it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ptsave import as_json, streams
from ptsave.core.names import escape
from ptsave.errors import WriteError
from ptsave.words import count, shape, size, value

if TYPE_CHECKING:
    from rich.progress import Progress

    from ptsave.core.verdict import Finding, Level, Verdict
    from ptsave.errors import PtsaveError
    from ptsave.torch_layer.load import Loaded
    from ptsave.torch_layer.save import Recorded, Saved
    from ptsave.verbs.convert import Conversion
    from ptsave.verbs.diff import Diff
    from ptsave.verbs.inspect import Inspection, ModuleNode, TensorRow
    from ptsave.verbs.runs import RunInspection
    from ptsave.verbs.stats import TensorStats


MAX_METRICS = 8
"""How many metrics of a run get a column; `--json` has all."""
MAX_COLUMN_CHARS = 120
"""How wide a column of a table gets: a longer cell stands out, and does not widen every line."""


@dataclass(frozen=True)
class Mode:
    """How a command talks."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


# --- the two streams ------------------------------------------------------------------------------


def out(line: str = "") -> None:
    """One line of data, on stdout. Once a reader (`| head`) has what it wanted, the rest goes nowhere.

    Raises: WriteError when stdout does not take it.
    """
    try:
        print(line)
    except BrokenPipeError:
        streams.discard(sys.stdout)
    except OSError as error:
        raise streams.lost(error) from None


def document(fields: dict[str, Any]) -> None:
    """The one JSON object of a command, on stdout."""
    out(as_json.text(fields))


def _say(line: str) -> None:
    """One line for a person, on stderr; where nobody can hear it, the work goes on."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def note(mode: Mode, line: str) -> None:
    """Something worth knowing, on stderr; not with `--quiet`."""
    if not mode.quiet:
        _say(escape(line))


def warn(line: str) -> None:
    """Something that may be wrong, on stderr, whatever the mode."""
    _say(f"{_styled('warning:', '33', sys.stderr)} {escape(line)}")


def failure(problem: PtsaveError, *, json: bool) -> None:
    """A failure: `error:` and `hint:` on stderr, or the error object on stdout."""
    if json:
        with suppress(WriteError):  # it is said on stderr as well
            document({"error": as_json.error(problem)})
    _say(f"{_styled('error:', '1;31', sys.stderr)} {escape(str(problem))}")
    if problem.hint:
        _say(f"{_styled('hint:', '36', sys.stderr)} {escape(problem.hint)}")


def _styled(text: str, code: str, stream: TextIO | None = None) -> str:
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


@contextmanager
def progress(mode: Mode, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar with bytes, rate and time left on a terminal's stderr, once the work has taken a second.

    Yields the function to call with the bytes done since the last call, from any thread.
    """
    if mode.quiet or not sys.stderr.isatty():
        yield lambda num_bytes: None
        return
    started = time.monotonic()
    bar: Progress | None = None
    task: Any = None
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal bar, task, done
        done += num_bytes
        if bar is None:
            if time.monotonic() - started < 1:
                return
            bar = _bar()
            task = bar.add_task(label, total=total_bytes)
            bar.start()
        bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


# --- tables -----------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), right: Collection[int] = ()) -> None:
    """Aligned columns on stdout; the columns numbered in `right` align right."""
    every = [header, *rows] if header else rows
    if not every:
        return
    widths = [min(max(map(len, column)), MAX_COLUMN_CHARS) for column in zip(*every, strict=True)]
    for i, row in enumerate(every):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        out(_styled(line, "1") if header and i == 0 else line)


# --- save, load, convert --------------------------------------------------------------------------


def saved(mode: Mode, result: Saved) -> None:
    """What `save` prints."""
    if mode.json:
        document(as_json.saved(result))
        return
    behaviour = f", with {size(result.behaviour_bytes)} of behaviour" if result.behaviour_bytes else ""
    note(
        mode,
        f"saved {result.model} to {result.destination} ({result.format}): "
        f"{_totals(result)}{behaviour}, from {result.weights}{_spread(result)}",
    )


def loaded(mode: Mode, result: Loaded) -> None:
    """What `load` prints."""
    outputs = {name: _tensor_value(tensor) for name, tensor in (result.outputs or {}).items()}
    if mode.json:
        document(as_json.loaded(result))
        return
    if result.took:
        note(mode, result.took)
    note(
        mode,
        f"loaded {result.model} from {result.path} ({result.format}) on {result.device}: "
        f"{_totals(result)}, every key matched{_spread(result)}",
    )
    if result.outputs_path is not None:
        note(mode, f"wrote {count(len(outputs), 'output')} to {result.outputs_path}")
    elif outputs and not mode.quiet:
        table([(escape(name), text) for name, text in outputs.items()])


def _tensor_value(tensor: Any) -> str:
    """A small tensor's values, a larger one's dtype and shape."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {shape(tensor.shape)}"


def _spread(result: Saved | Loaded) -> str:
    """Over how many ranks, where there is more than this process."""
    if not result.mesh:
        return ""
    mesh = ", ".join(f"{name} = {ranks}" for name, ranks in result.mesh.items())
    ranks = count(prod(result.mesh.values()), "rank")
    return f"; over {ranks} ({mesh}), at most {size(result.num_rank_bytes)} each"


def _totals(result: Saved | Loaded) -> str:
    return (
        f"{count(result.num_tensors, 'tensor')}, {count(result.num_elements, 'element')}, "
        f"{size(result.num_bytes)}"
    )


def converted(mode: Mode, result: Conversion) -> None:
    """What `convert` prints: a line that it is done, or the plan."""
    if mode.json:
        document(as_json.converted(result))
        return
    for line in result.notes:
        note(mode, line)
    sources = ", ".join(map(str, result.sources))
    what = f"{count(result.num_tensors, 'tensor')}, {size(result.num_bytes)}"
    if not result.is_plan:
        note(mode, f"converted {sources} to {result.destination} ({result.format}): {what}")
        for name in result.dropped if mode.verbose else ():
            note(mode, f"dropped {name}")
        return
    out(escape(f"would convert {sources} ({', '.join(result.source_formats)})"))
    out(escape(f"to {result.destination} ({result.format}): {what}; {size(result.free_bytes)} free"))
    _pairs("renamed", {escape(old): escape(new) for old, new in result.renamed.items()})
    if result.dropped:
        _section("dropped")
        for name in result.dropped:
            out(escape(name))


# --- verify -----------------------------------------------------------------------------------------


LEVELS = {"ok": ("ok", "32"), "warn": ("warn", "33"), "fail": ("FAIL", "1;31"), "skipped": ("skipped", "2")}
MAX_ALIKE = {"fail": 6, "warn": 3, "ok": 3, "skipped": 3}
"""How many findings of one check and level are printed without --verbose: all of verify fits on a screen."""


def workflow_commands(lines: Sequence[str]) -> None:
    """GitHub's workflow commands, on stderr so that stdout stays one result; they are escaped already."""
    for line in lines:
        print(line, file=sys.stderr)


def checks(mode: Mode, functions: Mapping[str, Any]) -> None:
    """What `--list-checks` prints: each check with the first line of its docstring."""
    lines = {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in functions.items()}
    if mode.json:
        document({"checks": lines})
    else:
        table(list(lines.items()))


def checking(mode: Mode) -> Callable[[str], None]:
    """The function to call as each check begins: it says so with --verbose, and on a terminal once the work
    has taken a second."""
    started = time.monotonic()

    def began(check: str) -> None:
        is_long = sys.stderr.isatty() and time.monotonic() - started > 1
        if mode.verbose or (is_long and not mode.quiet):
            _say(f"checking {check} …")

    return began


def recorded(mode: Mode, result: Recorded) -> None:
    """What `verify --record` prints."""
    taken = size(result.num_bytes)
    note(mode, f"recorded the behaviour of {result.model} in {result.path}: the record takes {taken}")


def verdict(mode: Mode, result: Verdict, path: Path) -> None:
    """What `verify` prints: the findings, and the verdict on the last line."""
    if mode.json:
        document(as_json.verdict(result, path))
        return
    if not mode.quiet:
        _findings(result, mode)
        if result.cause:
            out(f"{'because':<10} {escape(result.cause)}")
    failed = sorted({finding.check for finding in result.findings if finding.level == "fail"})
    if result.is_yes:
        passed = {finding.check for finding in result.findings if finding.level in ("ok", "warn")}
        left_out = {finding.check for finding in result.findings if finding.level == "skipped"} - passed
        skipped = f"; skipped: {', '.join(sorted(left_out))}" if left_out else ""
        out(f"{_styled('yes', '1;32')}: {escape(str(path))} passed {', '.join(sorted(passed))}{skipped}")
    elif failed:
        out(f"{_styled('no', '1;31')}: {escape(str(path))} failed {', '.join(failed)}")
    else:
        out(f"{_styled('no', '1;31')}: nothing could be checked of {escape(str(path))}")


def _findings(result: Verdict, mode: Mode) -> None:
    alike: dict[tuple[str, Level], list[Finding]] = {}
    for finding in result.findings:
        alike.setdefault((finding.check, finding.level), []).append(finding)
    for (check, level), findings in alike.items():
        word, code = LEVELS[level]
        start = f"{check:<10} {_styled(f'{word:<8}', code)}"
        shown = len(findings) if mode.verbose else MAX_ALIKE[level]
        for finding in findings[:shown]:
            where = f"{finding.where}: " if finding.where else ""
            out(f"{start} {escape(where + finding.message)}")
        if len(findings) > shown:
            out(f"{start} … {len(findings) - shown:,} more (--verbose lists them)")


# --- inspect ------------------------------------------------------------------------------------------


@contextmanager
def inspections(mode: Mode, *, many: bool) -> Iterator[Callable[..., None]]:
    """The function that shows one inspection after the other: as text, or all in one JSON object."""
    files: list[dict[str, Any]] = []

    from ptsave.verbs.inspect import Inspection

    def show(
        result: Inspection | RunInspection,
        *,
        tree: bool = False,
        stats: Sequence[TensorStats] | None = None,
    ) -> None:
        if isinstance(result, Inspection):
            if mode.json:
                files.append(as_json.inspection(result, stats))
            else:
                inspection(result, tree=tree, stats=stats)
        elif mode.json:
            files.append(as_json.run(result))
        else:
            run(result)
        if many and not mode.json:
            out()

    yield show
    if mode.json:
        document({"files": files} if many else files[0])


def run(result: RunInspection) -> None:
    """What `inspect` prints for the folder of a run."""
    latest = f"; latest step {result.latest.step}" if result.latest is not None else ""
    number = count(len(result.checkpoints), "checkpoint")
    out(f"{escape(str(result.path))}: run, {number}, {size(result.num_bytes)}{latest}")
    out()
    metrics = result.metrics[:MAX_METRICS]
    has_epochs = any(file.epoch is not None for file in result.checkpoints)
    header = ("name", "step", *["epoch"] * has_epochs, *map(escape, metrics), "size", "health")
    rows = [
        (
            file.path.name,
            str(file.step),
            *["" if file.epoch is None else value(file.epoch)] * has_epochs,
            *(f"{file.metrics[name]:.6g}" if name in file.metrics else "" for name in metrics),
            size(file.num_bytes),
            escape(file.problem) or "opens",
        )
        for file in result.checkpoints
    ]
    table(rows, header, right=range(1, len(header) - 1))
    out()
    if len(result.metrics) > len(metrics):
        out(f"… {count(len(result.metrics) - len(metrics), 'metric')} not shown")
    out("health is what opening a file shows; `ptsave verify` on the folder reads every byte")
    if result.litter:
        out(f"{count(len(result.litter), 'temporary file')} of a writer that was killed, or is at work")


def inspection(result: Inspection, *, tree: bool, stats: Sequence[TensorStats] | None = None) -> None:
    """What `inspect` prints for one path."""
    out(
        f"{escape(str(result.path))}: {result.format}, {count(result.num_tensors, 'tensor')}, "
        f"{count(result.num_elements, 'element')}, {size(result.num_bytes)}"
    )
    if stats is not None:
        _stats(stats)
    elif tree:
        _tree(result.tree, result.num_bytes)
    elif result.rows:
        out()
        table([_row(r) for r in result.rows], ("name", "dtype", "shape", "size", ""), right=(3,))
    if result.num_hidden:
        out(f"… {count(result.num_hidden, 'tensor')} not shown")
    if len(result.dtypes) > 1:
        _section("by dtype")
        table(
            [
                (s.name, count(s.num_tensors, "tensor"), count(s.num_elements, "element"), size(s.num_bytes))
                for s in result.dtypes
            ],
            right=(1, 2, 3),
        )
    if result.training is not None:
        _section("training state")
        for sentence in result.training.sentences:
            out(escape(sentence))
    _pairs("data", {escape(name): value(item) for name, item in result.data.items()})
    _pairs(
        "metadata",
        {escape(key): value(text) for key, text in result.metadata.items() if key != "ptsave"},
    )
    _record(result)
    if result.globals:
        _section("names outside the known shapes (nothing here was imported or run)")
        table([(escape(u.name), u.used_for, f"{u.count}×") for u in result.globals.values()])
    if result.notes:
        _section("notes")
        for line in result.notes:
            out(escape(line))


def _row(row: TensorRow) -> tuple[str, ...]:
    entry = row.entry
    remarks = []
    if entry.kind not in ("tensor", "parameter"):
        remarks.append(entry.kind)
    if row.alias_of is not None:
        remarks.append(f"tied to {row.alias_of}")
    elif row.view_of is not None:
        remarks.append(f"shares storage with {row.view_of}")
    if not entry.is_contiguous:
        remarks.append(f"strides {shape(entry.strides)}")
    return (
        escape(entry.name),
        entry.dtype.name,
        shape(entry.shape),
        size(entry.num_bytes),
        escape(", ".join(remarks)),
    )


def _stats(measured: Sequence[TensorStats]) -> None:
    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.6g}"

    header = ("name", "min", "max", "mean", "std", "norm", "zeros", "NaN", "inf")
    rows = [
        (
            escape(s.name),
            *map(number, (s.min, s.max, s.mean, s.std, s.norm)),
            *map(str, (s.zeros, s.nans, s.infs)),
        )
        for s in measured
    ]
    out()
    table(rows, header, right=range(1, len(header)))


def differences(mode: Mode, result: Diff, a: Path, b: Path) -> None:
    """What `inspect --diff` prints."""
    from ptsave.verbs.diff import describe

    if mode.json:
        document(as_json.differences(result, a, b))
        return
    rows = [("-", escape(name), f"only in {escape(str(a))}") for name in result.only_in_a]
    rows += [("+", escape(name), f"only in {escape(str(b))}") for name in result.only_in_b]
    rows += [("~", escape(t.name), escape(describe(t))) for t in result.different]
    rows += [
        ("~", escape(", ".join(names)), "share memory in the first only") for names in result.ties_broken
    ]
    rows += [("~", escape(", ".join(names)), "share memory in the second only") for names in result.ties_new]
    rows += [("-", escape(path), f"data only in {escape(str(a))}") for path in result.data_only_in_a]
    rows += [("+", escape(path), f"data only in {escape(str(b))}") for path in result.data_only_in_b]
    rows += [("~", escape(d.path), f"{value(d.a)} against {value(d.b)}") for d in result.data_changed]
    if not mode.quiet:
        table(rows)
    same = len(result.tensors) - len(result.different)
    if result.is_same:
        out(f"same: {count(same, 'tensor')} bitwise equal")
    else:
        out(f"different: {count(len(rows), 'difference')}, {count(same, 'tensor')} bitwise equal")


def _tree(root: ModuleNode, total_bytes: int) -> None:
    rows: list[tuple[str, str, str, str]] = []

    def share(num_bytes: int) -> str:
        return f"{100 * num_bytes / total_bytes:.1f}%" if total_bytes else ""

    def walk(node: ModuleNode, indent: str) -> None:
        lines: list[tuple[str, Any]] = [(row.entry.name.rsplit(".", 1)[-1], row) for row in node.rows]
        lines += list(node.children.items())
        for i, (label, item) in enumerate(lines):
            last = i == len(lines) - 1
            branch = f"{indent}{'└─ ' if last else '├─ '}{escape(label)}"
            if hasattr(item, "entry"):
                rows.append(
                    (
                        branch,
                        f"{item.entry.dtype.name} {shape(item.entry.shape)}",
                        size(item.entry.num_bytes),
                        "tied" if item.alias_of else share(item.entry.num_bytes),
                    )
                )
            else:
                rows.append((branch, "", size(item.num_bytes), share(item.num_bytes)))
                walk(item, indent + ("   " if last else "│  "))

    walk(root, "")
    out()
    table(rows, right=(2, 3))


def _record(result: Inspection) -> None:
    record = result.record
    if record is None:
        return
    pairs = {}
    if record.model is not None:
        pairs["class"] = value(record.model.get("class"))
        for key, item in (record.model.get("args") or {}).items():
            pairs[f"  {escape(str(key))}"] = value(item)
    if record.digests is not None:
        pairs["digests"] = f"{record.digests.algorithm}, {count(len(record.digests.tensors), 'tensor')}"
    for key, item in (record.environment or {}).items():
        pairs[escape(key)] = value(item)
    if record.behaviour is not None:
        pairs["behaviour"] = "recorded"
    _pairs("record", pairs)


def _pairs(title: str, pairs: dict[str, str]) -> None:
    if pairs:
        _section(title)
        table(list(pairs.items()))


def _section(title: str) -> None:
    out()
    out(_styled(title, "1"))
