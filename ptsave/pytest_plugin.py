"""The pytest plugin: "still the same model" as one line of a test suite.

    def test_the_model_is_still_the_same(ptsave_verify):
        ptsave_verify("models/net.pt", config="models/net.toml")

`pytest --ptsave-update` records anew what the models compute, where that has changed on purpose.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from ptsave.core.verdict import Verdict

_BEFORE_UPDATE = ("bytes", "safe", "whole", "finite", "keys")
"""The checks that have to pass before behaviour is recorded anew: all that say whether the file is sound."""


class Verify(Protocol):
    """The fixture `ptsave_verify`: takes what `ptsave.verify` takes."""

    def __call__(self, path: str | os.PathLike[str], **options: Any) -> Verdict: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--ptsave-update`."""
    parser.getgroup("ptsave").addoption(
        "--ptsave-update",
        action="store_true",
        help="Record anew what the models of ptsave_verify compute today, in their checkpoints.",
    )


@pytest.fixture
def ptsave_verify(request: pytest.FixtureRequest) -> Verify:
    """Verify a checkpoint as `ptsave.verify` does; where the answer is no, fail the test with all findings.

    Returns the verdict. With `--ptsave-update` the behaviour is recorded anew, into the checkpoint, where its
    bytes, names and shapes are right; one that has no `config` (or `trust_recorded`) is verified as always.
    What a `ptsave.lock` in pytest's root folder pins must be what was approved.
    """
    is_update: bool = request.config.getoption("--ptsave-update")
    lock = request.config.rootpath / "ptsave.lock"

    def verify(path: str | os.PathLike[str], **options: Any) -> Verdict:
        __tracebackhide__ = True
        import ptsave

        if "lock" not in options and _is_pinned(lock, path):
            options["lock"] = lock
        if is_update and (options.get("config") or options.get("trust_recorded")):
            verdict = ptsave.verify(path, **{**options, "checks": _BEFORE_UPDATE, "record": True})
        else:
            verdict = ptsave.verify(path, **options)
        if not verdict.is_yes:
            pytest.fail(_in_words(path, verdict), pytrace=False)
        return verdict

    return verify


def _is_pinned(lock: Path, path: str | os.PathLike[str]) -> bool:
    """Whether the lock, where there is one, has a pin of a checkpoint."""
    if not os.path.lexists(lock):
        return False
    from ptsave.config.lock import read_lock
    from ptsave.core.address import located
    from ptsave.formats import open_checkpoint

    with open_checkpoint(located(path), at_a_glance=True) as checkpoint:
        return bool(read_lock(lock).pins_of(checkpoint))


def _in_words(path: str | os.PathLike[str], verdict: Verdict) -> str:
    """The verdict and its findings, one a line, and what to do where the change was wanted."""
    lines = [f"{path}: {verdict.because}", ""]
    lines += [f"{found.check:<10} {found.level:<8} {found}" for found in verdict.findings]
    if any(found.check == "behaviour" and found.level == "fail" for found in verdict.findings):
        lines += ["", "if this was meant: pytest --ptsave-update records what the model computes today"]
    return "\n".join(lines)
