"""Renamings that are proposed make every name fit, swap no scale and shift, and cost little."""

from __future__ import annotations

import re
import shlex

import pytest

from ptsave import errors
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.parts.keys import Expected, compare
from ptsave.core.parts.naming import parse_rename
from ptsave.core.parts.renaming import MAX_CHARS, MAX_PARTS, _edges, propose
from ptsave.core.storage import MemoryStorage

Shapes = dict[str, tuple[int, ...]]


def expected(shapes: Shapes) -> dict[str, Expected]:
    return {name: Expected(shape, "float32") for name, shape in shapes.items()}


def found(shapes: Shapes) -> dict[str, TensorEntry]:
    storage, dtype = MemoryStorage(memoryview(b"")), BY_NAME["float32"]
    return {n: TensorEntry(n, dtype, s, contiguous_strides(s), storage, 0) for n, s in shapes.items()}


NORM: Shapes = {"LayerNorm.weight": (4,), "LayerNorm.bias": (4,)}
OLD_NORM: Shapes = {"LayerNorm.gamma": (4,), "LayerNorm.beta": (4,)}
NET: Shapes = {"proj.0.weight": (3, 2), "proj.0.bias": (3,), "proj.1.weight": (2, 3), "proj.1.bias": (2,)}


def apply(flags: str, names: Shapes) -> Shapes:
    """What `convert` does with the flags."""
    words = shlex.split(flags)
    for flag, text in zip(words[::2], words[1::2], strict=True):
        if flag == "--strip-prefix":
            names = {name.removeprefix(text): shape for name, shape in names.items()}
        else:
            pattern, to = parse_rename(text)
            names = {pattern.sub(to, name): shape for name, shape in names.items()}
    return names


PROPOSED: dict[str, tuple[Shapes, Shapes]] = {
    "a prefix": (NET, {f"model.{name}": shape for name, shape in NET.items()}),
    "a module": (NET, {name.replace("proj", "fc"): shape for name, shape in NET.items()}),
    "a number that moved": (
        NET,
        {re.sub(r"proj\.(\d)", lambda m: f"proj.{int(m[1]) + 1}", name): s for name, s in NET.items()},
    ),
    "a name that is a number": ({"p.0": (4,)}, {"p.w_0": (4,)}),
    "two modules": (
        NET,
        {re.sub(r"proj\.(\d)", lambda m: f"net.{2 * int(m[1])}", name): s for name, s in NET.items()},
    ),
}


@pytest.mark.parametrize("case", PROPOSED)
def test_what_is_proposed_makes_all_fit(case: str) -> None:
    wanted, there = PROPOSED[case]
    proposal = propose(expected(wanted), found(there))
    assert proposal is not None
    assert apply(proposal.flag, there) == wanted
    assert proposal.is_by_order == (case == "two modules")


def stack(number: int, parts: dict[str, str], name: str) -> Shapes:
    """Layers of one attention and one feed-forward part, whose shapes are the same in each."""
    inside = {"attn": (6, 2), "up": (8, 2), "down": (2, 8)}
    names = {f"{name}.{i}.{parts[part]}.weight": inside[part] for i in range(number) for part in inside}
    return {**names, f"{name}_end.weight": (2,)}


OURS = {"attn": "attention", "up": "ff.0", "down": "ff.3"}
THEIRS = {"attn": "attn.c_attn", "up": "mlp.fc1", "down": "mlp.fc2"}
SAME: Shapes = {f"{i}.{name}": (3,) for i in range(3) for name in ("weight", "bias")}
BY_ORDER: dict[str, tuple[Shapes, Shapes, int]] = {
    "numbers that moved, of one shape": (
        {f"proj.{name}": shape for name, shape in SAME.items()},
        {f"net.{2 * int(name[0])}{name[1:]}": shape for name, shape in SAME.items()},
        3,
    ),
    "a stack": (stack(40, OURS, "layers"), stack(40, THEIRS, "h"), 4),
    "a stack, sorted by name": (
        stack(12, OURS, "layers"),
        dict(sorted(stack(12, THEIRS, "transformer.h1").items())),
        4,
    ),
    "numbers in names": (
        {"fc1.weight": (3, 2), "fc2.weight": (3, 2), "out.weight": (5, 3)},
        {"net.0.weight": (3, 2), "net.2.weight": (3, 2), "head.weight": (5, 3)},
        3,
    ),
    "no numbers": (
        {"hidden.weight": (3, 2), "out.weight": (5, 3)},
        {"net.0.weight": (3, 2), "net.2.weight": (5, 3)},
        2,
    ),
}


@pytest.mark.parametrize("case", BY_ORDER)
def test_modules_are_paired_by_numbers_and_shapes(case: str) -> None:
    wanted, there, num_rules = BY_ORDER[case]
    proposal = propose(expected(wanted), found(there))
    assert proposal is not None
    assert proposal.is_by_order
    assert proposal.flag.count("--rename ") == num_rules
    assert apply(proposal.flag, there).items() == wanted.items()


REFUSED: dict[str, tuple[Shapes, Shapes]] = {
    "half of them": (NET, {**{f"m.{n}": s for n, s in list(NET.items())[:2]}, "x": (9,), "y": (8,)}),
    "weight for beta": (NORM, {"LayerNorm.beta": (4,), "LayerNorm.alpha": (4,)}),
    "two of one shape": (
        {"a.weight": (3,), "b.weight": (3,)},
        {"c.weight": (3,), "d.weight": (3,)},
    ),
    "a stack whose parts are of one shape": (
        {f"layers.{i}.{part}.weight": (3, 3) for i in range(2) for part in "qk"},
        {f"h.{i}.{part}.weight": (3, 3) for i in range(2) for part in ("key", "query")},
    ),
    "one layer more": (
        {f"layers.{i}.weight": (3,) for i in range(3)},
        {f"h.{i}.weight": (3,) for i in range(4)},
    ),
    "another shape": ({"a.weight": (3,)}, {"b.weight": (4,)}),
    "a number that is far off": (
        {"0.weight": (3, 2), "1.weight": (2, 3)},
        {"1.weight": (3, 2), "999999999.weight": (2, 3), f"{'9' * 5000}.bias": (2,)},
    ),
    "one too many": (NORM, {"x.weight": (4,), "x.bias": (4,), "y.weight": (4,)}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_sure_is_not_proposed(case: str) -> None:
    wanted, there = REFUSED[case]
    assert propose(expected(wanted), found(there)) is None


def test_old_names_of_a_norm_stay_apart() -> None:
    nearest = compare(expected(NORM), found(OLD_NORM)).nearest
    assert nearest == {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    assert compare(expected(NORM), found({"LayerNorm.beta": (4,)})).nearest == {
        "LayerNorm.bias": "LayerNorm.beta"
    }
    proposal = propose(expected(NORM), found(OLD_NORM))
    assert proposal is not None
    assert apply(proposal.flag, OLD_NORM) == NORM


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ({"fc1.weight": (3, 2)}, {"fc2.weight": (3, 2), "fc3.weight": (3, 2)}),
        ({"fc1.weight": (3, 2)}, {"fc2.weight": (2, 3)}),
        ({"fc1.weight": (3,)}, {"fc1.bias": (3,)}),
        ({"head.a.weight": (3,)}, {"x.head.a.weight": (3,), "y.head.a.weight": (3,)}),
    ],
)
def test_no_name_is_nearest_that_need_not_be(wanted: Shapes, there: Shapes) -> None:
    assert compare(expected(wanted), found(there)).nearest == {}


def entry(name: str) -> TensorEntry:
    return TensorEntry(name, BY_NAME["float32"], (1,), (1,), MemoryStorage(bytearray(4)), 0)


def test_a_name_of_many_dots_is_compared_by_its_end() -> None:
    name = "a." * 50_000 + "fc.weight"
    pairs = list(_edges(["fc.weight"], [name]))
    assert pairs == [("a." * 50_000, "")]
    assert not list(_edges(["other"], ["." * 100_000]))
    expected = {"fc.weight": Expected((1,), "float32")}
    proposal = propose(expected, {name: entry(name)})
    assert proposal is not None
    assert MAX_PARTS < 100


def test_nothing_is_proposed_for_names_beyond_a_cap() -> None:
    name = "a." * (MAX_CHARS // 2) + "fc.weight"
    assert propose({"fc.weight": Expected((1,), "float32")}, {name: entry(name)}) is None


@pytest.mark.parametrize("front", ["x'; touch ran; '", "$(touch ran)", 'a"b c'])
def test_a_proposal_is_safe_to_paste(front: str) -> None:
    """Names come from a file, and a person puts the proposal into a shell."""
    there = {f"{front}.{name}": shape for name, shape in NET.items()}
    proposal = propose(expected(NET), found(there))
    assert proposal is not None
    assert apply(proposal.flag, there) == NET


def test_a_proposal_for_windows_has_its_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_IS_WINDOWS", True)
    there = {name.replace("proj", "fc"): shape for name, shape in NET.items()}
    proposal = propose(expected(NET), found(there))
    assert proposal is not None
    assert proposal.flag == r'--rename "^fc\.=proj."'
    assert errors.quoted("model.") == "model."
    assert errors.install("torch") == 'pip install "ptsave[torch]"'
