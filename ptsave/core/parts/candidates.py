"""Which of the dictionaries in a checkpoint is the model's state dict, and when no one can tell."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from ptsave.core.leaves import named_leaves
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.tree import are_scalars, as_state_dict, dotted, is_scalar, items_of, walk
from ptsave.errors import AmbiguousError, Option

MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "params_ema",
    "weights",
    "ema",
    "ema_state_dict",
    "model_ema",
    "state",
)
"""Keys that training code keeps the one model's state dict under, the likeliest first."""
EXTRA_STATE = ("_extra_state", "_packed_params")
"""How the keys of what is not a tensor end: a module's own extra entry, a quantized layer's weight and bias.
Source: torch.nn.modules.module, torch.ao.nn.quantized.modules.linear."""
MAX_PARTS = 1000
"""Parts with weights in them past which nothing says which is the model's."""
MAX_BESIDE = 10_000
"""Nodes that are looked at in a value beside tensors: what a module keeps there is small."""
OWN = "."
"""Behind a key: the tensors that lie there themselves, without the dictionaries beside them."""

_AVERAGE = re.compile(r"(?i)(^|[._-])(ema|swa|avg|averaged?|averaging|shadow|polyak)([._-]|$)")
"""Names of averages of weights over time."""
_TRAINING = re.compile(r"optim|sched|grad_?scaler|^(scaler|.*rng|random)(_states?)?$", re.IGNORECASE)
"""Keys of optimizers, schedulers, scalers and random states: what has tensors and is not a model."""


@dataclass(frozen=True)
class Candidate:
    """A part of a checkpoint that holds weights."""

    where: str
    """The path of its key; empty for the root."""
    node: Any
    """The state dict, a pickled module, or a container of several."""
    is_known: bool
    """Whether the keys that lead there are a model's."""
    is_own: bool = False
    """Whether other dictionaries with tensors lie beside its own tensors."""
    can_be_taken: bool = True

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """Its tensors by the names inside of it."""
        if isinstance(self.node, TensorEntry):
            return {"": self.node}
        if isinstance(self.node, dict) and self.can_be_taken:
            return {str(key): v for key, v in self.node.items() if isinstance(v, TensorEntry)}
        return {name or "": v for name, v in named_leaves(self.node) if isinstance(v, TensorEntry)}

    @cached_property
    def num_elements(self) -> int:
        return sum(entry.num_elements for entry in self.entries.values())

    @property
    def is_average(self) -> bool:
        """Whether its name says that it is an average of a model's weights over time, or the names in a
        container say so of all weights in it (Lightning's `callbacks`)."""
        if self.can_be_taken or is_average(self.where):
            return is_average(self.where)
        weights = [name for name, entry in self.entries.items() if _is_weight(entry)]
        return bool(weights) and all(map(is_average, weights))

    @property
    def words(self) -> str:
        """How a person names it."""
        if not self.is_own:
            return repr(self.where)
        return f"the tensors beside it at {self.where!r}" if self.where else "the tensors at the top"

    @property
    def key(self) -> str:
        """What chooses it."""
        return f"{self.where}{OWN}" if self.is_own else self.where

    def outweighs(self, other: Candidate) -> bool:
        """Whether it has as many tensors as `other`, and as many elements."""
        return len(self.entries) >= len(other.entries) and self.num_elements >= other.num_elements

    def is_copy_of(self, other: Candidate) -> bool:
        """Whether it holds all that `other` holds, name by name and shape by shape, or more."""
        mine = {_plain(name): entry.shape for name, entry in self.entries.items()}
        return all(mine.get(_plain(name)) == entry.shape for name, entry in other.entries.items())

    def is_same_as(self, other: Candidate) -> bool:
        """Whether both are the same tensors of the same storages."""
        mine, its = self.entries, other.entries
        return mine.keys() == its.keys() and all(mine[name].view == its[name].view for name in mine)

    def is_above(self, other: Candidate) -> bool:
        """Whether `other` lies in one of the dictionaries beside its tensors."""
        return self.is_own and (not self.where or other.where.startswith(f"{self.where}."))


def _plain(name: str) -> str:
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def is_average(name: str) -> bool:
    """Whether a key says that what is under it is an average of the weights that are trained."""
    return _AVERAGE.search(name) is not None


def choose(
    root: Any, place: str, fits: Callable[[Candidate], bool] | None = None
) -> tuple[Candidate, tuple[Candidate, ...]] | None:
    """The model's state dict, and the other parts with weights in them; None where there is none.

    Names come first: a key that is a model's, averages only where there is nothing else that they may be
    averages of. But what is taken has as many tensors as anything beside it and is as large: where a smaller
    one has the better name, and where two have equal names, nothing tells which is meant, but the model:
    `fits` says of a state dict whether its keys and shapes are those of the model, and where that is so of
    one alone, it is taken.

    Raises: AmbiguousError naming those that it may be.
    """
    if is_state_dict(root) or isinstance(root, TensorEntry):
        return Candidate("", root, True), ()
    if not isinstance(root, dict):
        return None
    found = list(islice(_parts(root, "", True, set()), MAX_PARTS + 1))
    if len(found) > MAX_PARTS:
        raise _ambiguous(found, place)
    takable = [part for part in found if part.can_be_taken or (fits is not None and is_state_dict(part.node))]
    if not takable:
        return None
    best = _by_rules(found, place) if fits is None else _fitting(found, place, fits)
    return (best, tuple(part for part in found if part is not best)) if best is not None else None


def _by_rules(found: list[Candidate], place: str) -> Candidate:
    """Raises: AmbiguousError."""
    main = [part for part in found if not part.is_average]
    averages = [part for part in found if part.can_be_taken and part.is_average]
    if any(part.can_be_taken for part in main):
        best = _best(main, place)
        rivals = [part for part in averages if _is_of_another(part, best)]
        larger = [part for part in rivals if best.is_above(part) and part.outweighs(best)]
        if len(rivals) == len(larger) == 1:
            best, rivals = larger[0], []
    else:
        best = _best(averages, place)
        rivals = [part for part in main if part.outweighs(best)]
    if rivals:
        raise _ambiguous([best, *rivals], place)
    return best


def _is_of_another(average: Candidate, best: Candidate) -> bool:
    """Whether `average` is one of other weights than `best`, which may then not be a model at all."""
    if best.is_own:
        return not best.outweighs(average) and not average.is_copy_of(best)
    return not (best.is_known or average.is_copy_of(best) or best.is_copy_of(average))


def _fitting(found: list[Candidate], place: str, fits: Callable[[Candidate], bool]) -> Candidate | None:
    """What the rules name where it fits, or where nothing does; else the only part that does.

    Averages count only where the rules name several.

    Raises: AmbiguousError.
    """
    best: Candidate | None = None
    unclear: AmbiguousError | None = None
    try:
        best = _by_rules(found, place) if any(part.can_be_taken for part in found) else None
    except AmbiguousError as error:
        unclear = error
    if best is not None and (len(found) == 1 or fits(best)):
        return best
    others = [part for part in found if part is not best and is_state_dict(part.node)]
    fitting = [part for part in others if not part.is_average and fits(part)]
    if not fitting and unclear is not None:
        fitting = [part for part in others if part.is_average and fits(part)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise _ambiguous(fitting, place)
    if unclear is not None:
        raise unclear
    return best


def _best(parts: list[Candidate], place: str) -> Candidate:
    """Raises: AmbiguousError."""
    order = {key: i for i, key in enumerate(MODEL_KEYS)}
    ranked = sorted(
        (part for part in parts if part.can_be_taken),
        key=lambda part: (not part.is_known, part.is_own, [order.get(k, 99) for k in part.where.split(".")]),
    )
    best = ranked[0]
    for part in ranked[1:]:
        is_equal = part.is_above(best) or (part.is_known and best.is_known and not best.outweighs(part))
        if is_equal and part.outweighs(best):
            best = part
    rivals = [part for part in parts if part is not best and _is_rival(part, best)]
    if rivals:
        raise _ambiguous([best, *rivals], place)
    return best


def _ambiguous(parts: list[Candidate], place: str) -> AmbiguousError:
    return AmbiguousError(
        f"the checkpoint holds more than one state dict: {listed(part.words for part in parts)}",
        place,
        ("choose with ", Option("select", "KEY.PATH"), f": {listed(repr(part.key) for part in parts)}"),
        candidates=[part.key for part in parts],
    )


def _is_rival(part: Candidate, best: Candidate) -> bool:
    """Whether `part` may be what is meant as well as `best`."""
    if part.is_same_as(best):
        return False
    if best.is_above(part) or part.is_above(best):
        return not best.outweighs(part)
    if best.is_known and not part.is_known:
        return not best.outweighs(part) and not part.is_copy_of(best)
    return not best.is_known or not best.outweighs(part) or part.outweighs(best)


def _parts(node: dict[Any, Any], where: str, is_known: bool, met: set[int]) -> Iterator[Candidate]:
    """What holds weights in `node`, a container of several things, and in the model's keys in it."""
    met.add(id(node))
    own: Any = own_part(node)
    if any(map(_is_weight, own.values())):
        yield Candidate(where, own, is_known, is_own=True)
    for key, child in node.items():
        if isinstance(child, TensorEntry) or is_scalar(child):
            continue
        if id(child) in met or _is_training(key, child):
            continue
        path = dotted((key,), where)
        knows = is_known and key in MODEL_KEYS
        if is_state_dict(child):
            if knows or _holds(child, _is_weight):
                yield Candidate(path, child, knows, can_be_taken=knows or not where)
        elif knows and isinstance(child, dict):
            yield from _parts(child, path, True, met)
        elif _holds(child, _is_weight):
            yield Candidate(path, child, False, can_be_taken=False)


def own_part(node: dict[Any, Any]) -> OrderedDict[Any, Any]:
    """The tensors that lie in `node` itself, and what modules keep beside them."""
    kept = (
        (key, value)
        for key, value in node.items()
        if isinstance(value, TensorEntry) or str(key).endswith(EXTRA_STATE)
    )
    return as_state_dict(kept, getattr(node, "_metadata", None))


def is_state_dict(node: Any) -> bool:
    """Whether `node` maps names to tensors and to little else (`_extra_state`, scalars)."""
    if isinstance(node, Opaque):
        return node.shared
    if not isinstance(node, dict) or not node or not all(isinstance(key, str) for key in node):
        return False
    others = [key for key, value in node.items() if not isinstance(value, TensorEntry)]
    return len(others) < len(node) and not any(
        _holds(node[key], _is_tensor, MAX_BESIDE) for key in others if not key.endswith(EXTRA_STATE)
    )


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, TensorEntry)


def _is_weight(leaf: Any) -> bool:
    """Whether `leaf` is what weights are: floating-point or quantized, and no single number."""
    return isinstance(leaf, TensorEntry) and bool(leaf.shape) and leaf.dtype.is_float


def _is_training(key: Any, node: Any) -> bool:
    """Whether `node` is a part of a training's state that is not a model."""
    return _TRAINING.search(str(key)) is not None or (isinstance(node, dict) and "param_groups" in node)


def _holds(root: Any, wanted: Callable[[Any], bool], most: int | None = None) -> bool:
    """Whether what `wanted` accepts lies in a container, or a module, but for optimizers and their kin.

    A walk that goes beyond `most` nodes is taken to find some.
    """
    if most is None:
        return any(wanted(node) for _, node in walk(root, _of_tensors))
    nodes = enumerate(walk(root, _beside_training), 1)
    return any(wanted(node) or number > most for number, (_, node) in nodes)


def _of_tensors(node: Any) -> Iterable[tuple[Any, Any]]:
    """`_beside_training`, but for plain data, of which a file may have millions in one container."""
    if isinstance(node, (list, tuple)) and are_scalars(node):
        return ()
    if isinstance(node, dict) and are_scalars(node.values()):
        return ()
    return _beside_training(node)


def _beside_training(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, dict):
        return [
            (key, child) for key, child in node.items() if is_scalar(child) or not _is_training(key, child)
        ]
    if isinstance(node, Opaque):
        return node.children() if node.shared else ()
    return items_of(node)


def listed(words: Iterable[str]) -> str:
    """The words with commas, the first few of them where they are many."""
    shown = list(words)
    return ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "")
