"""A report's format follows from its suffix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ptsave import __version__
from ptsave.errors import UsageError
from ptsave.render.report import SUFFIXES, check_report_path, report_text
from tests.render.report.samples import BAD, FACTS

DOCUMENT = {"schema_version": 1, "verdict": "no", "path": "ü\ud800.pt"}


def text(name: str) -> str:
    return "".join(report_text(Path(name), BAD, FACTS, lambda: DOCUMENT))


def test_json_is_the_document_that_the_command_prints() -> None:
    assert json.loads(text("out.json")) == DOCUMENT
    assert text("out.json").isascii()
    assert text("out.json").endswith("}\n")


def test_xml_is_junit_with_the_time_that_it_took() -> None:
    suite = ElementTree.fromstring(text("out.XML").encode()).find("testsuite")
    assert suite is not None
    assert suite.get("name") == "runs/bert-base/checkpoint-1200.pt"
    assert suite.get("time") == "12.340"


def test_html_is_one_page() -> None:
    page = text("folder.d/out.html")
    assert page.startswith("<!DOCTYPE html>\n")
    assert page.count("</html>") == 1
    assert f"<dd>ptsave {__version__}</dd>" in page
    assert re.search(r"<dd>20\d\d-\d\d-\d\d \d\d:\d\d UTC</dd>", page)
    page.encode("utf-8")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_known_suffixes_pass(suffix: str) -> None:
    check_report_path(Path("x.pt" + suffix))
    check_report_path(Path("X" + suffix.upper()))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("out.htm", "did you mean '.html'?"),
        ("out.jsn", "did you mean '.json'?"),
        ("out.pdf", "known suffixes: .json, .xml, .html"),
        ("report", "known suffixes: .json, .xml, .html"),
        (".html", "known suffixes: .json, .xml, .html"),
    ],
)
def test_others_are_refused_with_the_nearest(name: str, hint: str) -> None:
    for refused in (check_report_path, lambda path: report_text(path, BAD, FACTS, lambda: DOCUMENT)):
        with pytest.raises(UsageError) as caught:
            refused(Path(name))
        assert caught.value.hint == hint
        assert name in caught.value.where
