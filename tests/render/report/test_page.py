"""The HTML page, opened in a real browser: what it shows, on a phone and on a desk."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ptsave.core.verdict import Departure, Verdict
from ptsave.errors import CorruptError
from ptsave.render.report.html import MAX_PAGE_BYTES, MAX_ROWS, html
from ptsave.render.report.several import html_of_several
from tests.render.report.browser import IS_THERE, Browser, open_browser
from tests.render.report.samples import BAD, EVIL, EVIL_NAME, FACTS, FIRST, GOOD, said

PHONE, DESK = 360, 1280

MANY = Verdict(
    tuple(said("bytes", "fail", f"layer.{i}.weight", "damaged") for i in range(MAX_ROWS + 500)),
    "damaged: 1,500 of 1,500 tensors do not match their digest",
    tuple(Departure(f"layer.{i}", 0, "Linear", 1e-9 * 1.01**i) for i in range(3000)),
)


def needs_browser(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that looks at the page; a browser takes longer to start than the fast tests have."""
    why = "NOT RUN, nothing was seen: needs chromium and chromedriver (Debian: chromium-driver)"
    return pytest.mark.slow(pytest.mark.skipif(not IS_THERE, reason=why)(test))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Write the page of a verdict; returns its path."""

    def write(verdict: Verdict, path: str = "runs/a.pt", facts: dict[str, object] = FACTS) -> Path:
        (tmp_path / "report.html").write_text(html(verdict, path, facts), encoding="utf-8")
        return tmp_path / "report.html"

    return write


def rows(browser: Browser, table: str = "#found") -> list[list[str]]:
    """The rows of a table that can be seen, as the texts of their cells."""
    script = """return Array.from(document.querySelector(arguments[0]).tBodies[0].rows)
        .filter((row) => row.checkVisibility())
        .map((row) => Array.from(row.cells, (cell) => cell.innerText.trim()))"""
    return [list(row) for row in browser.run(script, table)]


def tips(browser: Browser) -> list[str]:
    """The lines of text about a point that can be seen."""
    script = """return Array.from(document.querySelectorAll(".plot .tip text"))
        .filter((line) => line.getBoundingClientRect().width).map((line) => line.textContent)"""
    return list(browser.run(script))


def overflow(browser: Browser) -> int:
    """By how many pixels the page is wider than its window; everything on it is looked at."""
    return int(
        browser.run(
            """const all = Array.from(document.querySelectorAll("body *"));
            const right = all.map((element) => element.getBoundingClientRect().right);
            return Math.max(document.documentElement.scrollWidth, ...right) - window.innerWidth"""
        )
    )


@needs_browser
def test_the_verdict_and_its_cause_are_at_the_top(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    browser.show(page(BAD), DESK)
    assert browser.texts("h1") == ["No runs/a.pt"]
    assert browser.texts(".outcome") == ["Failed behaviour, bytes."]
    assert browser.texts(".cause") == [f"Cause {BAD.cause}"]
    assert browser.texts(".checks li") == [
        "fail bytes",
        "ok safe",
        "ok finite",
        "warn keys",
        "ok roundtrip",
        "fail behaviour",
    ]
    assert browser.run("return document.title") == "no: runs/a.pt – ptsave verify"
    assert browser.run("return document.querySelector('.cause').getBoundingClientRect().bottom") < 300
    facts = dict(zip(browser.texts(".facts dt"), browser.texts(".facts dd"), strict=True))
    assert facts["bytes"] == "417.6 MiB (437,928,960 B)"
    assert facts["elements"] == "109,482,240"
    assert facts["torch"] == "2.13.0, recorded with 2.9.1"

    browser.show(page(GOOD), DESK)
    assert browser.texts("h1") == ["Yes runs/a.pt"]
    assert browser.texts(".outcome") == [
        "Passed bytes, finite, safe; skipped: keys (needs a config: -c CONFIG)."
    ]
    assert browser.find(".cause") == browser.find(".plot") == []
    assert len(rows(browser)) == len(GOOD.findings)


@pytest.mark.slow
def test_a_page_is_capped() -> None:
    findings = tuple(said("keys", "fail", f"{'x' * 400}{i}", "y" * 400) for i in range(MAX_ROWS))
    growth = tuple(Departure(f"{'z' * 400}{i}", 0, "Linear", 1e-9) for i in range(5000))
    for verdict in (Verdict(findings, "", growth), Verdict(findings[:10], "", growth), Verdict(findings * 4)):
        shown = html(verdict, "a.pt", FACTS)
        assert len(shown.encode()) <= MAX_PAGE_BYTES
        calls = re.search("Not shown: ([0-9,]+) calls", shown)
        more = re.search("Not shown: ([0-9,]+) more fail", shown)
        left = [int(found[1].replace(",", "")) if found else 0 for found in (calls, more)]
        num_rows = shown.count('<td class="number"'), shown.count('<tr class="fail"')
        assert [a + b for a, b in zip(num_rows, left, strict=True)] == [
            len(verdict.growth),
            len(verdict.findings),
        ]


@needs_browser
def test_findings_are_searched_beside_their_levels(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    for width in (DESK, PHONE):
        browser.show(page(BAD), width)
        browser.run(
            "const f = document.querySelector('.findings input[type=search]'); f.value = 'FAIL behav';"
            "f.dispatchEvent(new Event('input'))"
        )
        assert {(row[0], row[1]) for row in rows(browser)} == {("fail", "behaviour")}
        browser.click("#show-fail")
        assert rows(browser) == []


@needs_browser
def test_a_header_sorts_and_sorts_back(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    for width in (DESK, PHONE):
        browser.show(page(BAD), width)
        assert [row[0] for row in rows(browser)] == ["fail"] * 3 + ["warn"] + ["ok"] * 5 + ["skipped"]
        browser.click("#found th button", 1)
        assert [row[1] for row in rows(browser)] == sorted(finding.check for finding in BAD.findings)
        assert browser.run("return document.querySelectorAll('#found th')[1].ariaSort") == "ascending"
        browser.click("#found th button", 1)
        descending = sorted((finding.check for finding in BAD.findings), reverse=True)
        assert [row[1] for row in rows(browser)] == descending
        browser.click("#found th button", 0)
        assert [row[0] for row in rows(browser)][:4] == ["fail", "fail", "fail", "warn"]
        assert browser.run("return document.querySelectorAll('#found [aria-sort]').length") == 1


@needs_browser
def test_numbers_sort_as_numbers(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    growth = [0.0, 9e-10, 2e-9, float("inf"), 1e-12, float("nan"), 3.0]
    verdict = Verdict(BAD.findings, "", tuple(Departure(f"m{i}", 0, "Net", r) for i, r in enumerate(growth)))
    browser.show(page(verdict), DESK)
    assert rows(browser, "#calls") == []  # folded away
    browser.click("summary")
    browser.click("#calls th button", 3)
    shown = [row[3] for row in rows(browser, "#calls")]
    assert shown == ["bitwise equal", "1.0e-12", "9.0e-10", "2.0e-09", "3.0e+00"] + ["beyond measure"] * 2


@needs_browser
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_levels_filter_with_and_without_scripts(browser: Browser, page, scripts: bool) -> None:  # type: ignore[no-untyped-def]
    browser.show(page(BAD), PHONE, scripts=scripts)
    assert bool(browser.find("th button")) == scripts
    assert browser.texts(".findings label") == ["fail 3", "warn 1", "ok 5", "skipped 1"]
    assert len(rows(browser)) == 10
    browser.click("label[for=show-ok]")
    assert {row[0] for row in rows(browser)} == {"fail", "warn", "skipped"}
    browser.click("#show-skipped")
    assert [row[0] for row in rows(browser)] == ["fail", "fail", "fail", "warn"]
    browser.click("#show-ok")
    assert len(rows(browser)) == 9


@needs_browser
def test_the_plot_names_what_is_pointed_at_or_tapped(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    browser.show(page(BAD), DESK, scripts=False)
    assert len(browser.find(".plot circle")) == len(BAD.growth)
    ticks = [text for text in browser.texts(".plot .tick") if text]
    assert ticks == ["1e-4", "1e-3", "1e-2", "1e-1", "equal", "call 1", "64", "127"]
    assert tips(browser) == []
    browser.hover(".plot .hit", 60)
    assert tips(browser) == ["encoder.layer.5.output.dense", "#61 · Linear · 5.6e-04"]
    assert browser.texts(".plot .hint") == [""]

    browser.show(page(BAD), PHONE, scripts=False)
    assert browser.texts(".plot .hint") == ["Point or tap to name a module"]
    browser.click(".plot .hit", 44)
    assert tips(browser) == [FIRST, "#45 · Linear · 6.6e-04"]

    middles = """return Array.from(document.querySelectorAll(".plot circle"), (circle) => {
        const box = circle.getBoundingClientRect();
        return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    })"""
    across, down = zip(*browser.run(middles), strict=True)
    assert list(across) == sorted(across)
    assert across[0] >= 0
    assert across[-1] <= PHONE
    assert down[0] > down[44] > down[126]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(PHONE, True), (DESK, False)], ids=["phone", "desk"])
@pytest.mark.parametrize(
    "verdict",
    [GOOD, BAD, EVIL, pytest.param(MANY, marks=pytest.mark.slow)],
    ids=["good", "bad", "evil", "many"],
)
def test_it_fits_asks_for_nothing_and_complains_of_nothing(
    browser: Browser,
    page,  # type: ignore[no-untyped-def]
    verdict: Verdict,
    width: int,
    dark: bool,
) -> None:
    path = page(verdict, EVIL_NAME) if verdict is EVIL else page(verdict)
    browser.requests(path), browser.log("browser")
    browser.show(path, width, dark=dark)
    assert overflow(browser) <= 0
    if verdict.growth and verdict is not MANY:
        browser.click("summary")
        assert overflow(browser) <= 0
    assert set(browser.requests(path)) - {"data:,"} == {path.as_uri()}
    assert browser.log("browser") == []
    colours = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    background, ink = (sum(map(int, colour[4:-1].split(", "))) for colour in browser.run(colours))
    assert (background < ink) == dark


@needs_browser
def test_text_is_large_enough_to_read_and_to_tap_on_a_phone(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    browser.show(page(BAD), PHONE)
    sizes = """return Array.from(document.querySelectorAll("p, dt, dd, td, th, text, code, label, .level"))
        .filter((e) => e.textContent).map((e) => parseFloat(getComputedStyle(e).fontSize))"""
    assert min(browser.run(sizes)) >= 12
    heights = "return Array.from(document.querySelectorAll('label, #found button'), (e) => e.offsetHeight)"
    assert min(browser.run(heights)) >= 30


@needs_browser
def test_names_of_a_hostile_file_are_text_and_nothing_else(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    browser.show(page(EVIL, EVIL_NAME, {"class": EVIL_NAME, EVIL_NAME: EVIL_NAME}), DESK)
    assert browser.run("return document.title") == f"no: {EVIL_NAME} – ptsave verify"
    assert browser.texts("h1 code") == [EVIL_NAME]
    assert browser.find("img") == browser.find("b") == []
    assert browser.run("return document.scripts.length") == 1
    seen = rows(browser)
    assert len(seen) == 4
    assert seen[0][2:] == [
        EVIL_NAME,
        r"\x00\x1b[31mred\x07 \u202egnp.exe \ud800 \ufffe %0A::error::x\n::stop-commands::y",
    ]
    assert seen[2][2].endswith("x… (4,512 more characters)")


@needs_browser
def test_a_script_that_slipped_in_would_not_run(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    path = page(GOOD)
    text = path.read_text(encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        attack = f"<script>document.title='owned'</script><img src='{address}/x.png' onerror='1'>"
        style = f"<style>body {{ background: url({address}/y.png) }}</style>"
        path.write_text(text.replace("<header", attack + style + "<header"), encoding="utf-8")
        browser.log("browser")
        browser.show(path, DESK)
        assert browser.run("return document.title") == "yes: runs/a.pt – ptsave verify"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    refused = " ".join(entry["message"] for entry in browser.log("browser"))
    assert [kind for kind in ("script-src", "style-src", "img-src") if f"{kind} " not in refused] == []


@needs_browser
def test_thousands_of_findings_and_calls_open(browser: Browser, page) -> None:  # type: ignore[no-untyped-def]
    path = page(MANY)
    assert path.stat().st_size < 1_500_000
    browser.show(path, PHONE)
    assert len(rows(browser)) == MAX_ROWS
    assert browser.texts(".findings label") == ["fail 1,500"]
    assert browser.texts("tfoot") == ["Not shown: 500 more fail; a .json or .xml report has them all."]
    assert len(browser.find(".plot circle")) == 375
    assert "Each point is the largest of 8 calls in a row." in browser.texts(".growth p")[0]


class Tags(HTMLParser):
    """Checks that what is opened is closed in order, and collects addresses."""

    VOID = ("meta", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "style")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("verdict", [GOOD, BAD, EVIL, Verdict(())], ids=["good", "bad", "evil", "empty"])
def test_the_page_is_whole_and_points_nowhere(verdict: Verdict) -> None:
    page = html(verdict, EVIL_NAME, {"path": "x", "class": EVIL_NAME})
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert tags.addresses == ["data:,"]
    page.encode("utf-8")


@needs_browser
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_several_checkpoints_are_one_page(browser: Browser, tmp_path: Path, width: int) -> None:
    results = [(EVIL_NAME, GOOD), ("b.pt", BAD), ("c.pt", CorruptError("truncated", "c.pt"))]
    (tmp_path / "report.html").write_text(html_of_several(results, FACTS), encoding="utf-8")
    browser.show(tmp_path / "report.html", width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    shown = rows(browser, "#verdicts")
    assert [row[0] for row in shown] == ["yes", "no", "error"]
    assert shown[2][1:] == ["c.pt", "truncated"]
    assert any(row[2].startswith("b.pt") for row in rows(browser) if row[0] == "fail")
    field = "return document.querySelector('.findings input[type=search]').getBoundingClientRect().width"
    assert browser.run(field) > 150
