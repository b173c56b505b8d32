"""convert: the same tensors in another format, another selection, another dtype."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ptsave.core.accounts import Extras, LeftOut, settle_left_out
from ptsave.core.address import Address, Location
from ptsave.core.caps import room
from ptsave.core.checkpoint import ROOT_NAME, Checkpoint, check_viewed
from ptsave.core.finding import counted
from ptsave.core.leaves import state_dict_of
from ptsave.core.names import escape
from ptsave.core.nodes import PARAMETER_, UNRESOLVED, Opaque, TensorEntry
from ptsave.core.parts.placeholders import placeholders, refuse
from ptsave.core.parts.select import MODEL, OPTIMIZER_KEYS, left_out_of, lookup_path, select_model
from ptsave.core.record import Digests, Record
from ptsave.core.tree import map_tensors
from ptsave.core.values.resolved import resolved
from ptsave.core.verdict import Verdict
from ptsave.errors import LimitError, Option, PtsaveError, RefusedError, UsageError
from ptsave.formats.base import WriteOptions
from ptsave.formats.pickle.shapes import MAX_TENSORS as LISTED_TENSORS
from ptsave.formats.stored import PLAIN_KINDS
from ptsave.formats.writers import Writer, check_destination, destination_writer
from ptsave.own_process import no_garbage_collection
from ptsave.verbs.edit import Edits, edit, is_dropped
from ptsave.verbs.extras import fit_extras
from ptsave.verbs.request import Bar, reading, refuse_unused, unseen, unused_by_convert, unused_without_sign
from ptsave.verbs.signing import check_signed, lock_for, open_pinned, settled, with_signatures, write_beside
from ptsave.verbs.texts import check_holds, left_beside, lost, with_kept_values

MIN_BARE_BYTES = 2**20
"""A smaller number without a unit is a mistake, more likely than the bytes of a shard."""
_ADAPTER = re.compile(r"\blora_[AB]\b")
"""Source: peft, `LoraLayer.adapter_layer_names`."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did, or (`--dry-run`) would do."""

    sources: Sequence[Location]
    destination: Location
    source_formats: Sequence[str]
    format: str
    num_tensors: int
    num_bytes: int
    """Of the tensors as they are written; tied ones count once."""
    free_bytes: int | None
    """On the destination's file system before the first byte; None where nothing limits it."""
    dropped: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    dense: Mapping[str, str] = field(default_factory=dict)
    """What `--dense` made plain tensors of, by its name in the source, and what it was."""
    notes: Sequence[str] = ()
    not_copied: Sequence[str] = ()
    """Files beside the sources that loaders read with the weights: a configuration, a tokenizer."""
    is_plan: bool = False
    checked: str = ""
    """By what the destination was compared with what was written."""
    proof: Verdict | None = None
    """Of an exported program: what was found when it ran beside the model."""
    signed_by: Sequence[str] = ()
    """The ids of the keys that signed it."""

    def __repr__(self) -> str:
        tensors = counted(self.num_tensors, "tensor", "tensors")
        made = "would be" if self.is_plan else "was"
        return f"<{escape(str(self.destination))!r} {made} converted: {self.format}, {tensors}>"


def convert_paths(
    paths: Sequence[Location],
    options: WriteOptions,
    edits: Edits,
    *,
    format: str | None,
    select: str | None,
    extras: Extras,
    dry_run: bool,
    metadata: Mapping[str, str] | None = None,
    lock: Location | None = None,
    given: Collection[str] = (),
    bar: Bar = unseen,
) -> Conversion:
    """Write the tensors of all `paths` but the last to the last one, edited.

    `metadata`: texts to put beside the tensors, over those of the sources. `lock`: the `ptsave.lock` that
    pins the sources, if not that of the current folder. `given`: the options that were given, as flags, each
    of which must be of use.

    Raises: UsageError for an option, and what reading and writing raise.
    """
    if len(paths) < 2:
        raise UsageError("convert needs a source and a destination", "", "the last path is the destination")
    *sources, destination = paths
    if format is None and "--shard-size" in given and not destination.suffix:
        format = "safetensors-sharded"
    target = destination_writer(destination, format)
    unused = unused_by_convert(is_sharded=target.is_sharded, no_record=not options.record, dry_run=dry_run)
    unused |= unused_without_sign(signs=options.signer is not None)
    refuse_unused(given, unused)
    pins = lock_for(lock)
    with ExitStack() as opened:
        checkpoints = [opened.enter_context(open_pinned(path, pins)) for path in sources]
        if not dry_run:
            check_destination(destination, target, overwrite=options.overwrite)
            check_signed(destination, target.name, options, keeps_record=target.keeps_record)
        options = settled(options, checkpoints, is_named="--digest" in given)
        size_bytes = sum(checkpoint.source_bytes for checkpoint in checkpoints)
        passing_bytes = num_bytes_of(checkpoints) * (2 if options.check else 1)
        with reading(bar, "converting", size_bytes, passing_bytes) as advance:
            options = replace(options, progress=advance)
            return convert(
                checkpoints,
                destination,
                target,
                options,
                edits,
                select=select,
                extras=extras,
                metadata=metadata,
                dry_run=dry_run,
            )


@no_garbage_collection()
def convert(
    sources: Sequence[Checkpoint],
    destination: Location,
    target: Writer,
    options: WriteOptions,
    edits: Edits,
    *,
    select: str | None = None,
    extras: Extras = "fail",
    metadata: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Write the tensors of `sources` to `destination`; nothing is there when it fails.

    Raises: UsageError for extras that would be kept nowhere; LossyError when the target cannot hold
    something, RefusedError when names collide or the destination is in the way, and what reading and writing
    raise.
    """
    if extras == "keep" and not (options.record and target.keeps_record):
        why = f"{target.name} has no place for one" if options.record else "it is left out"
        keep = Option("extras", "keep")
        raise UsageError(
            (keep, f" would not be used: it keeps values in the record, and {why}"),
            "",
            ("leave ", keep, " out"),
        )
    _refuse_sources(sources, destination, target)
    notes: list[str] = []
    num_before = sum(
        len(source.tensors) for source in sources
    )  # this walk of each tree bounds all later ones
    for source in sources:
        check_viewed(source.tensors.values())
    roots = [_selected(source, select, notes) for source in sources]
    edited = edit(_merged(roots, sources), edits)
    dropped = list(edited.dropped)
    for source, root in zip(sources, roots, strict=True):
        refuse(placeholders(source.weights_root, root), dropped, str(source.path))
    if len(sources) > 1 and any(_ADAPTER.search(name) for one in sources for name in one.tensors):
        notes.append(
            "an adapter's tensors (lora_A, lora_B) stay tensors of their own: "
            "peft's merge_and_unload adds them to the weights"
        )
    source = sources[0]
    root = _as_written(edited.root, target, notes)
    notes.extend(_made_dense(edited.dense))
    if target.holds is not None and select is None and len(sources) == 1 and extras != "drop":
        root = with_kept_values(root, source.record.extras if source.record is not None else None)
    if target.name == "pt" and select is None and is_alone(source) and [*root] == [ROOT_NAME]:
        root = root[ROOT_NAME]  # a tensor that is alone in its file stays it
    plan = Checkpoint(
        source.format,
        source.path,
        root,
        metadata={**(texts := _merged_texts(sources)), **(metadata or {})},
        record=_carried_record(sources, edits, edited.renamed, select),
        held=[held for source in sources for held in source.held],
    )
    check_holds(target, metadata or {}, plan.tensors, record=options.record)
    notes.extend(lost(target, texts, record=options.record))
    for one in sources:
        settle_left_out(_left_out(one, select, edits), extras, dropped, notes, str(one.path))
    plan = fit_extras(
        plan,
        target,
        extras,
        dropped,
        notes,
        has_record=options.record and target.keeps_record,
        model=lambda: _model_key(sources, select),
    )
    plan = with_signatures(plan, sources, edited.renamed, options, target, notes)
    if num_before and not plan.tensors:
        hint = ("loosen ", Option("select"), ", ", Option("only"), " or ", Option("drop"))
        raise RefusedError("nothing is left to write", str(source.path), hint)
    most = room(plan.source_bytes) * LISTED_TENSORS
    if len(plan.tensors) > most:
        raise LimitError("converted_tensors", most, len(plan.tensors), str(source.path))
    num_bytes = sum({entry.view: entry.num_bytes for entry in plan.tensors.values()}.values())
    result = Conversion(
        sources=[s.path for s in sources],
        destination=destination,
        source_formats=[s.format for s in sources],
        format=target.name,
        num_tensors=len(plan.tensors),
        num_bytes=num_bytes,
        free_bytes=_free_bytes(destination),
        dropped=dropped,
        renamed=edited.renamed,
        dense=edited.dense,
        notes=notes,
        not_copied=left_beside(sources, destination, target),
        is_plan=dry_run,
        signed_by=options.signer.names if options.signer is not None else (),
    )
    if not dry_run:
        written = target.write(plan, destination, options)
        write_beside(options, destination)
        notes.extend(written.notes)
        result = replace(result, checked=written.checked)
        for name, storage in edited.casts.items():
            if storage.num_overflowed:
                notes.append(f"{name}: {storage.num_overflowed} finite values became infinite")
    return result


def parse_size(text: str) -> int:
    """Bytes from `5GB`, `500MB`, `2GiB`, `200B`, or a bare number that is large enough to be of bytes.

    Raises: UsageError.
    """
    bare = text.strip()
    if bare.isdecimal() and 0 < int(bare) < MIN_BARE_BYTES:
        hint = f"did you mean {bare}GB? {bare}B is so many bytes"
        raise UsageError(f"{text!r} has no unit", Option("shard_size"), hint)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text.strip(), re.IGNORECASE)
    unit = (match.group(2) or "").lower() if match else ""
    base = 1024 if unit.endswith("i") else 1000
    size = int(float(match.group(1)) * base ** " kmgt".index(unit[:1] or " ")) if match else 0
    if size <= 0:
        raise UsageError(f"{text!r} is not a size", Option("shard_size"), "write 5GB, 500MB or 2GiB")
    return size


def num_bytes_of(sources: Sequence[Checkpoint]) -> int:
    """How many bytes of tensors there are to move, for a progress bar."""
    return sum(entry.num_bytes for source in sources for entry in source.tensors.values())


# --- what is taken ------------------------------------------------------------------------------------


def _selected(source: Checkpoint, select: str | None, notes: list[str]) -> Any:
    """The part of the tree that `--select` names; a whole pickled module is its state dict."""
    if select == MODEL:
        selection = select_model(source)
        if sentence := selection.sentence():
            notes.append(sentence)
        return selection.state_dict()
    if select == "optimizer":
        for key in OPTIMIZER_KEYS:
            if isinstance(source.weights_root, dict) and key in source.weights_root:
                return source.weights_root[key]
        raise UsageError(
            "the checkpoint holds no optimizer state under a well-known key",
            str(source.path),
            Option("select", "KEY.PATH"),
        )
    root = source.weights_root if select is None else lookup_path(source, select)
    if isinstance(root, Opaque) and root.shared:
        notes.append(f"took the state dict of a pickled {root.name}; its other attributes stay behind")
        return state_dict_of(root, beside=True)
    if isinstance(root, TensorEntry):
        return {root.name or "value": root}
    return root


def _left_out(source: Checkpoint, select: str | None, edits: Edits) -> Sequence[LeftOut]:
    """What the part that is taken of `source` holds and no tensor lists, less what is dropped by name."""
    where = select_model(source).where if select == MODEL else select or ""
    if select == "optimizer":
        where = next(key for key in OPTIMIZER_KEYS if key in source.weights_root)
    return [item for item in left_out_of(source, where) if not item.name or not is_dropped(item.name, edits)]


def _model_key(sources: Sequence[Checkpoint], select: str | None) -> str:
    """The key of the part that `--select model` would take; empty where it would take no part."""
    if select is not None or len(sources) > 1:
        return ""
    try:
        return select_model(sources[0]).where
    except PtsaveError:  # none is found, or several are
        return ""


def is_alone(source: Checkpoint) -> bool:
    """Whether the file holds one tensor and nothing around it."""
    return isinstance(source.weights_root, TensorEntry)


def _made_dense(dense: Mapping[str, str]) -> list[str]:
    """What became of tensors that were no plain ones, in words."""
    lines = []
    for kind, number in Counter(dense.values()).items():
        how = ", dequantized to float32" if kind == "quantized" else ""
        lines.append(f"{counted(number, f'{kind} tensor is', f'{kind} tensors are')} written dense{how}")
    return lines


def _as_written(root: Any, target: Writer, notes: list[str]) -> Any:
    """`root` with tensors as `target` can say them: conjugate and negative views as their values, those of
    subclasses as the plain tensors that they hold."""
    changed: dict[Any, TensorEntry] = {}
    kinds: dict[str, int] = {}

    def change(entry: TensorEntry) -> TensorEntry:
        if entry.kind in PLAIN_KINDS or (target.name == "pt" and entry.kind in UNRESOLVED):
            return entry
        kinds[entry.kind] = kinds.get(entry.kind, 0) + 1
        key = (entry.view, entry.kind)
        if key not in changed:
            changed[key] = resolved(entry) if entry.kind in UNRESOLVED else replace(entry, kind="tensor")
        return changed[key]

    made = map_tensors(root, change)
    for kind, count in kinds.items():
        how = "resolved: their values are written" if kind in UNRESOLVED else "written as plain tensors"
        such = "1 tensor" if count == 1 else f"{count} tensors"
        kind = kind.removeprefix(PARAMETER_)
        notes.append(f"{such} of the kind {kind} {'is' if count == 1 else 'are'} {how}")
    return made


def _merged(roots: Sequence[Any], sources: Sequence[Checkpoint]) -> Any:
    if len(roots) == 1:
        return roots[0]
    merged: dict[Any, Any] = {}
    for root, source in zip(roots, sources, strict=True):
        if not isinstance(root, dict):
            raise UsageError(
                "the checkpoint cannot be merged: it is not a dictionary",
                str(source.path),
                ("use ", Option("select")),
            )
        for key, value in root.items():
            if key in merged:
                raise RefusedError(
                    f"two sources have the key {key!r}",
                    str(source.path),
                    ("use ", Option("select"), ", ", Option("drop"), " or ", Option("rename")),
                )
            merged[key] = value
    return merged


def _merged_texts(sources: Sequence[Checkpoint]) -> dict[str, str]:
    """What the sources have beside their tensors; the first that has a key wins."""
    merged: dict[str, str] = {}
    for source in sources:
        merged.update({key: text for key, text in source.texts.items() if key not in merged})
    return merged


def _carried_record(
    sources: Sequence[Checkpoint], edits: Edits, renamed: Mapping[str, str], select: str | None
) -> Record | None:
    """The record of a lone source, its digests under the new names; a cast makes digests void."""
    record = sources[0].record
    if len(sources) > 1 or record is None:
        return None
    if edits.dtype is not None or select is not None:
        return replace(record, digests=None, aliases={})
    digests = record.digests
    if digests is not None:
        digests = Digests(
            digests.algorithm, {renamed.get(name, name): text for name, text in digests.tensors.items()}
        )
    return replace(record, digests=digests, aliases={})


def _refuse_sources(sources: Sequence[Checkpoint], destination: Location, target: Writer) -> None:
    """Raise RefusedError where `destination` is a source, holds one, or would become a part of one."""
    for source in sources:
        if isinstance(destination, Address):
            is_shared = isinstance(source.path, Address) and _share(source.path, destination, target)
        else:
            is_shared = isinstance(source.path, Path) and _share_on_disk(source.path, destination, target)
        if is_shared:
            raise RefusedError(
                "the destination is the source, or shares its folder; a source is never changed",
                str(destination),
                "name another destination, and move it there when you are content with it",
            )


def _share(source: Address, destination: Address, target: Writer) -> bool:
    if (source.scheme, source.host) != (destination.scheme, destination.host):
        return False
    read, written = source.key.strip("/"), destination.key.strip("/")
    is_in_source = written.rpartition("/")[0] == read
    return read == written or is_in_source or (target.is_folder and read.rpartition("/")[0] == written)


def _share_on_disk(source: Path, destination: Path, target: Writer) -> bool:
    if not source.exists():
        return False
    real = Path(os.path.realpath(destination))
    place = real if target.is_folder and real.is_dir() else real.parent
    folder = source if source.is_dir() else source.parent
    is_source = real.exists() and real.samefile(source)
    return is_source or (place.is_dir() and place.samefile(folder) and (source.is_dir() or place == real))


def _free_bytes(destination: Location) -> int | None:
    if isinstance(destination, Address):
        return None
    folder = Path(os.path.realpath(destination)).parent
    return shutil.disk_usage(folder).free if folder.is_dir() else 0
