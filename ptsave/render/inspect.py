"""What `inspect` prints for a checkpoint, and how it puts several of them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptsave.core.global_names import WORDS, kind_of
from ptsave.core.names import escape
from ptsave.core.nodes import Port, Program
from ptsave.core.parts.modules import TensorRow
from ptsave.core.record import Record
from ptsave.render import as_json
from ptsave.render.modules import show_parameters, show_tree
from ptsave.render.run import show_folder, show_run
from ptsave.render.terminal import Mode, document, note, out, pairs, section, table
from ptsave.render.words import bars, count, shape, size, value
from ptsave.verbs.inspect import Inspection

if TYPE_CHECKING:
    from ptsave.config.model import NamedCode
    from ptsave.core.checkpoint import Wrapping
    from ptsave.verbs.folders.plain import FolderInspection
    from ptsave.verbs.folders.runs import RunInspection
    from ptsave.verbs.make_config import MadeConfig
    from ptsave.verbs.stats import TensorStats


MAX_LISTED = 20
"""How many are shown of what no tensor lists, and of a program's inputs, operators and functions."""


@dataclass
class Inspections:
    """Shows one inspection after the other: each as text, or all in one JSON object."""

    mode: Mode
    many: bool
    """Whether there may be more than one."""
    _documents: list[dict[str, Any]] = field(default_factory=list)

    def checkpoint(
        self, result: Inspection, *, tree: bool = False, params: bool = False, depth: int | None = None
    ) -> None:
        """Show a checkpoint: its tensors or, with `params`, its parameters by module, no deeper than `depth`;
        the statistics of its tensors where it has them."""
        if self.mode.json:
            self._documents.append(as_json.inspection(result, iter))
        else:
            _show_checkpoint(result, tree, params, depth, self.mode.verbose)
            self._part()

    def run(self, result: RunInspection) -> None:
        """Show the folder of a run."""
        if self.mode.json:
            self._documents.append(as_json.run(result))
        else:
            show_run(result)
            self._part()

    def folder(self, result: FolderInspection) -> None:
        """Show a plain folder."""
        if self.mode.json:
            self._documents.append(as_json.folder(result))
        else:
            show_folder(result)
            self._part()

    def _part(self) -> None:
        if self.many:
            out()

    def end(self) -> None:
        """Print the JSON object."""
        if self.mode.json:
            every = (fields for fields in self._documents)
            document({"files": every} if self.many else self._documents[0])


def _show_checkpoint(result: Inspection, tree: bool, params: bool, depth: int | None, verbose: bool) -> None:
    out(
        f"{escape(str(result.path))}: {result.format}, {count(result.num_tensors, 'tensor')}, "
        f"{count(result.num_elements, 'element')}, {size(result.num_bytes)}"
    )
    if result.wrapped_in:
        out(escape(", ".join(_wrapping(one) for one in reversed(result.wrapped_in))))
    if result.stats is not None:
        _stats(result.stats)
    elif params:
        show_parameters(result.parameters, depth, shows_all=verbose)
    elif tree:
        show_tree(result.tree, depth, shows_all=verbose)
    elif result.rows:
        out()
        header = ("name", "dtype", "shape", "size", "")
        table([_row(r, verbose) for r in result.rows], header, right=(3,), names=(0, 4))
    if result.num_hidden:
        out(f"… {count(result.num_hidden, 'tensor')} not shown")
    if verbose and result.rows and not (tree or params or result.stats):
        show_parameters(result.parameters, 1, shows_all=True)
    if len(result.dtypes) > 1:
        section("by dtype")
        table(
            [
                (s.name, count(s.num_tensors, "tensor"), count(s.num_elements, "element"), size(s.num_bytes))
                for s in result.dtypes
            ],
            right=(1, 2, 3),
        )
    if result.training is not None:
        section("training state")
        for sentence in result.training.sentences:
            out(escape(sentence))
    for program in result.programs:
        _program(program)
    pairs("data", {escape(name): value(item) for name, item in result.data.items()})
    kept = result.record.extras if result.record is not None else None
    if isinstance(kept, dict):
        kept = {name: item for name, item in kept.items() if name not in result.data}
        pairs("data, kept in the record", {escape(str(name)): value(item) for name, item in kept.items()})
    pairs(
        "metadata",
        {escape(key): value(text) for key, text in result.metadata.items() if key != "ptsave"},
    )
    _record(result.record, result.root if verbose else "")
    _named_code(result.named_code)
    if result.globals:
        section("names that are not in the allow-list (nothing here was imported or run)")
        table(
            [
                (escape(u.name), u.used_for, f"{u.count}×", WORDS[kind_of(u.name)])
                for u in result.globals.values()
            ]
        )
    if result.left_out:
        section("left out")
        shown = result.left_out[:MAX_LISTED]
        table([(escape(left.name), escape(left.what), size(left.num_bytes)) for left in shown], right=(2,))
        if len(result.left_out) > len(shown):
            out(f"… {len(result.left_out) - len(shown)} more")
    if result.notes:
        section("notes")
        for line in result.notes:
            out(escape(line))


def _wrapping(one: Wrapping) -> str:
    """In what the file lies, in words."""
    how = f" (unpacked into a temporary file of {size(one.num_bytes)})" if one.is_unpacked else ""
    what = f"the member {one.member!r} of a {one.described}" if one.member else f"in a {one.described}"
    return what + how


def _row(row: TensorRow, verbose: bool) -> tuple[str, ...]:
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
    if verbose and row.files:
        remarks.append(f"in {', '.join(row.files)}")
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

    header = ("name", "min", "max", "mean", "std", "norm", "zeros", "NaN", "inf", "from min to max")
    rows = [
        (
            escape(s.name),
            *map(number, (s.min, s.max, s.mean, s.std, s.norm)),
            *map(str, (s.zeros, s.nans, s.infs)),
            bars(s.histogram),
        )
        for s in measured
    ]
    out()
    table(rows, header, right=range(1, len(header) - 1), names=(0,))


def _program(program: Program) -> None:
    """What goes in, what comes out, and how many nodes call which operator."""
    section(f"program {escape(program.name)}".rstrip())
    ports = [*(("input", one) for one in program.inputs), *(("output", one) for one in program.outputs)]
    table([(what, *map(escape, _port(one))) for what, one in ports[:MAX_LISTED]])
    if len(ports) > MAX_LISTED:
        out(f"… {len(ports) - MAX_LISTED} more")
    words = {
        "operators": _some(f"{number} {name}" for name, number in program.operators.items()),
        "opsets": _some(f"{domain or 'ai.onnx'} {number}" for domain, number in program.opsets.items()),
        "functions": _some(program.functions),
        "producer": program.producer,
    }
    table([(what, escape(text)) for what, text in words.items() if text])


def _port(port: Port) -> tuple[str, str, str]:
    return port.name, port.type, "" if port.shape is None else f"[{', '.join(map(str, port.shape))}]"


def _some(words: Iterable[str]) -> str:
    """The first of many words."""
    listed = list(words)
    more = len(listed) - MAX_LISTED
    return ", ".join(listed[:MAX_LISTED]) + (f", … {more} more" if more > 0 else "")


def _named_code(named: Sequence[NamedCode]) -> None:
    """Each path once, with all that is done with it."""
    uses: dict[str, dict[str, None]] = {}
    for code in named:
        uses.setdefault(code.path, {})[f"{code.use} ({code.where})"] = None
    if uses:
        section("what --trust-recorded would import (nothing here was)")
        table([(escape(path), escape(", ".join(where))) for path, where in uses.items()])


def _record(record: Record | None, root: str) -> None:
    if record is None:
        return
    known = {}
    if record.model is not None:
        key = "factory" if "factory" in record.model else "class"
        known[key] = value(record.model.get(key))
        args = record.model.get("args")
        for key, item in (args if isinstance(args, dict) else {}).items():
            known[f"  {escape(str(key))}"] = value(item)
    if record.digests is not None:
        known["digests"] = f"{record.digests.algorithm}, {count(len(record.digests.tensors), 'tensor')}"
    if root:
        known["root"] = root
    for key, item in (record.environment or {}).items():
        known[escape(key)] = value(item)
    if record.behaviour is not None:
        known["behaviour"] = "recorded"
    pairs("record", known)


def show_made(mode: Mode, made: MadeConfig) -> None:
    """What `inspect --make-config` prints."""
    if mode.json:
        document(as_json.made_config(made))
        return
    for line in made.notes:
        note(mode, line)
    note(mode, f"wrote {made.path} from {made.source}: {made.target}")
