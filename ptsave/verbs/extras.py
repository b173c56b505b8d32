"""`--extras`: what becomes of values that a target format cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ptsave.core.accounts import Extras
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import counted
from ptsave.core.leaves import named_leaves
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.record import Record
from ptsave.core.tree import GONE, dotted, map_leaves, rewrite
from ptsave.errors import LossyError, Option, Text
from ptsave.formats.kinds.dense import can_be_dense
from ptsave.formats.kinds.objects import META, NESTED, TensorSubclass, is_tensor_object, parameter_data
from ptsave.formats.kinds.packed import is_packed
from ptsave.formats.writers import Writer
from ptsave.verbs.jsonable import jsonable

MAX_LISTED = 12
"""How many names an error lists."""


def fit_extras(
    plan: Checkpoint,
    target: Writer,
    extras: Extras,
    dropped: list[str],
    notes: list[str],
    *,
    has_record: bool,
    model: Callable[[], str],
) -> Checkpoint:
    """`plan` with only what the target holds, as `extras` has it.

    `has_record`: whether a record is written, which "keep" keeps values in. `model`: gives the key of the
    model's state dict inside `plan`; empty where the whole is it, or none is.

    Raises: LossyError naming what does not fit.
    """
    if extras == "drop":
        plan = _without_classes(plan, dropped)
    if not plan.data or (target.holds is not None and all(map(target.holds, plan.data.values()))):
        return plan
    held, misfits = dict(plan.tensors), dict(plan.data)
    gone: list[str] = []
    if target.holds is not None:
        held, misfits = _held(plan.root, target.holds, extras == "keep")
        gone = [name for name, leaf in misfits.items() if isinstance(leaf, TensorEntry)]
    elif extras == "drop":  # the parts of a sparse or quantized tensor are no weights without the rest
        of_objects = _inside(misfits, plan.tensors)
        held = {name: entry for name, entry in held.items() if name not in of_objects}
        gone = [name for name in plan.tensors if name in of_objects]
        dropped.extend(gone)
    if extras == "fail":
        raise LossyError(
            f"{target.name} cannot hold {len(misfits)} of its values: {_in_words(misfits)}",
            str(plan.path),
            _hint(misfits, has_record, model()),
            extras=list(misfits),
        )
    if extras == "keep":
        record = plan.record or Record()
        values = counted(len(misfits), "value that is not a tensor", "values that are not tensors")
        kept = {name: jsonable(leaf) for name, leaf in misfits.items()}
        notes.append(f"kept {values} as JSON in the record")
        plan = replace(plan, record=replace(record, extras=kept))
    else:
        dropped.extend(misfits)
        if gone:
            tensors = counted(len(gone), "tensor is", "tensors are")
            notes.append(
                f"{tensors} left out, as parts of tensors that {target.name} cannot hold: {_listed(gone)}"
            )
    return replace(plan, root=held)


def _listed(names: Sequence[str]) -> str:
    more = [f"… {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return ", ".join([*names[:MAX_LISTED], *more])


def _held(root: Any, holds: Callable[[Any], bool], keep: bool) -> tuple[Any, dict[str, Any]]:
    """A copy of `root` with what `holds` accepts, and the other leaves by their paths.

    The tensors inside an object that goes stay, under the names that they have; those of a tensor that lies
    there as an object (sparse, quantized) only with `keep`, since they are no weights without the rest.
    """
    misfits: dict[str, Any] = {}
    met: set[int] = set()

    def leaf(path: Sequence[Any], node: Any) -> Any:
        if isinstance(node, TensorEntry) or holds(node):
            return node
        name = dotted(path)
        misfits[name] = node
        if id(node) in met:  # its contents are listed once, however often it is met
            return GONE
        met.add(id(node))
        stay = keep or not (is_tensor_object(node) or is_packed(node))
        tensors = {}
        for inner, value in named_leaves(node):
            if stay and isinstance(value, TensorEntry):
                tensors[inner or ""] = value
            elif inner is not None:
                misfits[f"{name}.{inner}" if name else inner] = value
        return tensors or GONE

    held = rewrite(root, leaf, once=False)
    return {} if held is GONE else held, misfits


def _without_classes(plan: Checkpoint, dropped: list[str]) -> Checkpoint:
    """`plan` with the plain tensors of subclasses; what their classes add to them is dropped."""
    if not any(isinstance(leaf, TensorSubclass) for leaf in plan.data.values()):
        return plan
    root = map_leaves(plan.root, lambda leaf: leaf.args[0] if isinstance(leaf, TensorSubclass) else leaf)
    bare = replace(plan, root=root)
    views = {entry.view for entry in bare.tensors.values()}
    dropped.extend(name for name in plan.data if name not in bare.data and name not in bare.tensors)
    dropped.extend(name for name, entry in plan.tensors.items() if entry.view not in views)
    return bare


def _inside(misfits: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Those of `names` that belong to a tensor which lies in the tree as an object: sparse, quantized, …"""
    objects = {name for name, leaf in misfits.items() if is_tensor_object(leaf) or is_packed(leaf)}
    return {name for name in names if objects and not objects.isdisjoint(_above(name))}


def _above(name: str) -> Iterator[str]:
    return (name[:at] for at, char in enumerate(name) if char == ".")


def _hint(misfits: Mapping[str, Any], has_record: bool, model: str) -> Text:
    """What to do about what does not fit: each way that is named leaves nothing that does not."""
    leaves = misfits.values()
    is_dense, is_subclass = any(map(can_be_dense, leaves)), any(isinstance(x, TensorSubclass) for x in leaves)
    objects = [leaf for leaf in leaves if is_tensor_object(leaf) and not can_be_dense(leaf)]
    inside = _inside(misfits, misfits)
    others = [x for name, x in misfits.items() if name not in inside and not isinstance(x, TensorSubclass)]
    is_more = any(not can_be_dense(leaf) for leaf in others)
    drop, keep = Option("extras", "drop"), Option("extras", "keep")
    apart: Text = ("choose ",)
    if model and not any(name.startswith(f"{model}.") for name in misfits):
        apart = ("take the weights alone with ", Option("select", "model"), ", or choose ")
    if is_dense and (is_more or is_subclass):
        both = (Option("dense", True), " and ", drop)
        return (
            *apart,
            *both,
            ": sparse and quantized tensors are written as plain ones, and the rest left out",
        )
    if is_dense:
        plain = (Option("dense", True), ", which writes sparse and quantized tensors as plain ones; ")
        return (*apart, *plain, drop, " leaves them out")
    if is_subclass:
        return (
            *apart,
            drop,
            ": it writes the plain tensors of subclasses, without what their classes add to them",
        )
    if objects:
        kinds = sorted({_KINDS[leaf.name] for leaf in map(parameter_data, objects)})
        return (*apart, drop, f": it leaves them out; a .pt holds {' and '.join(kinds)}")
    return (*apart, drop, " or ", keep) if has_record else (*apart, drop)


_KINDS = {NESTED: "nested tensors", META: "tensors without values"}


def _in_words(misfits: Mapping[str, Any]) -> str:
    """The values by the key that they lie under, inert objects with their class: `epoch, opt (12 values)`."""
    tops: dict[str, list[Any]] = {}
    for name, leaf in misfits.items():
        tops.setdefault(name.partition(".")[0], []).append(leaf)
    words = []
    for top, values in list(tops.items())[:MAX_LISTED]:
        kinds = [leaf.name for leaf in values if isinstance(leaf, (Opaque, Global))]
        inside = kinds[:1] if kinds else []
        inside += [f"{len(values)} values"] if len(values) > 1 else []
        words.append(f"{top} ({', '.join(inside)})" if inside else top)
    more = [f"… {len(tops) - MAX_LISTED} more"] if len(tops) > MAX_LISTED else []
    return ", ".join(words + more)
