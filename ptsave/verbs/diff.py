"""What differs between two checkpoints, whatever their formats: names, shapes, dtypes, values, ties, data."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import eq, is_
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint, check_viewed
from ptsave.core.finding import counted
from ptsave.core.names import html_table
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.parts.candidates import EXTRA_STATE
from ptsave.core.parts.select import Content, content
from ptsave.core.storage import Storage
from ptsave.core.tree import SCALARS, are_scalars
from ptsave.core.values.compare import EXACT, ValueDiff, compare
from ptsave.core.values.numbers import has_values, values_per_element
from ptsave.formats import open_checkpoint
from ptsave.formats.pickle.shapes import Payload
from ptsave.storage.scan import scan
from ptsave.verbs.request import Bar, reading, unseen
from ptsave.verbs.sharing import sharing_groups

Progress = Callable[[int], None]
"""Called with the bytes of tensors done since the last call; the calls add up to both sides' `num_bytes`."""
ToleranceOf = Callable[[str, str], tuple[float, float]]
"""(rtol, atol) for values of two dtypes, as `core.values.tolerances` gives them."""


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """A tensor that is in both checkpoints."""

    name: str
    dtype_a: str
    dtype_b: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    is_bitwise_equal: bool
    """Whether dtype, shape and all bytes are the same."""
    values: ValueDiff | None
    """None where they are bitwise equal, and where they cannot be compared: `why_not` says why."""
    why_not: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether the values are equal: bitwise, or but for dtype, signs of zeros and payloads of NaNs."""
        return self.is_bitwise_equal or (self.values is not None and not self.values.num_different)

    @property
    def is_close(self) -> bool:
        """Whether no value is farther off than the tolerance that was asked for."""
        return self.is_bitwise_equal or (self.values is not None and not self.values.num_outside)


@dataclass(frozen=True, slots=True)
class DataDiff:
    """A leaf that is not a tensor, is in both checkpoints, and is not the same."""

    path: str
    a: Any
    b: Any


MAX_RELATIVE = 10.0
"""Beyond it a relative difference is not shown: it is one to a value near zero."""


@dataclass(frozen=True)
class Diff:
    """All that differs between checkpoints a and b."""

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    tensors: tuple[TensorDiff, ...]
    """Every tensor that is in both, in a's order, equal or not."""
    ties_broken: tuple[tuple[str, ...], ...]
    """Names that share memory in a and not, or not all, in b; of those that are in both."""
    ties_new: tuple[tuple[str, ...], ...]
    """The other way round."""
    data_only_in_a: tuple[str, ...] = ()
    data_only_in_b: tuple[str, ...] = ()
    data_changed: tuple[DataDiff, ...] = ()

    def __repr__(self) -> str:
        if self.is_same:
            return f"<diff: same, {counted(len(self.tensors), 'tensor', 'tensors')}>"
        different = f"{len(self.different)} of {len(self.tensors)} tensors in both differ"
        return f"<diff: {different}; {len(self.only_in_a)} only in a, {len(self.only_in_b)} only in b>"

    def _repr_html_(self) -> str:
        rows = [
            *((name, "only in a") for name in self.only_in_a),
            *((name, "only in b") for name in self.only_in_b),
            *((tensor.name, describe(tensor)) for tensor in self.different),
        ]
        return html_table(repr(self)[1:-1], ("tensor", "difference"), rows, len(rows))

    @property
    def prefix(self) -> str:
        """What all names that are in one side alone begin with, if they are the other's but for that."""
        for short, long in ((self.only_in_a, self.only_in_b), (self.only_in_b, self.only_in_a)):
            if short and len(short) == len(long):
                wanted = set(long)
                for name in long:
                    prefix = name.removesuffix(short[0])
                    if prefix.endswith(".") and all(prefix + other in wanted for other in short):
                        return prefix
        return ""

    @property
    def different(self) -> tuple[TensorDiff, ...]:
        """The tensors in both that are not bitwise equal."""
        return tuple(t for t in self.tensors if not t.is_bitwise_equal)

    @property
    def has_same_values(self) -> bool:
        """Whether both hold the same names, shapes and equal values, whatever the dtypes, ties and data."""
        return not self.only_in_a and not self.only_in_b and all(t.is_equal for t in self.tensors)

    @property
    def has_same_tensors(self) -> bool:
        """Whether both hold the same tensors, bit by bit, tied in the same way."""
        names = self.only_in_a or self.only_in_b
        return not (names or self.different or self.ties_broken or self.ties_new)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs, the data that is not a tensor included."""
        data = self.data_only_in_a or self.data_only_in_b or self.data_changed
        return self.has_same_tensors and not data


def describe(tensor: TensorDiff) -> str:
    """How one tensor differs, in a line."""
    if tensor.shape_a != tensor.shape_b:
        return f"shape {list(tensor.shape_a)} against {list(tensor.shape_b)}"
    words = [] if tensor.dtype_a == tensor.dtype_b else [f"{tensor.dtype_a} against {tensor.dtype_b}"]
    values = tensor.values
    if values is None:
        words.append(tensor.why_not)
    elif not values.num_different:
        words.append("equal values")
    else:
        words += _how_values_differ(values)
    return ", ".join(words)


def _how_values_differ(values: ValueDiff) -> list[str]:
    """How far finite values are apart, and how many are NaN or infinite in one of the two alone."""
    words = []
    odd = {
        "NaN here alone": values.num_nan_in_a,
        "NaN there alone": values.num_nan_in_b,
        "infinite in one alone, or with the other sign": values.num_infinite,
    }
    num_finite = values.num_different - sum(odd.values())
    if num_finite:
        differ = counted(num_finite, "value differs by", "values differ by up to")
        is_telling = num_finite == values.num_different and values.max_rel < MAX_RELATIVE
        relative = f" ({values.max_rel:.3g} relative)" if is_telling else ""
        words.append(f"{differ} {values.max_finite:.3g}{relative}")
    words += [f"{counted(number, 'value is', 'values are')} {what}" for what, number in odd.items() if number]
    return words


def diff_paths(a: Location, b: Location, bar: Bar = unseen) -> Diff:
    """Compare all that the checkpoints at two places hold.

    Raises: what opening a checkpoint raises, and as `diff`.
    """
    with ExitStack() as opened:
        one = opened.enter_context(open_checkpoint(a))
        _ = one.tensors  # past the caps, before the other takes memory too
        other = opened.enter_context(open_checkpoint(b))
        total = sum(entry.num_bytes for side in (one, other) for entry in side.tensors.values())
        with reading(bar, "comparing", one.source_bytes + other.source_bytes, total) as advance:
            found = diff(one, other, progress=advance)
        one.check_unchanged()
        other.check_unchanged()
    return found


def diff(a: Checkpoint, b: Checkpoint, *, progress: Progress | None = None) -> Diff:
    """Compare all that two open checkpoints hold, by name; values block by block.

    Raises: CorruptError, UnreadableError or LimitError when a tensor cannot be read.
    """
    return diff_contents(content(a), content(b), progress=progress)


def diff_contents(
    a: Content, b: Content, *, progress: Progress | None = None, tolerance: ToleranceOf | None = None
) -> Diff:
    """Compare tensors and the data beside them by name, such as two models' that lie under other keys.

    `tolerance` is as in `diff_tensors`.

    Raises: as `diff`.
    """
    tensors = diff_tensors(a.tensors, b.tensors, progress=progress, tolerance=tolerance)
    both = [path for path in a.data if path in b.data]
    return replace(
        tensors,
        data_only_in_a=tuple(path for path in a.data if path not in b.data),
        data_only_in_b=tuple(path for path in b.data if path not in a.data),
        data_changed=tuple(
            DataDiff(p, a.data[p], b.data[p]) for p in both if not _same_leaf(a.data[p], b.data[p])
        ),
    )


def belonging_to_tensors(content: Content) -> set[str]:
    """The paths of the data that is a part of a tensor (a scale, a sparse one's size), an array or a module.

    What lies under an inert object that holds tensors, or is torch's or NumPy's, and a module's own extra
    entries are; a learning rate, a step or a device is not.
    """
    names = sorted(content.tensors)
    objects = {
        path
        for path, leaf in content.data.items()
        if isinstance(leaf, Opaque)
        and not leaf.is_call_of_scalars
        and (leaf.name.startswith(("torch.", "numpy.")) or _holds(path, names))
    }
    lengths = sorted({len(path) for path in objects})
    return {
        path
        for path in content.data
        if path in objects
        or _OF_MODULE.search(path)
        or any(path[end : end + 1] == "." and path[:end] in objects for end in lengths if end < len(path))
    }


_OF_MODULE = re.compile(rf"({'|'.join(EXTRA_STATE)})(\.|$)")


def _holds(path: str, names: Sequence[str]) -> bool:
    """Whether any of the sorted `names` lies in `path`."""
    inside = f"{path}."
    i = bisect_left(names, inside)
    return i < len(names) and names[i].startswith(inside)


def diff_tensors(
    a: Mapping[str, TensorEntry],
    b: Mapping[str, TensorEntry],
    *,
    progress: Progress | None = None,
    tolerance: ToleranceOf | None = None,
) -> Diff:
    """Compare two sets of tensors by name, such as the state dicts that were found in two checkpoints.

    `tolerance` gives (rtol, atol) for a pair of dtypes; without it, every difference is outside.

    Raises: as `diff`.
    """
    advance = progress or _no_progress
    for alone, other in ((a, b), (b, a)):
        advance(sum(entry.num_bytes for name, entry in alone.items() if name not in other))
    both = [name for name in a if name in b]
    for side in (a, b):
        check_viewed([side[name] for name in both])
    for side in (a, b):
        for name in both:
            side[name].expect()
    found = tuple(_diff_tensor(name, a[name], b[name], advance, tolerance) for name in both)
    groups_a = sharing_groups({name: a[name] for name in both})
    groups_b = sharing_groups({name: b[name] for name in both})
    return Diff(
        tuple(name for name in a if name not in b),
        tuple(name for name in b if name not in a),
        found,
        _not_inside(groups_a, groups_b),
        _not_inside(groups_b, groups_a),
    )


def _no_progress(num_bytes: int) -> None:
    """Nobody asked."""


def _not_inside(groups: list[tuple[str, ...]], others: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The groups whose members are not all in one group of `others`."""
    where = {name: i for i, group in enumerate(others) for name in group}
    return tuple(g for g in groups if any(where.get(name, -1) != where.get(g[0], -2) for name in g))


def _diff_tensor(
    name: str, a: TensorEntry, b: TensorEntry, advance: Progress, tolerance: ToleranceOf | None
) -> TensorDiff:
    why_not = _why_not(a, b)
    values = None
    if why_not:
        advance(a.num_bytes + b.num_bytes)
    else:
        allowed = tolerance(a.dtype.name, b.dtype.name) if tolerance is not None else EXACT
        values = compare(a, b, advance, allowed)
    is_bitwise_equal = not why_not and values is None
    return TensorDiff(name, a.dtype.name, b.dtype.name, a.shape, b.shape, is_bitwise_equal, values, why_not)


def _why_not(a: TensorEntry, b: TensorEntry) -> str:
    if a.shape != b.shape:
        return "the shapes differ"
    if not has_values(a) and not has_values(b):
        return "neither has values"
    if not has_values(a) or not has_values(b):
        return f"{'a' if has_values(b) else 'b'} has no values"
    if a.dtype is not b.dtype and values_per_element(a.dtype) != values_per_element(b.dtype):
        return "float4_e2m1fn_x2 packs two values into an element"
    return ""


def _same_leaf(a: Any, b: Any) -> bool:
    """Whether two leaves say the same: NaN is NaN, 1 is not 1.0 and not True, a list may be a tuple."""
    if type(a) is type(b) and type(a) in SCALARS:  # a list of which may have millions
        return bool(a == b or (a != a and b != b))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and (_are_same_scalars(a, b) or all(map(_same_leaf, a, b)))
    if isinstance(a, dict) and isinstance(b, dict):
        # Only empty ones, and ones that hold themselves, are leaves.
        return bool(a) == bool(b)
    if isinstance(a, Opaque) and isinstance(b, Opaque):
        if a.name != b.name:
            return False
        if isinstance(a, Payload) and isinstance(b, Payload):
            return a.storage.num_bytes == b.storage.num_bytes and _same_bytes(a.storage, b.storage)
        # The contents of all others are leaves of their own.
        return not (a.is_call_of_scalars and b.is_call_of_scalars) or _same_leaf(a.args, b.args)
    if isinstance(a, Global) and isinstance(b, Global):
        return a.name == b.name
    return type(a) is type(b) and bool(a == b)


def _are_same_scalars(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two sequences of one length hold the same plain data, without a step for each of millions."""
    return are_scalars(a) and all(map(is_, map(type, a), map(type, b))) and all(map(eq, a, b))


def _same_bytes(a: Storage, b: Storage) -> bool:
    """Whether two storages of one size hold the same bytes."""
    pairs = zip(scan(a, 0, a.num_bytes), scan(b, 0, b.num_bytes), strict=True)
    # bytes compare with memcmp, memoryviews element by element: the copies pay.
    return all(bytes(one) == bytes(other) for one, other in pairs)
