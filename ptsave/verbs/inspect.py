"""inspect: what is in a checkpoint, is it safe, is it whole. Nothing in it runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ptsave.core.accounts import LeftOut
from ptsave.core.address import Address, Location, may_be_folder
from ptsave.core.checkpoint import Checkpoint, Wrapping
from ptsave.core.finding import counted
from ptsave.core.names import MAX_ALIAS_CHARS, escape, expect_matches, hint_for, html_table, matches
from ptsave.core.nodes import GlobalUse, Program, TensorEntry
from ptsave.core.parts.modules import ModuleNode, TensorRow, module_tree
from ptsave.core.parts.training import PROGRESS_KEYS
from ptsave.core.record import Record
from ptsave.errors import LimitError, Option, UnknownFormatError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.storage.files import InputFile, InputFolder, files_of
from ptsave.verbs.request import ALWAYS, Bar, option, reading, unseen

if TYPE_CHECKING:
    from ptsave.config.model import NamedCode
    from ptsave.verbs.folders.plain import FolderInspection
    from ptsave.verbs.folders.runs import RunInspection
    from ptsave.verbs.stats import TensorStats
    from ptsave.verbs.training import Training

SortKey = Literal["file", "name", "size", "dtype"]
SORT_KEYS: dict[str, SortKey] = {"file": "file", "name": "name", "size": "size", "dtype": "dtype"}
SORTED_AS = {"bytes": "size", "num_bytes": "size", "type": "dtype", "names": "name"}
"""What else people call them."""


def sort_key(text: str) -> SortKey:
    """The key that `--sort` names.

    Raises: UsageError with the nearest key.
    """
    name = SORTED_AS.get(text, text)
    if name not in SORT_KEYS:
        raise UsageError(f"cannot sort by {text!r}", Option("sort"), hint_for(text, SORT_KEYS, "keys"))
    return SORT_KEYS[name]


@dataclass(frozen=True)
class Share:
    """How much of a checkpoint one dtype, or one module, takes; tied tensors count once."""

    name: str
    num_tensors: int
    num_elements: int
    num_bytes: int


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` says of one checkpoint."""

    path: Location
    format: str
    wrapped_in: Sequence[Wrapping]
    """What the file lies in, the outermost first."""
    file_bytes: int | None
    """Of the file itself, unpacked."""
    rows: Sequence[TensorRow]
    """What `--filter`, `--sort` and `--limit` leave."""
    num_hidden: int
    """Tensors that they leave out."""
    num_tensors: int
    num_elements: int
    num_bytes: int
    dtypes: Sequence[Share]
    data: Mapping[str, Any]
    metadata: Mapping[str, str]
    globals: Mapping[str, GlobalUse]
    record: Record | None
    named_code: Sequence[NamedCode]
    """What `--trust-recorded` imports, and calls, of what the record names."""
    training: Training | None
    programs: Sequence[Program] = ()
    """What the file says of the programs in it."""
    left_out: Sequence[LeftOut] = ()
    """What the file holds and no listed tensor has."""
    notes: Sequence[str] = field(default_factory=list)
    stats: Sequence[TensorStats] | None = None
    """Of the tensors in `rows`, in their order, where they were asked for."""
    entries: Collection[TensorEntry] = field(default=(), repr=False)
    """All tensors, whatever is shown."""

    def __repr__(self) -> str:
        return f"<inspection of {self._title}>"

    def _repr_html_(self) -> str:
        header = ("name", "dtype", "shape", "bytes", "tied to")
        rows = (
            (e.name, e.dtype.name, list(e.shape), f"{e.num_bytes:,}", row.alias_of or "")
            for row in self.rows
            for e in (row.entry,)
        )
        return html_table(self._title, header, rows, len(self.rows))

    @property
    def _title(self) -> str:
        tensors = counted(self.num_tensors, "tensor", "tensors")
        return f"{escape(str(self.path))!r}: {self.format}, {tensors}, {self.num_elements:,} elements"

    @property
    def root(self) -> str:
        """One hash of all tensors, as far as the record's digests are right; empty where it has not all."""
        from ptsave.sign.statement import recorded_root  # only who asks for it needs it

        return recorded_root(self.entries, self.record)

    @property
    def tree(self) -> ModuleNode:
        """The rows by module."""
        return module_tree(self.rows)

    @property
    def parameters(self) -> ModuleNode:
        """The rows by module, without what the training's optimizers keep."""
        optimizers = self.training.optimizers if self.training is not None else ()
        kept = tuple(f"{one.where}." if one.where else "" for one in optimizers)
        return module_tree([row for row in self.rows if not row.entry.name.startswith(kept)])


def inspect_path(
    path: Location,
    *,
    globs: Sequence[str] = (),
    sort: str = "file",
    limit: int | None = None,
    stats: bool = False,
    given: Collection[str] = (),
    bar: Bar = unseen,
) -> Inspection | RunInspection | FolderInspection:
    """Describe the checkpoint, the folder of a run, or the checkpoints in a plain folder, at `path`.

    `stats`: whether every tensor is read. `given`: the options that were given, as flags: those about tensors
    are refused for folders.

    Raises: UsageError for an option, and what opening a checkpoint raises.
    """
    order = sort_key(sort)
    about_tensors = [flag for flag in given if flag not in ALWAYS]
    if may_be_folder(path):
        from ptsave.verbs.folders import runs  # only folders need it

        if runs.is_run(path):
            runs.refuse_flags(path, about_tensors)
            return runs.inspect_run(path)
    try:
        checkpoint = open_checkpoint(path, at_a_glance=not stats)
    except UnknownFormatError:
        from ptsave.verbs.folders import plain  # only what is no checkpoint needs it

        found = plain.plain_folder(path)
        if found is None:
            raise
        if about_tensors:
            what = (option(about_tensors[0]), " is about one checkpoint")
            raise UsageError(what, str(path), f"such as {found.members[0]}") from None
        return plain.inspect_folder(found)
    with checkpoint:
        result = inspect(checkpoint, globs=globs, sort=order, limit=limit)
        return replace(result, stats=_measured(checkpoint, result, bar)) if stats else result


def _measured(checkpoint: Checkpoint, result: Inspection, bar: Bar) -> list[TensorStats]:
    from ptsave.verbs.stats import stats

    names = [row.entry.name for row in result.rows]
    num_bytes = sum(row.entry.num_bytes for row in result.rows)
    size_bytes = min(num_bytes, checkpoint.source_bytes)  # not all may be asked for, and some may be tied
    with reading(bar, "reading", size_bytes, num_bytes) as advance:
        measured = list(stats(checkpoint, names, progress=advance))
    checkpoint.check_unchanged()
    return measured


def inspect(
    checkpoint: Checkpoint,
    *,
    globs: Sequence[str] = (),
    sort: SortKey = "file",
    limit: int | None = None,
) -> Inspection:
    """Describe an open checkpoint.

    `num_tensors` counts names; `num_elements` and `num_bytes` count tied tensors once. All three are of
    the whole checkpoint, whatever is filtered.
    """
    named_code, misfits = _told(checkpoint)
    rows = _rows(checkpoint)
    unique = [row.entry for row in rows if row.alias_of is None]
    expect_matches(globs, (row.entry.name for row in rows), Option("filter"))
    shown = [row for row in rows if not globs or matches(row.entry.name, globs)]
    if sort == "name":
        shown.sort(key=lambda row: row.entry.name)
    elif sort == "size":
        shown.sort(key=lambda row: -row.entry.num_bytes)
    elif sort == "dtype":
        shown.sort(key=lambda row: (row.entry.dtype.name, row.entry.name))
    if limit is not None:
        shown = shown[:limit]
    return Inspection(
        path=checkpoint.path,
        format=checkpoint.format,
        wrapped_in=checkpoint.wrappings,
        file_bytes=_file_bytes(checkpoint),
        rows=shown,
        num_hidden=len(rows) - len(shown),
        num_tensors=len(rows),
        num_elements=sum(entry.num_elements for entry in unique),
        num_bytes=sum(entry.num_bytes for entry in unique),
        dtypes=_by_dtype(unique),
        data=checkpoint.data,
        metadata=checkpoint.texts,
        globals=checkpoint.globals,
        record=checkpoint.record,
        named_code=named_code,
        training=_training(checkpoint),
        programs=checkpoint.programs,
        left_out=checkpoint.accounts.left_out,
        notes=[*checkpoint.notes, *misfits, *_put_off(checkpoint)],
        entries=checkpoint.tensors.values(),
    )


def _training(checkpoint: Checkpoint) -> Training | None:
    """What `checkpoint` says of a training; None where it holds a model's weights alone."""
    if not checkpoint.training_parts.has_more_than_models and PROGRESS_KEYS.isdisjoint(checkpoint.metadata):
        return None
    from ptsave.verbs.training import describe_training  # what that takes only trainings need

    return describe_training(checkpoint)


def _told(checkpoint: Checkpoint) -> tuple[list[NamedCode], list[str]]:
    """The code that the record names, and notes of what in it does not fit."""
    if checkpoint.record is None:
        return [], []
    from ptsave.config.recorded import told_by  # what that takes only records need

    told = told_by(checkpoint)
    named_code = list(told.model.named_code) if told.model is not None else []
    return named_code, [f"the record does not fit: {fault.what}" for fault in told.faults.values()]


def _rows(checkpoint: Checkpoint) -> list[TensorRow]:
    first_view: dict[Any, str] = {}
    first_storage: dict[int, str] = {}
    rows = []
    chars = 0
    has_files = len(files_of(checkpoint)) > 1
    for name, entry in checkpoint.tensors.items():
        alias = view = None
        if entry.storage.num_bytes:
            alias = first_view.setdefault(entry.view, name)
            view = first_storage.setdefault(id(entry.storage), name)
        alias = None if alias == name else alias
        view = None if alias or view == name else view
        chars += len(alias or view or "")
        if chars > MAX_ALIAS_CHARS:
            raise LimitError("alias_chars", MAX_ALIAS_CHARS, "more", str(checkpoint.path))
        rows.append(TensorRow(entry, alias, view, _files_of(entry) if has_files else ()))
    return rows


def _files_of(entry: TensorEntry) -> Sequence[str]:
    files = (storage.file for storage in entry.storage.origins())
    return sorted({file.path.name for file in files if isinstance(file, InputFile)})


def _by_dtype(entries: Sequence[TensorEntry]) -> list[Share]:
    totals: dict[str, list[int]] = {}
    for entry in entries:
        total = totals.setdefault(entry.dtype.name, [0, 0, 0])
        total[0] += 1
        total[1] += entry.num_elements
        total[2] += entry.num_bytes
    shares = [Share(name, *total) for name, total in totals.items()]
    return sorted(shares, key=lambda share: -share.num_bytes)


def _file_bytes(checkpoint: Checkpoint) -> int | None:
    """The size of the one file that it was read from; None for a folder, and what is no file."""
    held = checkpoint.held
    return held[0].size_bytes if len(held) == 1 and isinstance(held[0], InputFile) else None


def _put_off(checkpoint: Checkpoint) -> list[str]:
    """What opening a checkpoint on another machine has left to whoever reads its tensors."""
    held = [one for one in checkpoint.held if isinstance(one, (InputFile, InputFolder))]
    if not any(isinstance(one.path, Address) for one in held):
        return []
    return [
        "read by ranges: the local headers of a zip archive, and whether another format is a zip archive "
        "too, are checked when tensors are read, as verify does"
    ]
