"""Editing the tree of a checkpoint on its way from one file to another: select, rename, cast."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptsave.core.checkpoint import ROOT_NAME
from ptsave.core.dtypes import DType, parse_dtype
from ptsave.core.leaves import named_leaves, state_dict_of
from ptsave.core.names import expect_matches, matches
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.parts.candidates import is_state_dict
from ptsave.core.parts.naming import Naming, rename_parameters, renames_of
from ptsave.core.parts.packed import packed_beside
from ptsave.core.parts.training import has_param_groups
from ptsave.core.tree import GONE, are_scalars, dotted, rewrite, with_items
from ptsave.core.values.cast import CASTABLE, CastStorage, can_cast, cast
from ptsave.core.values.gather import laid_out
from ptsave.errors import LimitError, LossyError, Option
from ptsave.formats.kinds.dense import Densifier, can_be_dense, kind_of
from ptsave.formats.kinds.objects import is_tensor_object
from ptsave.formats.programs.torchscript import ScriptObject


@dataclass(frozen=True)
class Edits:
    """What to change. Globs see whole dotted names; prefixes and renames, names inside a state dict."""

    only: Sequence[str] = ()
    drop: Sequence[str] = ()
    strip_prefix: str | None = None
    rename: Sequence[tuple[re.Pattern[str], str]] = ()
    dtype: DType | None = None
    """What floating-point tensors are cast to."""
    contiguous: bool = False
    """Whether strided views are laid out row by row."""
    dense: bool = False
    """Whether sparse and quantized tensors become plain ones, and views of a bit their values."""

    @property
    def changes_names(self) -> bool:
        return self.strip_prefix is not None or bool(self.rename)


@dataclass
class Edited:
    """An edited tree, and what the edits did."""

    root: Any
    dropped: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    casts: dict[str, CastStorage] = field(default_factory=dict)
    """The cast tensors, by their names before renaming; each knows what overflowed once it was read."""
    dense: dict[str, str] = field(default_factory=dict)
    """What became a plain tensor, by its name before renaming, and what it was."""
    _densifier: Densifier = field(default_factory=Densifier)
    _changed: dict[Any, TensorEntry] = field(default_factory=dict)

    def change(self, entry: TensorEntry, edits: Edits, path: str) -> TensorEntry:
        """`entry` cast and laid out as asked; tied entries stay tied."""
        if edits.dtype is not None and can_cast(entry.dtype) and entry.dtype != edits.dtype:
            changed = self._changed.get(entry.view) or cast(entry, edits.dtype)
            if isinstance(changed.storage, CastStorage):
                self.casts[path] = changed.storage
        elif edits.contiguous and not entry.is_contiguous:
            changed = self._changed.get(entry.view) or laid_out(entry)
        else:
            return entry
        self._changed[entry.view] = changed
        return changed

    def made_dense(self, leaf: Any, path: str) -> TensorEntry:
        """A leaf that can be dense as a plain tensor."""
        try:
            made = self._densifier.dense(leaf)
        except (LossyError, LimitError) as error:
            error.where = error.where or repr(path or ROOT_NAME)
            raise
        self.dense[path or ROOT_NAME] = kind_of(leaf)
        return made


def parse_edits(
    only: Sequence[str] | None,
    drop: Sequence[str] | None,
    strip_prefix: str | None,
    rename: Sequence[str] | Mapping[str, str] | None,
    dtype: str | None,
    contiguous: bool,
    dense: bool = False,
) -> Edits:
    """The edits that `convert` is asked for; `rename`: texts as its flag takes them, or pattern → text.

    Raises: UsageError.
    """
    return Edits(
        only=only or (),
        drop=drop or (),
        strip_prefix=strip_prefix,
        rename=renames_of(rename or ()),
        dtype=None if dtype is None else parse_dtype(dtype, Option("dtype"), CASTABLE, "cannot cast to"),
        contiguous=contiguous,
        dense=dense,
    )


def edit(root: Any, edits: Edits) -> Edited:
    """A new tree with `edits` applied. Pickled modules become their state dicts.

    Raises: RefusedError when two tensors would get one name; UsageError when a glob or a prefix is nowhere.
    """
    result = Edited(None)
    naming = Naming(edits.strip_prefix, edits.rename)
    optimizers: list[int] = []
    """How deep the optimizers lie that are being copied."""
    seen: list[str] = []
    """What `--only` and `--drop` may name."""

    def enter(path: Sequence[Any], node: Any) -> Any:
        if isinstance(node, TensorEntry) or is_tensor_object(node):
            name = dotted(path)
            if edits.only or edits.drop:
                seen.append(name)
            if is_dropped(name, edits):
                result.dropped.append(name)
                return GONE
            return result.made_dense(node, name) if edits.dense and can_be_dense(node) else node
        if path and edits.drop and _is_leaf(node):
            name = dotted(path)
            seen.append(name)
            if matches(name, edits.drop):
                result.dropped.append(name)
                return GONE
        if isinstance(
            node, ScriptObject
        ):  # outside of TorchScript's files, only what it is made of can be kept
            node = node.state
        if edits.changes_names and has_param_groups(node):
            optimizers.append(len(path))
        return state_dict_of(node, beside=True) if isinstance(node, Opaque) and node.shared else node

    def leaf(path: Sequence[Any], node: Any) -> Any:
        return result.change(node, edits, dotted(path)) if isinstance(node, TensorEntry) else node

    def leave(path: Sequence[Any], node: Any, made: Any) -> Any:
        is_inside = bool(optimizers)
        if is_inside and optimizers[-1] == len(path):
            optimizers.pop()
        if path and isinstance(node, (dict, list, tuple)) and node and not made:  # all of it was dropped
            return GONE
        if not isinstance(node, dict) or not edits.changes_names or is_inside or not is_state_dict(node):
            return made
        where = dotted(path)
        names = naming.of_state_dict([key for key in node if key in made], where)
        result.renamed |= {
            dotted((key,), where): dotted((name,), where) for key, name in names.items() if name != key
        }
        return with_items(node, ((names.get(key, key), value) for key, value in made.items()))

    # What is shared may be dropped at one place alone.
    result.root = rewrite(root, leaf, enter=enter, leave=leave, once=False, keeps_scalars=not edits.drop)
    expect_matches(edits.only, seen, Option("only"))
    expect_matches(edits.drop, seen, Option("drop"))
    _refuse_scaled(root, result)
    if edits.changes_names:
        result.renamed |= rename_parameters(result.root, naming)
        naming.expect_used()
    return result


def _refuse_scaled(root: Any, result: Edited) -> None:
    """Raise LossyError where weights that are packed, or their scales, were to be cast."""
    if not result.casts:
        return
    tensors = {name or "": leaf for name, leaf in named_leaves(root) if isinstance(leaf, TensorEntry)}
    beside = packed_beside(tensors)
    touched = [name for name in result.casts if name in beside]
    if touched:
        name = touched[0]
        more = f" and {len(touched) - 1} more" if len(touched) > 1 else ""
        raise LossyError(
            f"a cast would change {name!r}{more} without {beside[name]!r}: they are one quantized weight",
            Option("dtype"),
            (
                "dequantize with the library that packed them, or leave them out with ",
                Option("drop"),
                " or ",
                Option("only"),
            ),
            scaled=touched,
        )


def _is_leaf(node: Any) -> bool:
    """Whether `node` is one value by its path: no container of others, and no module."""
    if isinstance(node, dict):
        return not node
    if isinstance(node, (list, tuple)):
        return are_scalars(node)
    return not (isinstance(node, Opaque) and node.shared)


def is_dropped(path: str, edits: Edits) -> bool:
    """Whether `--only` and `--drop` leave out what has the name `path`."""
    return (bool(edits.only) and not matches(path, edits.only)) or matches(path, edits.drop)
