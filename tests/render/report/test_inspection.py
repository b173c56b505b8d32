"""The page of `inspect --report`, in a real browser: areas, search and sorting, on a phone and on a desk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptsave.cli.main import run
from ptsave.render.report.html import MAX_PAGE_BYTES
from ptsave.render.report.inspection import page
from ptsave.render.report.treemap import MAX_AREAS, areas, boxes
from ptsave.verbs.inspect import Inspection, inspect_path
from tests.render.report.browser import Browser, open_browser
from tests.render.report.test_page import DESK, PHONE, needs_browser, overflow, rows

EVIL = "<img src=x onerror=alert(1)>.weight"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def layers(number: int) -> dict[str, torch.Tensor]:
    return {f"model.layers.{i // 10}.part{i % 10}.weight": torch.ones(1 + i % 7, 3) for i in range(number)}


def write(folder: Path, state: dict[str, torch.Tensor], *flags: str) -> Path:
    torch.save(state, folder / "w.pt")
    assert run(["inspect", str(folder / "w.pt"), "--report", str(folder / "page.html"), "-q", *flags]) == 0
    return folder / "page.html"


@needs_browser
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_ten_thousand_tensors_are_searched_and_sorted(browser: Browser, tmp_path: Path, width: int) -> None:
    page = write(tmp_path, layers(10_000), "--stats")
    assert page.stat().st_size <= MAX_PAGE_BYTES
    browser.show(page, width)
    total = browser.run("return document.querySelectorAll('.tensors table tbody tr').length")
    assert total == 10_000
    assert browser.run("return document.querySelectorAll('.treemap rect').length") <= MAX_AREAS
    browser.run(
        "const f = document.querySelector('input[type=search]'); f.value = 'LAYERS.12. part3';"
        "f.dispatchEvent(new Event('input'))"
    )
    assert [row[0] for row in rows(browser, ".tensors table")] == ["model.layers.12.part3.weight"]
    assert overflow(browser) <= 0
    browser.run(
        "const f = document.querySelector('input[type=search]'); f.value = '';"
        "f.dispatchEvent(new Event('input'))"
    )
    browser.click(".tensors table th button", 3)
    browser.click(".tensors table th button", 3)
    first = browser.run("return document.querySelector('.tensors table tbody tr').cells[3].innerText")
    assert first == "84 B"
    assert browser.requests(page) == [page.as_uri()]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_are_text_and_can_be_read(browser: Browser, tmp_path: Path, scheme: str) -> None:
    page = write(tmp_path, {EVIL: torch.ones(64, 64), "other.weight": torch.ones(2)}, "--stats")
    browser.protocol(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    browser.show(page, DESK)
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert rows(browser, ".tensors table")[0][0] == EVIL
    ink, area = browser.run(
        "const of = (s, p) => getComputedStyle(document.querySelector(s))[p].match(/\\d+/g).map(Number);"
        "return [of('.treemap text', 'fill'), of('.treemap rect', 'fill')]"
    )
    assert abs(sum(ink) - sum(area)) > 250
    browser.protocol("Emulation.setEmulatedMedia", features=[])


@needs_browser
def test_areas_lie_in_the_drawing_and_name_modules(browser: Browser, tmp_path: Path) -> None:
    page = write(tmp_path, {"big.weight": torch.ones(300, 100), "small.weight": torch.ones(100, 100)})
    for width in (DESK, PHONE):
        browser.show(page, width)
        titles = browser.run(
            "return [...document.querySelectorAll('.treemap title')].map(t => t.textContent)"
        )
        assert titles == [
            "big.weight: 117.2 KiB, 75.0%, 30,000 elements",
            "small.weight: 39.1 KiB, 25.0%, 10,000 elements",
        ]
        sizes = browser.run(
            "return [...document.querySelectorAll('.treemap rect')].map(r => r.getBoundingClientRect())"
            ".map(b => b.width * b.height)"
        )
        assert sizes[0] / sizes[1] == pytest.approx(3, rel=0.1)
        assert overflow(browser) <= 0


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    path = str(tmp_path / "w.pt")
    for flags in (
        ["--report", "x.json"],
        ["--report", "x.json", "--diff", path],
        [str(tmp_path), "--report", "x.html"],
        ["--make-config", "c.toml", "--report", "x.html"],
    ):
        assert run(["inspect", path, *flags]) == 2
        assert "hint: " in capsys.readouterr().err


def test_a_filter_is_counted_at_the_foot(tmp_path: Path) -> None:
    page = write(tmp_path, layers(20), "--limit", "5").read_text()
    assert "Not shown: 15 tensors." in page
    assert page.count("<tr><td>") == 5


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=60))
def test_boxes_fill_the_drawing_in_proportion(sizes: list[int]) -> None:
    sizes = sorted(sizes, reverse=True)
    found = boxes(sizes)
    shares = np.array([box.width * box.height for box in found])
    np.testing.assert_allclose(shares / 10_000, np.array(sizes) / sum(sizes), rtol=1e-5, atol=1e-8)
    for box in found:
        assert min(box.left, box.top) > -1e-3
        assert max(box.left + box.width, box.top + box.height) < 100 + 1e-3


def test_areas_make_up_the_file(tmp_path: Path) -> None:
    torch.save(layers(3_000), tmp_path / "w.pt")
    result = inspect_path(tmp_path / "w.pt")
    assert isinstance(result, Inspection)
    drawn = areas(result.tree)
    assert len(drawn) <= MAX_AREAS
    assert all(a.num_bytes >= b.num_bytes for a, b in pairwise(drawn))
    assert sum(area.num_bytes for area in drawn) > 0.4 * result.num_bytes


def test_several_have_one_page(tmp_path: Path) -> None:
    for name, number in (("a.pt", 20), ("b.pt", 12_000), ("c.pt", 12_000)):
        torch.save(layers(number), tmp_path / name)
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt")]
    assert run(["inspect", *paths, "--report", str(tmp_path / "page.html"), "--json"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert len(page.encode()) <= MAX_PAGE_BYTES
    assert page.count("<details>") == page.count('class="treemap"') == 3
    assert "3 checkpoints, 24,020 tensors" in page
    hidden = sum(int(found.replace(",", "")) for found in re.findall("Not shown: ([0-9,]+) tensors", page))
    assert hidden < 24_020
    assert page.count("<tr><td>") + hidden == 24_020


@pytest.mark.slow
def test_drawings_are_of_the_page_too(tmp_path: Path) -> None:
    torch.save({f"layer{'x' * 150}{i}.weight": torch.ones(2) for i in range(200)}, tmp_path / "w.pt")
    result = inspect_path(tmp_path / "w.pt")
    assert isinstance(result, Inspection)
    for number, is_drawn, is_whole in ((1, True, True), (60, False, True), (4_000, False, False)):
        shown = page([result] * number)
        assert len(shown.encode()) <= MAX_PAGE_BYTES
        assert ('class="treemap"' in shown) == is_drawn
        assert ("Not drawn: " in shown) == (not is_drawn)
        hidden = re.search("Not shown: ([0-9,]+) checkpoint", shown)
        assert (hidden is None) == is_whole
        left = int(hidden[1].replace(",", "")) if hidden else 0
        assert shown.count('class="tensors"') + left == number


def changed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    other = {name: value + 1e-3 * (i % 2) for i, (name, value) in enumerate(state.items())}
    other["model.layers.0.part2.weight"] = torch.ones(9, 3)
    other["model.layers.0.part4.weight"] = torch.full((5, 3), torch.nan)
    other["model.layers.0.part6.weight"] = state["model.layers.0.part6.weight"].double()
    other[EVIL] = other.pop("model.layers.0.part8.weight")
    return other


def write_difference(folder: Path, number: int) -> Path:
    state = layers(number)
    torch.save({"epoch": 1, "model": state}, folder / "a.pt")
    torch.save({"epoch": 2, "model": changed(state)}, folder / "b.pt")
    paths = [str(folder / "a.pt"), "--diff", str(folder / "b.pt")]
    assert run(["inspect", *paths, "--report", str(folder / "page.html"), "-q"]) == 1
    return folder / "page.html"


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(DESK, False), (PHONE, True)])
def test_a_difference_of_ten_thousand_tensors(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    page = write_difference(tmp_path, 10_000)
    assert page.stat().st_size <= MAX_PAGE_BYTES
    browser.show(page, width, dark=dark)
    assert "5,003 of 9,999 tensors in both differ" in browser.texts(".outcome")[0]
    assert browser.run("return document.querySelectorAll('.plot .point').length") == 400
    assert browser.run("return document.querySelectorAll('.tensors tbody tr').length") == 10_001
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert overflow(browser) <= 0
    browser.run(
        "const f = document.querySelector('input[type=search]'); f.value = 'layers.0.';"
        "f.dispatchEvent(new Event('input'))"
    )
    shown = {row[0].removeprefix("model.model.layers.0."): row[1:] for row in rows(browser, ".tensors table")}
    assert shown["part8.weight"][0] == f"only in {tmp_path / 'a.pt'}"
    assert shown["part2.weight"] == ["another shape", "float32", "[3, 3] → [9, 3]", "", "", ""]
    assert shown["part1.weight"] == ["differs", "float32", "[2, 3]", "6", "0.001", "0.000999"]
    assert shown["part4.weight"][:4] == ["differs", "float32", "[5, 3]", "15"]
    assert shown["part6.weight"][:2] == ["equal", "float32 → float64"]
    assert shown["part0.weight"] == ["equal", "float32", "[1, 3]", "", "", ""]
    assert browser.requests(page) == [page.as_uri()]


def test_a_difference_says_what_is_beside_tensors(tmp_path: Path) -> None:
    page = write_difference(tmp_path, 20).read_text()
    assert "<dt>epoch</dt><dd>1 against 2</dd>" in page
    assert EVIL not in page
    assert "beyond" in page  # NaN and another shape
    same = str(tmp_path / "a.pt")
    assert run(["inspect", same, "--diff", same, "--report", str(tmp_path / "same.html"), "-q"]) == 0
    page = (tmp_path / "same.html").read_text()
    assert "The same: 20 tensors, bitwise equal." in page
    assert "Difference by layer" not in page
