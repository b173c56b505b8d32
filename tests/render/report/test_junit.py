"""JUnit XML, as a real parser reads it and as the schemas in use demand it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

import pytest
from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from ptsave.core.verdict import Verdict
from ptsave.render.report.junit import junit as pieces_of
from tests.render.report.samples import BAD, EVIL, EVIL_NAME, FACTS, FIRST, GOOD, said

MANY = Verdict(tuple(said("bytes", "fail", f"t{i % 3}", "damaged") for i in range(7)))
SKIPPED = Verdict((said("keys", "skipped", "", "needs a config"),))
EVERY = {"good": GOOD, "bad": BAD, "evil": EVIL, "empty": Verdict(()), "many": MANY, "skipped": SKIPPED}

SUITE = {
    "name": r".+",
    "package": r".+",
    "id": r"0",
    "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
    "hostname": r".+",
    "tests": r"\d+",
    "failures": r"\d+",
    "errors": r"0",
    "skipped": r"\d+",
    "time": r"\d+\.\d{3}",
}
"""The attributes that Ant's schema demands in an aggregate, and Jenkins' allows, with their patterns."""


def junit(*about: Any, **more: Any) -> str:
    return "".join(pieces_of(*about, **more))


def suite_of(text: str) -> TestSuite:
    (suite,) = JUnitXml.fromstring(text.encode())
    return suite


def cases(verdict: Verdict, path: str = "a.pt") -> dict[str, TestCase]:
    return {case.name: case for case in suite_of(junit(verdict, path, 0))}


@pytest.mark.parametrize("verdict", EVERY.values(), ids=EVERY)
def test_it_has_the_form_that_both_schemas_demand(verdict: Verdict) -> None:
    path = EVIL_NAME if verdict is EVIL else "a.pt"
    text = junit(verdict, path, 12.345, FACTS)
    root = ElementTree.fromstring(text.encode())
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    assert (root.tag, root.attrib, [child.tag for child in root]) == ("testsuites", {}, ["testsuite"])
    suite = root[0]
    assert suite.attrib.keys() == SUITE.keys()
    for name, pattern in SUITE.items():
        assert re.fullmatch(pattern, suite.attrib[name], re.DOTALL), (name, suite.attrib[name])
    order = [child.tag for child in suite if child.tag != "testcase"]
    assert order == ["properties", "system-out", "system-err"]
    assert [child.tag for child in suite].index("system-out") == len(suite) - 2
    for named in suite[0]:
        assert (named.tag, named.attrib.keys(), len(named)) == ("property", {"name", "value"}, 0)
    for case in suite.iter("testcase"):
        assert case.attrib.keys() == {"name", "classname", "time"}
        assert [child.tag for child in case] in ([], ["failure"], ["skipped"])
    for failure in suite.iter("failure"):
        assert failure.attrib.keys() == {"type", "message"}


@pytest.mark.parametrize("verdict", EVERY.values(), ids=EVERY)
def test_a_real_parser_counts_what_is_there(verdict: Verdict) -> None:
    suite = suite_of(junit(verdict, "a.pt", 12.345))
    results = [case.result for case in suite]
    assert suite.time == pytest.approx(12.345)
    assert suite.tests == len(results)
    assert suite.failures == sum(isinstance(r, Failure) for (r,) in filter(None, results))
    assert suite.skipped == sum(isinstance(r, Skipped) for (r,) in filter(None, results))
    assert (suite.failures == 0) == verdict.is_yes
    assert len({case.name for case in suite}) == suite.tests


def test_a_check_is_a_case_and_what_failed_is_named() -> None:
    found = cases(GOOD)
    assert list(found) == ["bytes", "safe", "finite", "keys"]
    assert [len(case.result) for case in found.values()] == [0, 0, 0, 1]
    (result,) = found["keys"].result
    assert isinstance(result, Skipped)
    assert result.message == "needs a config: -c CONFIG"

    found = cases(BAD, "runs/a.pt")
    assert list(found)[:5] == ["bytes", "safe", "finite", "keys", "roundtrip"]
    assert list(found)[5:] == [
        "roundtrip (skipped)",
        "behaviour: last_hidden_state",
        f"behaviour: {FIRST}",
    ]
    (failure,) = found["bytes"].result
    assert failure.message.startswith("encoder.layer.4.attention.self.key.weight: damaged")
    assert "ok: 199 tensors lie within the bounds of the file" in failure.text
    assert found["keys"].result == []  # a warning does not fail
    assert {case.classname for case in found.values()} == {"runs/a.pt"}


def test_the_output_has_every_finding_the_growth_and_the_cause() -> None:
    text = junit(BAD, "a.pt", 0, FACTS)
    suite = suite_of(text)
    output = ElementTree.fromstring(text.encode()).findtext("testsuite/system-out", "")
    for finding in BAD.findings:
        assert finding.message in output
    assert "difference 0.00031  encoder.layer.4.attention.self.value, Linear" in output
    assert f"cause: {BAD.cause}" in output
    assert output.endswith("no: a.pt failed behaviour, bytes")
    properties = {one.name: one.value for one in suite.properties()}
    assert properties["verdict"] == "no"
    assert properties["cause"] == BAD.cause
    assert properties["bytes"] == "417.6 MiB (437,928,960 B)"


def test_a_verdict_without_evidence_is_a_failure() -> None:
    for verdict in (SKIPPED, Verdict(())):
        (failure,) = cases(verdict)["verdict"].result
        assert isinstance(failure, Failure)
        assert failure.message == "could not be checked"


def test_names_stay_apart() -> None:
    findings = [said("bytes", "fail", where, "x") for where in ("a", "a", "a (2)", "a\0", r"a\x00", "", "")]
    names = list(cases(Verdict(tuple(findings))))
    assert len(set(names)) == len(findings)
    assert names[0] == "bytes: a"


def test_hostile_names_arrive_spelt_out() -> None:
    suite = suite_of(junit(EVIL, EVIL_NAME, 0))
    assert suite.name == EVIL_NAME
    (failure,) = next(iter(suite)).result
    assert failure.message == (
        rf"{EVIL_NAME}: \x00\x1b[31mred\x07 \u202egnp.exe \ud800 \ufffe %0A::error::x\n::stop-commands::y"
    )


def test_every_character_gives_xml_that_parses() -> None:
    points = [*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFDC0, 0x10010), 0x10FFFE, 0x10FFFF]
    text = "".join(map(chr, points))
    root = ElementTree.fromstring(junit(Verdict((said("c", "fail", text, text),), text), text, 0).encode())
    message = root.find(".//failure").get("message")  # type: ignore[union-attr]
    assert message
    assert "a" in message
    assert "￾" not in message


def test_the_moment_is_in_utc() -> None:
    when = datetime(2024, 2, 3, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert suite_of(junit(GOOD, "a.pt", 0, when=when)).timestamp == "2024-02-02T23:30:00"


def test_the_first_case_of_a_check_has_its_time() -> None:
    verdict = replace(MANY, seconds={"bytes": 1.5, "none": 9.0})
    times = [case.time for case in suite_of(junit(verdict, "a.pt", 2.0))]
    assert times == [1.5, *[0.0] * (len(MANY.findings) - 1)]
    assert [case.time for case in suite_of(junit(MANY, "a.pt", 2.0))] == [0.0] * len(MANY.findings)
