"""Which weights an optimizer's states belong to: checked against their order, their shapes and their names.

An optimizer's state dict numbers the parameters in the order in which it was given them, and says no names
unless it was given these too (`param_names`). Beside a model whose parameters come in another order, or
another model, torch attaches each state to the wrong weights, and says nothing as long as the counts agree.

Source: `torch.optim.Optimizer.state_dict` and `load_state_dict`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, permutations
from math import prod

from ptsave.core.finding import Facts, Kind, Level
from ptsave.core.parts.select import strip_wrapper_names

Shape = tuple[int, ...]
Param = int | str
"""As a parameter group refers to a parameter."""

MAX_JOINED = 4
"""How many state dicts of one file an optimizer may be for (`chain(encoder.parameters(), …)`)."""


@dataclass(frozen=True)
class Weights:
    """What may be parameters of one model: a state dict in the file, or an architecture."""

    where: str
    """The path of the state dict, empty for the only one; or `the architecture`."""
    shapes: Mapping[str, Shape]
    is_ordered: bool
    """Whether they come in the order in which the model has its parameters."""


@dataclass(frozen=True)
class ParameterGroup:
    """One parameter group."""

    params: Sequence[Param]
    names: Sequence[str]
    """Of its parameters, in the same order; empty where the optimizer was not given them."""


@dataclass(frozen=True)
class Misfit:
    """What of an optimizer does not fit the weights; a finding but for where the optimizer is."""

    level: Level
    kind: Kind
    facts: Facts = field(default_factory=dict)
    places: tuple[str, ...] = ()
    count: int | None = None


@dataclass(frozen=True)
class Match:
    """How an optimizer's parameters fit the weights."""

    weights: Weights
    """Those that they were checked against."""
    misfits: tuple[Misfit, ...] = ()
    is_order_shown: bool = False
    """Whether the shapes or the names tell that the order is right."""
    num_alike: int = 0
    """Parameters that could be exchanged with another of the same shape, and nothing would show it."""


def match(
    groups: Sequence[ParameterGroup], shapes: Mapping[Param, Shape | None], known: Sequence[Weights]
) -> Match:
    """Check the parameters of `groups` against each of `known`, the likeliest first.

    `shapes`: of the weight that each parameter's state belongs to, None where the state does not show it.
    """
    if all(group.names for group in groups):
        return _by_names(groups, shapes, known)
    in_groups = [[shapes[param] for param in group.params] for group in groups]
    needed = Counter(shape for group in in_groups for shape in group if shape is not None)
    num_params = sum(map(len, in_groups))
    for weights in (*known, *_joined(known, needed, num_params)):
        if _fits(in_groups, weights):
            return Match(weights, (), *_order_shown(in_groups, weights))
    return Match(known[0], tuple(_misfits(groups, in_groups, known)))


# --- by shape and place -----------------------------------------------------------------------------------


def _joined(known: Sequence[Weights], needed: Counter[Shape], num_params: int) -> Iterator[Weights]:
    """Several models of a file one after the other, in any order, that have what is needed."""
    few = known[:MAX_JOINED]
    for number in range(2, len(few) + 1):
        for chosen in combinations(few, number):
            have = Counter(chain.from_iterable(part.shapes.values() for part in chosen))
            if have.total() < num_params or needed - have:
                continue
            for parts in permutations(chosen):
                shapes = {f"{i}.{name}": s for i, part in enumerate(parts) for name, s in part.shapes.items()}
                where = " and ".join(part.where for part in parts)
                yield Weights(where, shapes, all(part.is_ordered for part in parts))


def _fits(groups: Sequence[Sequence[Shape | None]], weights: Weights) -> bool:
    """Whether there are weights for all the parameters, in the groups' order if the weights have one."""
    have = list(weights.shapes.values())
    needed = Counter(shape for group in groups for shape in group if shape is not None)
    if sum(map(len, groups)) > len(have) or needed - Counter(have):
        return False
    return not weights.is_ordered or all(_is_subsequence(group, have) for group in groups)


def _is_subsequence(shapes: Sequence[Shape | None], have: Sequence[Shape]) -> bool:
    """Whether `have`, less some of them, are these shapes in this order; None fits any."""
    rest = iter(have)
    return all(any(shape in (None, one) for one in rest) for shape in shapes)


def _order_shown(groups: Sequence[Sequence[Shape | None]], weights: Weights) -> tuple[bool, int]:
    times = Counter(shape for group in groups for shape in group)
    if not weights.is_ordered or set(times) == {None}:
        return False, 0
    return True, sum(number for shape, number in times.items() if number > 1 or shape is None)


def _misfits(
    groups: Sequence[ParameterGroup], in_groups: Sequence[Sequence[Shape | None]], known: Sequence[Weights]
) -> Iterator[Misfit]:
    """Why they fit nothing, from the surest reason to the least sure."""
    weights = known[0]
    have = list(weights.shapes.values())
    params = [param for group in groups for param in group.params]
    flat = [shape for group in in_groups for shape in group]
    everywhere = {shape for one in known for shape in one.shapes.values()}
    strange = {shape: param for param, shape in zip(params, flat, strict=True) if shape is not None}
    strange = {shape: param for shape, param in strange.items() if shape not in everywhere}
    if strange:
        if all(_is_reduced(shape, everywhere) for shape in strange) or _is_flattened(flat, everywhere):
            yield Misfit("warn", Kind.SHAPES_UNLIKE)
            return
        shape, param = next(iter(strange.items()))
        yield Misfit("fail", Kind.NO_SUCH_SHAPE, {"param": param, "shape": str(list(shape))})
    elif len(params) > sum(len(one.shapes) for one in known):
        numbers = {"params": len(params), "weights": len(have)}
        yield Misfit("fail", Kind.TOO_MANY_PARAMETERS, numbers)
    elif excess := Counter(s for s in flat if s is not None) - Counter(have):
        shape, number = next(iter(excess.items()))
        facts = {"shape": str(list(shape))}
        if len(known) == 1:
            yield Misfit("fail", Kind.TOO_MANY_STATES, facts, count=number)
        else:
            yield Misfit("warn", Kind.MORE_STATES, facts, count=number)
    elif len(groups) == 1 and len(flat) == len(have):
        for param, found, (name, one) in zip(params, flat, weights.shapes.items(), strict=True):
            if found not in (None, one):
                shapes = {"shape": str(list(found or ())), "expected": str(list(one))}
                yield Misfit("fail", Kind.ANOTHER_ORDER, {"param": param, **shapes}, (name,))
                return
    else:
        # Whoever sorts parameters into groups, or leaves some out, may have meant their order.
        yield Misfit("warn", Kind.ORDER_UNLIKE)


def _is_reduced(shape: Shape, have: set[Shape]) -> bool:
    """Whether it is a weight's shape with fewer dimensions: one state a row, or all in one dimension."""
    return any(shape == one[: len(shape)] or (len(shape) == 1 and shape[0] == prod(one)) for one in have)


def _is_flattened(shapes: Sequence[Shape | None], have: set[Shape]) -> bool:
    """Whether they are pieces of one long vector, as FSDP and ZeRO cut the weights."""
    return all(shape is None or len(shape) == 1 for shape in shapes) and any(len(s) > 1 for s in have)


# --- by name ----------------------------------------------------------------------------------------------


def _by_names(
    groups: Sequence[ParameterGroup], shapes: Mapping[Param, Shape | None], known: Sequence[Weights]
) -> Match:
    params = [param for group in groups for param in group.params]
    clean, _ = strip_wrapper_names(name for group in groups for name in group.names)
    names = [clean[name] for group in groups for name in group.names]
    weights = max(known, key=lambda one: len(one.shapes.keys() & set(names)))
    found: list[Misfit] = []
    for param, name in zip(params, names, strict=True):
        shape, one = shapes[param], weights.shapes.get(name)
        if one is not None and shape not in (None, one) and not _is_reduced(shape or (), {one}):
            facts = {"shape": str(list(shape or ())), "expected": str(list(one))}
            found.append(Misfit("fail", Kind.STATE_SHAPE, facts, (name,)))
    missing = tuple(name for name in names if name not in weights.shapes)
    if missing:
        kind = Kind.NO_SUCH_NAMES if len(missing) > 1 else Kind.NO_SUCH_NAME
        found.append(Misfit("warn", kind, {"others": len(missing) - 1}, missing))
    by_number = any(isinstance(param, int) for param in params)
    if by_number and not found and weights.is_ordered and len(groups) == 1:
        named = set(names)
        expected = [name for name in weights.shapes if name in named]
        for param, name, wanted in zip(params, names, expected, strict=True):
            if name != wanted:
                facts = {"param": str(param), "expected": wanted}
                found.append(Misfit("fail", Kind.ANOTHER_NAME, facts, (name,)))
                break
    return Match(weights, tuple(found), is_order_shown=True)
