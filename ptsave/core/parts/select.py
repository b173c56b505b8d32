"""Finding the model's state dict inside a checkpoint, and the names that wrappers put in front of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ptsave.core.accounts import LeftOut, account
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.leaves import named_leaves, state_dict_of
from ptsave.core.names import hint_for
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.parts.candidates import OWN, Candidate, choose, is_state_dict, listed, own_part
from ptsave.core.tree import as_state_dict, dotted, items_of
from ptsave.errors import AmbiguousError, Option, UsageError

MODEL = "model"
"""What `--select` may be given for the model, wherever it is."""
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
    """Name here, of a tensor or of what is none → its name in the checkpoint."""
    stripped: tuple[str, ...] = ()
    """The wrapper prefixes that were removed."""
    others: tuple[str, ...] = ()
    """What else has weights in it, and was not taken, in words."""
    is_own: bool = False
    """Whether dictionaries with tensors lie beside the tensors, and were not taken."""

    def state_dict(self) -> OrderedDict[str, Any]:
        """All of it by name, with the versions of its modules."""
        return as_state_dict({**self.tensors, **self.extra}, self.metadata)

    def sentence(self) -> str:
        """What was taken, for a person; empty when there was nothing to choose."""
        parts = []
        place = f"under {self.where!r}" if self.where else "at the top"
        if self.where or self.is_own:
            parts.append(f"took the {'tensors' if self.is_own else 'state dict'} {place}")
            if self.others:
                parts[-1] += f" (not {listed(self.others)})"
        if self.stripped:
            parts.append("removed the wrapper prefix " + ", ".join(f"{p!r}" for p in self.stripped))
        return "; ".join(parts)


def select_model(
    checkpoint: Checkpoint, key: str | None = None, fits: Callable[[Selection], bool] | None = None
) -> Selection:
    """The model's state dict: under `key` where one is named, else where it is found. The key "model" of a
    checkpoint that has none so called stands for that, too, as `convert` has it.

    `fits` says whether a state dict is one of the model that it is for: it decides where several may be it.

    A key with a dot behind it is the tensors that lie there themselves, without the dictionaries beside them.
    An empty checkpoint is the state dict of a model without parameters and buffers.

    Raises: UsageError when there is none, or when `key` leads nowhere; AmbiguousError when several may be it.
    """
    others: tuple[str, ...] = ()
    is_own = False
    _ = checkpoint.tensors  # this walk of the tree bounds all others
    if key == MODEL:
        top = _children(checkpoint.weights_root)
        key = key if any(f"{name}.".startswith(f"{MODEL}.") for name in top) else None
    if key is not None:
        where, node = _lookup(checkpoint, key)
    else:
        if checkpoint.weights_root == {}:
            return Selection("", {})

        def is_fit(part: Candidate) -> bool:
            assert fits is not None
            return fits(_selection(checkpoint, part.where, part.node))

        found = choose(checkpoint.weights_root, str(checkpoint.path), is_fit if fits is not None else None)
        if found is None:
            raise UsageError(
                "the checkpoint holds no state dict that can be recognised",
                str(checkpoint.path),
                (
                    "name its key with ",
                    Option("select", "KEY.PATH"),
                    "; `ptsave inspect` lists what is there",
                ),
            )
        where, node, is_own = found[0].where, found[0].node, found[0].is_own
        others = tuple(part.words for part in found[1])
    selection = _selection(checkpoint, where, node)
    if not selection.tensors:
        raise UsageError(
            "the checkpoint holds no tensors",
            _place(checkpoint, where),
            ("choose another key with ", Option("select")),
        )
    return replace(selection, others=others, is_own=is_own)


def _selection(checkpoint: Checkpoint, where: str, node: Any) -> Selection:
    """The state dict `node`, without wrappers in its names."""
    selection = _named(where, node)
    if selection.metadata is None and node is checkpoint.root and checkpoint.record is not None:
        selection = replace(selection, metadata=checkpoint.record.module_versions)
    return strip_wrappers(selection)


@dataclass(frozen=True)
class Content:
    """What of a checkpoint is compared with another one."""

    tensors: Mapping[str, TensorEntry]
    data: Mapping[str, Any]
    """The leaves that are no tensors, by path."""
    num_left_out: int = 0
    """Tensors of the checkpoint that are not among them."""


def content(checkpoint: Checkpoint) -> Content:
    """All of a checkpoint, by its own names."""
    return Content(checkpoint.tensors, checkpoint.data)


def comparable(a: Checkpoint, b: Checkpoint, only_model: bool, key: str | None) -> tuple[Content, Content]:
    """What of both is compared: all of it, under names that do not depend on where the models lie.

    With `only_model`, or a `key` that chooses one in `a` (and in `b`, where it is there), nothing but the
    two models.

    Raises: UsageError or AmbiguousError where a model is asked for and is not found.
    """
    if not only_model and key is None:
        if a.tensors.keys() == b.tensors.keys():
            return content(a), content(b)
        return _with_names_of_model(a), _with_names_of_model(b)
    return _model_alone(a, select_model(a, key)), _model_alone(b, select_model(b, key_in(b, key)))


def _with_names_of_model(checkpoint: Checkpoint) -> Content:
    """All of a checkpoint, the model's own names first, where one is found and they are free."""
    try:
        selection = select_model(checkpoint)
    except (UsageError, AmbiguousError):
        return content(checkpoint)
    rename = _Renaming(selection)
    tensors = {rename(name): entry for name, entry in checkpoint.tensors.items()}
    if len(tensors) < len(checkpoint.tensors):
        return content(checkpoint)
    return Content(tensors, {rename(path): leaf for path, leaf in checkpoint.data.items()})


def _model_alone(checkpoint: Checkpoint, selection: Selection) -> Content:
    rename = _Renaming(selection)
    tensors = {rename(name): entry for name, entry in checkpoint.tensors.items() if rename.knows(name)}
    data = {rename(path): leaf for path, leaf in checkpoint.data.items() if rename.knows(path)}
    return Content(tensors, data, len(checkpoint.tensors) - len(tensors))


class _Renaming:
    """The names of a selection for what has others in its checkpoint, and for what lies inside of that."""

    def __init__(self, selection: Selection) -> None:
        self._names = {old: new for new, old in selection.original.items()}
        self._lengths = sorted({len(selection.original[name]) for name in selection.extra})

    def _front(self, name: str) -> str | None:
        if name in self._names:
            return name
        fronts = (name[:end] for end in self._lengths if name[end : end + 1] == ".")
        return next((front for front in fronts if front in self._names), None)

    def knows(self, name: str) -> bool:
        return self._front(name) is not None

    def __call__(self, name: str) -> str:
        front = self._front(name)
        return name if front is None else self._names[front] + name[len(front) :]


def key_in(checkpoint: Checkpoint, key: str | None) -> str | None:
    """`key` where it leads somewhere in `checkpoint`, else None: the model is to be found."""
    if key is None:
        return None
    try:
        _lookup(checkpoint, key)
    except UsageError:
        return None
    return key


def left_out_of(checkpoint: Checkpoint, where: str = "") -> Sequence[LeftOut]:
    """What the part of a checkpoint under the dotted key `where` holds and no tensor lists.

    Where ranks of a training have each its own of it, and no tensor there stands for all, these are too.
    """
    if not where:
        return checkpoint.accounts.left_out
    node = _lookup(checkpoint, where)[1]
    left = account(node, checkpoint.tensors.values(), (), checkpoint.dropped).left_out
    return (*left, *_of_ranks(checkpoint, where))


def _of_ranks(checkpoint: Checkpoint, where: str) -> Iterator[LeftOut]:
    if not (isinstance(checkpoint.root, dict) and "rank_values" in checkpoint.root):
        return
    for name, entry in checkpoint.tensors.items():
        rank, _, own = name.removeprefix("ranks.").partition(".")
        if name.startswith("ranks.") and own.startswith(f"{where}.") and own not in checkpoint.tensors:
            yield LeftOut(name, f"rank {rank}'s own; --select ranks.{rank}.{where} takes it", entry.num_bytes)


def strip_wrappers(selection: Selection) -> Selection:
    """The selection without the parts of names that DDP, torch.compile, FSDP and checkpointing add.

    Returns `selection` itself where two names would become one.
    """
    names = [*selection.tensors, *selection.extra]
    renamed, stripped = strip_wrapper_names(names)
    if not stripped:
        return selection
    metadata = selection.metadata
    if isinstance(metadata, Mapping):  # the innermost module of a name comes last, and counts
        old, new = next(iter(renamed.items()))
        num_in_front = without_wrappers(old).count(".") - new.count(".")  # `module.`
        metadata = {
            ".".join(without_wrappers(str(where)).split(".")[num_in_front:]): about
            for where, about in metadata.items()
        }
    return replace(_renamed(selection, renamed), metadata=metadata, stripped=stripped)


def under_prefix(
    selection: Selection, prefix: str, front: str = "", beside: Collection[str] = ()
) -> Selection:
    """The tensors whose names begin with `prefix`, with `front` in its place, and those `beside` them."""
    others = [name for name in selection.original if not name.startswith(prefix) and name not in beside]
    inside = without(selection, others)
    metadata = selection.metadata
    if isinstance(metadata, Mapping):
        metadata = {
            f"{front}{f'{where}.'.removeprefix(prefix)}".removesuffix("."): about
            for where, about in metadata.items()
            if f"{where}.".startswith(prefix)
        }
    names = {name: front + name.removeprefix(prefix) for name in inside.original if name not in beside}
    return replace(_renamed(inside, names), metadata=metadata)


def _renamed(selection: Selection, names: Mapping[str, str]) -> Selection:
    """The selection with its names replaced by `names` (old → new)."""
    return replace(
        selection,
        tensors={names.get(name, name): entry for name, entry in selection.tensors.items()},
        extra={names.get(name, name): value for name, value in selection.extra.items()},
        original={names.get(name, name): original for name, original in selection.original.items()},
    )


def without_wrappers(name: str) -> str:
    """The name of a tensor or a module without the parts that WRAPPERS have put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def named_as(selection: Selection, wanted: Iterable[str]) -> Selection:
    """The selection under the names `wanted`, where these contain wrapper parts themselves.

    A model that compiles a part of itself, or whose only child is called `module`, has names like those
    that were stripped.
    """
    plain, stripped = strip_wrapper_names(wanted)
    if not stripped:
        return selection
    own = {new: old for old, new in plain.items() if new in selection.tensors or new in selection.extra}
    if not own:
        return selection
    left = tuple(prefix for prefix in selection.stripped if prefix not in stripped)
    return replace(_renamed(selection, own), stripped=left)


def without(selection: Selection, names: Iterable[str]) -> Selection:
    """`selection` without some of its tensors and other values."""
    gone = set(names)
    if not gone:
        return selection
    return replace(
        selection,
        tensors={name: entry for name, entry in selection.tensors.items() if name not in gone},
        extra={name: value for name, value in selection.extra.items() if name not in gone},
        original={name: old for name, old in selection.original.items() if name not in gone},
    )


def strip_wrapper_names(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Old name → new name without wrappers, and the prefixes (with their dot) that were removed."""
    names = list(names)
    renamed = {name: without_wrappers(name) for name in names}
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
    node = checkpoint.weights_root
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
                f"the checkpoint has no key {rest!r}",
                _place(checkpoint, ".".join(taken)),
                hint_for(rest, children, "keys"),
            )
        node = children[match]
        taken.append(match)
        rest = rest[len(match) + 1 :]
    return key, node


def _children(node: Any) -> dict[str, Any]:
    items = node.children() if isinstance(node, Opaque) else items_of(node)
    return {str(key): value for key, value in items}


def _named(where: str, node: Any) -> Selection:
    if isinstance(node, Opaque) and node.shared:
        node = state_dict_of(node)
    if is_state_dict(node) and isinstance(node, dict):
        flat = list(node.items())
    else:
        flat = [(name or "", leaf) for name, leaf in named_leaves(node)]
        if isinstance(node, Opaque):
            flat = [(name, leaf) for name, leaf in flat if isinstance(leaf, TensorEntry)]
    tensors = {name: leaf.named(name) for name, leaf in flat if isinstance(leaf, TensorEntry)}
    return Selection(
        where,
        tensors,
        {name: leaf for name, leaf in flat if not isinstance(leaf, TensorEntry)},
        getattr(node, "_metadata", None),
        {name: dotted((name,), where) for name, _ in flat},
    )


def _place(checkpoint: Checkpoint, where: str) -> str:
    return f"{checkpoint.path}: {where}" if where else str(checkpoint.path)
