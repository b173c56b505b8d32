"""Where the plot puts its points."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsave.core.verdict import Departure
from ptsave.render.report.plot import MAX_POINTS, amount, axis, gathered, label, plot

FLOATS = st.floats(min_value=0) | st.just(math.nan)


def calls(*relatives: float) -> list[Departure]:
    return [Departure(f"m{i}", 0, "Linear", relative) for i, relative in enumerate(relatives)]


def test_a_decade_is_a_decade_wherever_it_is() -> None:
    scale = axis([1e-6, 1e-2])
    assert list(scale.ticks()) == [-6, -5, -4, -3, -2]
    steps = {round(scale.y(10.0**i) - scale.y(10.0 ** (i + 1)), 6) for i in range(-6, -2)}
    assert len(steps) == 1
    assert scale.y(1e-3) < scale.y(1e-4) < scale.y(0)
    assert scale.y(math.inf) == scale.y(math.nan) < scale.y(1e-2)


@given(st.lists(FLOATS, max_size=8))
def test_every_value_has_its_place(values: list[float]) -> None:
    scale = axis(values)
    ticks = list(scale.ticks())
    assert 2 <= len(ticks) <= 8
    assert (ticks[0], ticks[-1]) == (scale.low, scale.high)
    top, bottom = scale.at(scale.high), scale.at(scale.low)
    for value in values:
        if 0 < value < math.inf:
            assert top - 1e-6 <= scale.y(value) <= bottom + 1e-6
        else:
            assert scale.y(value) < top or scale.y(value) > bottom


@given(st.lists(FLOATS, min_size=1, max_size=5))
def test_whatever_the_values_it_is_xml_with_finite_numbers(values: list[float]) -> None:
    drawing = plot(calls(*values), {"m0"})
    assert "nan" not in drawing
    root = ElementTree.fromstring(drawing)
    assert len(root.findall("g")) == len(values)


def test_points_are_shared_by_rank() -> None:
    relatives = [0.0] * 1000
    relatives[500], relatives[503], relatives[700] = 0.5, 0.25, math.nan
    points, share = gathered(calls(*relatives), {"m503"})
    assert share == 3
    assert len(points) == 334 <= MAX_POINTS
    chosen = {index for index, call in points if call.relative != 0}
    assert chosen == {500, 503, 700}
    points, share = gathered(calls(0.5, 0.25), ())
    assert ([index for index, _ in points], share) == ([0, 1], 1)
    assert gathered((), ()) == ([], 1)


def test_the_first_departure_of_a_named_module_is_marked_once() -> None:
    growth = [
        Departure("a", 0, "Linear", 0.0),
        Departure("b", 0, "Linear", 0.0),
        Departure("b", 1, "Linear", 1e-3),
        Departure("b", 2, "Linear", 1e-3),
    ]
    root = ElementTree.fromstring(plot(growth, {"b"}))
    kinds = [group.get("class") for group in root.findall("g")]
    assert kinds == ["point equal", "point equal", "point first", "point off"]
    assert 'class="first"' not in plot(growth, ())


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        (Departure("a.b", 0, "torch.nn.Linear", 3.14e-6), ("a.b", "#8 · Linear · 3.1e-06")),
        (Departure("a.b", 2, "Linear", 0.0), ("a.b (call 3)", "#8 · Linear · bitwise equal")),
        (Departure("", 0, "Net", math.inf), ("the whole model", "#8 · Net · beyond measure")),
        (
            Departure("x" * 99 + ".end", 0, "Net", math.nan),
            ("x" * 13 + "…" + "x" * 24 + ".end", "#8 · Net · beyond measure"),
        ),
    ],
)
def test_labels(call: Departure, lines: tuple[str, str]) -> None:
    assert label(7, call) == lines


def test_amounts_have_two_digits() -> None:
    assert [amount(x) for x in (0, 1.2e-3, 5e-324, 1e300, -1.0)] == [
        "bitwise equal",
        "1.2e-03",
        "4.9e-324",
        "1.0e+300",
        "beyond measure",
    ]
