"""Finding the model's state dict inside a checkpoint, and the names that wrappers put in front of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ptsave.core.candidates import OWN, choose, is_state_dict, own_part
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nearest import hint_for
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.tree import leaves
from ptsave.errors import AmbiguousError, UsageError

OPTIMIZER_KEYS = ("optimizer_state_dict", "optimizer", "optimizer_states", "optim", "last_optimizer_state")

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth."""
PARALLEL_WRAPPER = "module"
"""What DataParallel and DDP put in front of all names."""


@dataclass(frozen=True)
class Selection:
    """A state dict inside a checkpoint."""

    where: str
    """The path of its key; empty for the whole checkpoint."""
    tensors: Mapping[str, TensorEntry]
    """By the names inside the state dict, wrapper prefixes removed."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Its values that are not tensors (`_extra_state`, quantization parameters), by name, as they nest."""
    metadata: Any = None
    """The `_metadata` that torch keeps module versions in, where the file has it."""
    original: Mapping[str, str] = field(default_factory=dict)
    """Name here → the tensor's name in the checkpoint."""
    stripped: tuple[str, ...] = ()
    """The wrapper prefixes that were removed."""
    others: tuple[str, ...] = ()
    """What else has weights in it, and was not taken, in words."""
    is_own: bool = False
    """Whether dictionaries with tensors lie beside the tensors, and were not taken."""

    def sentence(self) -> str:
        """What was taken, for a person; empty when there was nothing to choose."""
        parts = []
        place = f"under {self.where!r}" if self.where else "at the top"
        if self.where or self.is_own:
            parts.append(f"took the {'tensors' if self.is_own else 'state dict'} {place}")
            if self.others:
                parts[-1] += f" (not {', '.join(self.others)})"
        if self.stripped:
            parts.append("removed the wrapper prefix " + ", ".join(f"{p!r}" for p in self.stripped))
        return "; ".join(parts)


def select_model(checkpoint: Checkpoint, key: str | None = None) -> Selection:
    """The model's state dict: under `key` where one is named, else where it is found.

    A key with a dot behind it is the tensors that lie there themselves, without the dictionaries beside them.

    Raises: UsageError when there is none, or when `key` leads nowhere; AmbiguousError when several may be it.
    """
    others: tuple[str, ...] = ()
    is_own = False
    if key is not None:
        where, node = _lookup(checkpoint, key)
    else:
        found = choose(checkpoint.root, str(checkpoint.path))
        if found is None:
            raise UsageError(
                "holds no state dict that can be recognised",
                str(checkpoint.path),
                "name its key with --select KEY.PATH; `ptsave inspect` lists what is there",
            )
        where, node, is_own = found[0].where, found[0].node, found[0].is_own
        others = tuple(part.words for part in found[1])
    selection = _named(where, node, others, is_own)
    if not selection.tensors:
        raise UsageError("holds no tensors", _place(checkpoint, where), "choose another key with --select")
    return strip_wrappers(selection)


def comparable(a: Checkpoint, b: Checkpoint) -> tuple[Mapping[str, TensorEntry], Mapping[str, TensorEntry]]:
    """All tensors of both where they have the same names, else the models' state dicts in them."""
    if a.tensors.keys() == b.tensors.keys():
        return a.tensors, b.tensors
    return _model_or_all(a), _model_or_all(b)


def _model_or_all(checkpoint: Checkpoint) -> Mapping[str, TensorEntry]:
    try:
        return select_model(checkpoint).tensors
    except (UsageError, AmbiguousError):
        return checkpoint.tensors


def strip_wrappers(selection: Selection) -> Selection:
    """The same tensors without what DDP, torch.compile, FSDP and checkpointing put into their names.

    Left as it is where two names would become one.
    """
    names = [*selection.tensors, *selection.extra]
    renamed, stripped = strip_wrapper_names(names)
    if not stripped:
        return selection
    return Selection(
        selection.where,
        {renamed[name]: entry for name, entry in selection.tensors.items()},
        {renamed[name]: value for name, value in selection.extra.items()},
        selection.metadata,
        {renamed[name]: selection.original[name] for name in selection.tensors},
        stripped,
        selection.others,
        selection.is_own,
    )


def named_as(selection: Selection, wanted: Iterable[str]) -> Selection:
    """The same tensors under the names `wanted`, where these have wrappers in them themselves.

    A model that compiles a part of itself, or whose only child is called `module`, has names like those
    that were stripped.
    """
    plain, stripped = strip_wrapper_names(wanted)
    if not stripped:
        return selection
    own = {new: old for old, new in plain.items() if new in selection.tensors or new in selection.extra}
    if not own:
        return selection
    return Selection(
        selection.where,
        {own.get(name, name): entry for name, entry in selection.tensors.items()},
        {own.get(name, name): value for name, value in selection.extra.items()},
        selection.metadata,
        {own.get(name, name): selection.original[name] for name in selection.tensors},
        tuple(prefix for prefix in selection.stripped if prefix not in stripped),
        selection.others,
        selection.is_own,
    )


def strip_wrapper_names(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Old name → new name without wrappers, and the prefixes (with their dot) that were removed."""
    names = list(names)
    renamed = {name: ".".join(p for p in name.split(".") if p not in WRAPPERS) for name in names}
    stripped = [f"{w}." for w in WRAPPERS if any(w in name.split(".") for name in names)]
    prefix = f"{PARALLEL_WRAPPER}."
    while renamed and all(new.startswith(prefix) for new in renamed.values()):
        renamed = {old: new.removeprefix(prefix) for old, new in renamed.items()}
        if prefix not in stripped:
            stripped.insert(0, prefix)
    if len(set(renamed.values())) != len(names) or "" in renamed.values():
        return {name: name for name in names}, ()
    return renamed, tuple(stripped)


def lookup_path(checkpoint: Checkpoint, key: str) -> Any:
    """The node under the dotted `key`.

    Raises: UsageError with the nearest key when it leads nowhere.
    """
    return _lookup(checkpoint, key)[1]


def _lookup(checkpoint: Checkpoint, key: str) -> tuple[str, Any]:
    node = checkpoint.root
    rest = key
    if key.endswith(OWN) and key not in _children(node):
        where = key.removesuffix(OWN)
        node = _lookup(checkpoint, where)[1]
        return where, own_part(node) if isinstance(node, dict) else node
    taken: list[str] = []
    while rest:
        children = _children(node)
        # Keys may hold dots themselves, so the longest key that fits is taken.
        match = max((k for k in children if rest == k or rest.startswith(f"{k}.")), key=len, default=None)
        if match is None:
            flat = {k: v for k, v in children.items() if k.startswith(f"{rest}.")}
            if flat:
                return key, {k.removeprefix(f"{rest}."): v for k, v in flat.items()}
            raise UsageError(
                f"has no key {rest!r}",
                _place(checkpoint, ".".join(taken)),
                hint_for(rest, children, "keys"),
            )
        node = children[match]
        taken.append(match)
        rest = rest[len(match) + 1 :]
    return key, node


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, dict):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return {str(i): value for i, value in enumerate(node)}
    if isinstance(node, Opaque):
        return {str(key): value for key, value in node.children()}
    return {}


def _named(where: str, node: Any, others: tuple[str, ...], is_own: bool = False) -> Selection:
    if is_state_dict(node) and isinstance(node, dict):
        flat = list(node.items())
    else:
        flat = [(".".join(map(str, path)), leaf) for path, leaf in leaves(node)]
        if isinstance(node, Opaque):  # a module's plain attributes are no part of its state dict
            flat = [(name, leaf) for name, leaf in flat if isinstance(leaf, TensorEntry)]
    tensors = {name: leaf.named(name) for name, leaf in flat if isinstance(leaf, TensorEntry)}
    return Selection(
        where,
        tensors,
        {name: leaf for name, leaf in flat if not isinstance(leaf, TensorEntry)},
        getattr(node, "_metadata", None),
        {name: f"{where}.{name}" if where else name for name in tensors},
        (),
        others,
        is_own,
    )


def _place(checkpoint: Checkpoint, where: str) -> str:
    return f"{checkpoint.path}: {where}" if where else str(checkpoint.path)
