"""A verdict as JUnit XML, the format in which CI systems take test results.

There is no standard. What is written here is valid by both schemas in use: Ant's, which asks for more
attributes, and Jenkins', which allows fewer. Source: windyroad/JUnit-Schema `JUnit.xsd`;
jenkinsci/xunit-plugin `junit-10.xsd`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree

from ptsave.core.finding import Finding
from ptsave.core.verdict import Verdict
from ptsave.render.report.words import clean, fact


def junit(
    verdict: Verdict,
    path: str,
    seconds: float,
    facts: Mapping[str, object] | None = None,
    when: datetime | None = None,
) -> str:
    """The text of a report with one test suite, as `suite_of` makes it."""
    return junit_text([suite_of(verdict, path, seconds, facts, when)])


def junit_text(suites: Sequence[ElementTree.Element]) -> str:
    """The text of a report."""
    root = ElementTree.Element("testsuites")
    for number, suite in enumerate(suites):
        suite.set("id", str(number))
        root.append(suite)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def suite_of_error(path: str, what: str, hint: str = "", when: datetime | None = None) -> ElementTree.Element:
    """A test suite for a checkpoint on which there is no verdict: one test case, which is an error."""
    suite = ElementTree.Element("testsuite")
    ElementTree.SubElement(suite, "properties")
    error = ElementTree.SubElement(_case(suite, "open", path), "error")
    error.attrib |= {"type": "verify", "message": clean(what)}
    error.text = clean(hint)
    return _completed(suite, path, 0.0, when)


def suite_of(
    verdict: Verdict,
    path: str,
    seconds: float,
    facts: Mapping[str, object] | None = None,
    when: datetime | None = None,
) -> ElementTree.Element:
    """One test suite for the checkpoint at `path`, one test case for each check.

    A check with several failures has a case for each of them, and what it skipped is a case of its own,
    so that neither is lost in the other. All findings are in the suite's output. `when`: when it was
    verified; now by default.
    """
    suite = ElementTree.Element("testsuite")
    properties = ElementTree.SubElement(suite, "properties")
    _property(properties, "verdict", verdict.answer)
    if verdict.cause:
        _property(properties, "cause", verdict.cause)
    for name, value in (facts or {}).items():
        _property(properties, name, fact(name, value))

    names: Counter[str] = Counter()
    for check, findings in verdict.by_check.items():
        seconds_of_check = verdict.seconds.get(check, 0.0)
        for name, result, rest in _cases(check, findings):
            case = _case(suite, _unused(name, names), path, seconds_of_check)
            seconds_of_check = 0.0  # the first case has it, so that the sum is right
            if result is not None:
                _result(case, result, rest)
    if not verdict.is_yes and not any(finding.level == "fail" for finding in verdict.findings):
        # Skips alone would turn a CI run green: a verdict of no is a failure whatever its reason.
        failure = ElementTree.SubElement(_case(suite, _unused("verdict", names), path), "failure")
        failure.attrib |= {"type": "verify", "message": clean(verdict.outcome)}

    return _completed(suite, path, seconds, when, "\n".join(map(clean, _lines(verdict, path))))


def _completed(
    suite: ElementTree.Element, path: str, seconds: float, when: datetime | None, said: str = ""
) -> ElementTree.Element:
    """`suite`, which has its cases, with its counts and its text."""
    moment = (when or datetime.now(timezone.utc)).astimezone(timezone.utc)
    ElementTree.SubElement(suite, "system-out").text = said
    ElementTree.SubElement(suite, "system-err")
    suite.attrib |= {
        "name": clean(path) or "checkpoint",
        "package": "ptsave",
        "id": "0",
        "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": "localhost",
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": str(len(suite.findall("testcase/error"))),
        "skipped": str(len(suite.findall("testcase/skipped"))),
        "time": f"{seconds:.3f}",
    }
    return suite


def _cases(
    check: str, findings: Sequence[Finding]
) -> Iterator[tuple[str, Finding | None, Sequence[Finding]]]:
    """The cases of one check: a name, what failed or was skipped, and what else the check found."""
    failed = [finding for finding in findings if finding.level == "fail"]
    skipped = [finding for finding in findings if finding.level == "skipped"]
    rest = [finding for finding in findings if finding.level in ("ok", "warn")]
    if len(failed) == 1:
        yield check, failed[0], rest
    for finding in failed if len(failed) > 1 else ():
        yield f"{check}: {finding.where}" if finding.where else check, finding, ()
    if rest and not failed:
        yield check, None, rest
    beside = "" if not failed and not rest and len(skipped) == 1 else " (skipped)"
    for finding in skipped:
        yield f"{check}: {finding.where}" if finding.where and beside else check + beside, finding, ()


def _result(case: ElementTree.Element, finding: Finding, rest: Sequence[Finding]) -> None:
    if finding.level == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": clean(finding)})
        return
    failure = ElementTree.SubElement(case, "failure", {"type": finding.check, "message": clean(finding)})
    failure.text = "\n".join(f"{f.level}: {clean(f)}" for f in (finding, *rest))


def _case(suite: ElementTree.Element, name: str, path: str, seconds: float = 0.0) -> ElementTree.Element:
    fields = {"name": name, "classname": clean(path), "time": f"{seconds:.3f}"}
    return ElementTree.SubElement(suite, "testcase", fields)


def _property(properties: ElementTree.Element, name: str, value: str) -> None:
    ElementTree.SubElement(properties, "property", {"name": clean(name), "value": clean(value)})


def _unused(name: str, names: Counter[str]) -> str:
    """`name` cleaned, or `name (2)` where a case has it: CI systems keep a test's history by its name."""
    name = unused = clean(name)
    while unused in names:
        names[name] += 1
        unused = f"{name} ({names[name]})"
    names[unused] = 1
    return unused


def _lines(verdict: Verdict, path: str) -> Iterator[str]:
    for finding in verdict.findings:
        yield f"{finding.check:<10} {finding.level:<8} {finding!s}"
    for call in verdict.growth:
        repeat = f" (call {call.number + 1})" if call.number else ""
        yield f"difference {call.relative:<8.2g} {call.module or 'the model'}{repeat}, {call.kind}"
    if verdict.cause:
        yield f"cause: {verdict.cause}"
    yield f"{verdict.answer}: {path} {verdict.outcome}"
