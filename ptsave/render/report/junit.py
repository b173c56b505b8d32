"""A verdict as JUnit XML, the format in which CI systems take test results.

There is no standard. What is written here is valid by both schemas in use: Ant's, which asks for more
attributes, and Jenkins', which allows fewer. Source: windyroad/JUnit-Schema `JUnit.xsd`;
jenkinsci/xunit-plugin `junit-10.xsd`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from itertools import chain

from ptsave.core.finding import Finding
from ptsave.core.verdict import Verdict
from ptsave.render.report.words import clean, fact


def junit(
    verdict: Verdict,
    path: str,
    seconds: float,
    facts: Mapping[str, object] | None = None,
    when: datetime | None = None,
) -> Iterator[str]:
    """The text of a report with one test suite, as `suite_of` makes it, in pieces."""
    return report_of([suite_of(verdict, path, seconds, facts, when)])


def report_of(suites: Iterable[Iterable[str]]) -> Iterator[str]:
    """The text of a report in pieces, of which a hundred thousand failures would make a large tree."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n'
    for suite in suites:
        yield from suite
    yield "</testsuites>\n"


def suite_of_error(
    path: str, what: str, hint: str = "", when: datetime | None = None, number: int = 0
) -> Iterator[str]:
    """A test suite for a checkpoint on which there is no verdict: one test case, which is an error."""
    error = _element("error", {"type": "verify", "message": clean(what)}, escape(clean(hint)))
    counts = {"tests": 1, "errors": 1}
    return _suite(path, counts, {}, [_case("open", path, 0.0, error)], (), 0.0, when, number)


def suite_of(
    verdict: Verdict,
    path: str,
    seconds: float,
    facts: Mapping[str, object] | None = None,
    when: datetime | None = None,
    number: int = 0,
) -> Iterator[str]:
    """One test suite for the checkpoint at `path`, one test case for each check.

    A check with several failures has a case for each of them, and what it skipped is a case of its own,
    so that neither is lost in the other. All findings are in the suite's output. `when`: when it was
    verified; now by default. `number`: which of the report's suites it is.
    """
    about = {"verdict": verdict.answer, **({"cause": verdict.cause} if verdict.cause else {})}
    about |= {name: fact(name, value) for name, value in (facts or {}).items()}
    cases = (_cases_of(check, findings) for check, findings in verdict.by_check.items())
    results = [result for _, result, _ in chain.from_iterable(cases)]
    levels = Counter(result.level for result in results if result is not None)
    is_bare = not verdict.is_yes and not levels["fail"]
    counts = {"tests": len(results), "failures": levels["fail"], "skipped": levels["skipped"]}
    if is_bare:
        counts |= {"tests": len(results) + 1, "failures": 1}
    spelled = _spelled_cases(verdict, path, is_bare=is_bare)
    return _suite(path, counts, about, spelled, _lines(verdict, path), seconds, when, number)


def _spelled_cases(verdict: Verdict, path: str, *, is_bare: bool) -> Iterator[str]:
    """The test cases as text. `is_bare`: the answer is no, and no failure says so."""
    for check, findings in verdict.by_check.items():
        names: Counter[str] = Counter()  # no case of another check is called like one of this
        seconds = verdict.seconds.get(check, 0.0)
        for name, result, rest in _cases_of(check, findings):
            inside = "" if result is None else _result(result, rest)
            yield _case(_unused(name, names), path, seconds, inside)
            seconds = 0.0  # the first case of a check has it, so that the sum is right
    if is_bare:
        # Skips alone would turn a CI run green: a verdict of no is a failure whatever its reason.
        failure = _element("failure", {"type": "verify", "message": clean(verdict.outcome)})
        yield _case("verdict", path, 0.0, failure)


def _suite(
    path: str,
    counts: Mapping[str, int],
    about: Mapping[str, object],
    cases: Iterable[str],
    lines: Iterable[str],
    seconds: float,
    when: datetime | None,
    number: int,
) -> Iterator[str]:
    """A suite of these cases, with its properties, its counts and its text."""
    moment = (when or datetime.now(timezone.utc)).astimezone(timezone.utc)
    attributes = {
        "name": clean(path) or "checkpoint",
        "package": "ptsave",
        "id": str(number),
        "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": "localhost",
        **{kind: str(counts.get(kind, 0)) for kind in ("tests", "failures", "errors", "skipped")},
        "time": f"{seconds:.3f}",
    }
    yield f"<testsuite{_spelled(attributes)}>\n<properties>\n"
    for name, value in about.items():
        yield _element("property", {"name": clean(name), "value": clean(value)}) + "\n"
    yield "</properties>\n"
    for case in cases:
        yield case + "\n"
    yield "<system-out>"
    separator = ""
    for line in lines:
        yield separator + escape(clean(line))
        separator = "\n"
    yield "</system-out>\n<system-err />\n</testsuite>\n"


def _cases_of(
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


def _result(finding: Finding, rest: Sequence[Finding]) -> str:
    if finding.level == "skipped":
        return _element("skipped", {"message": clean(finding)})
    text = "\n".join(escape(f"{f.level}: {clean(f)}") for f in (finding, *rest))
    return _element("failure", {"type": finding.check, "message": clean(finding)}, text)


def _case(name: str, path: str, seconds: float, inside: str) -> str:
    return _element("testcase", {"name": name, "classname": clean(path), "time": f"{seconds:.3f}"}, inside)


def _element(tag: str, attributes: Mapping[str, str], inside: str = "") -> str:
    """`inside`: its text or its elements, spelled already."""
    start = f"<{tag}{_spelled(attributes)}"
    return f"{start}>{inside}</{tag}>" if inside else f"{start} />"


def _spelled(attributes: Mapping[str, str]) -> str:
    return "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())


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
