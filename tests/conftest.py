"""What the tests of every folder may use."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import support
from tests.crash.tally import summary
from tests.support import Command

if TYPE_CHECKING:
    from tests.workshop import Saved, Workshop

pytest_plugins = ("tests.servers.fixtures",)

ROOT = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, and torch's threads wait for each other at full speed. It reads this when it is
    # imported, so that nothing above may do that; what starts the workers needs no torch either.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

AMBIENT = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "GITHUB_ACTIONS", "PTSAVE_DEBUG", "PYTHONWARNINGS")
"""Variables of whoever runs the tests that would change what a command prints."""


def pytest_configure(config: pytest.Config) -> None:
    """Have hypothesis try fewer examples where only the fast tests run; the whole suite tries all.

    However long an example takes, it passes: machines are noisy.

    An interrupt is heeded, as some tests send it to themselves: a shell has its background jobs ignore it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    support.is_quick = "not slow" in config.option.markexpr
    hypothesis.settings.register_profile(
        "patient",
        max_examples=support.examples(100),
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one worker the tests that share what takes long to make: a file's, and those of one server.

    The longest groups come first, so that no worker is left with one at the end.
    """
    from tests.servers.fixtures import server_of  # a plugin, which pytest imports first

    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        group = item.nodeid.partition("::")[0]
        if isinstance(item, pytest.Function):
            group = "crash" if "trials" in item.fixturenames else server_of(item) or group
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)
    if "PYTEST_XDIST_WORKER" in os.environ:
        longest = sorted(groups.values(), key=lambda group: -sum(map(_weight, group)))
        items[:] = [item for group in longest for item in group]


def _weight(item: pytest.Item) -> int:
    """About how many fast tests a test takes the time of."""
    return 20 if item.get_closest_marker("slow") else 1


def pytest_collection() -> None:
    """Collect no garbage until the tests are collected: what is made until then stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over the modules and tests, half a million objects that stay."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    """The environment less what would change a command's output."""
    return {key: value for key, value in os.environ.items() if key not in AMBIENT}


@pytest.fixture
def ptsave(tmp_path: Path, clean_env: dict[str, str]) -> Command:
    """Run `ptsave ARGUMENTS` in `tmp_path` and insist on its exit code; no traceback ever shows."""

    def run(
        *arguments: object, code: int | None = 0, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ptsave", *map(str, arguments)],
            cwd=cwd or tmp_path,
            env=clean_env | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert code in (None, done.returncode), (done.args, done.returncode, done.stdout, done.stderr)
        return done

    return run


@pytest.fixture
def ptsave_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Run `ptsave ARGUMENTS` as `ptsave` does, but in this process, which saves the start of another."""
    from ptsave.cli import main

    def run(
        *arguments: object, code: int | None = 0, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments)]
        with monkeypatch.context() as process:
            process.chdir(cwd or tmp_path)
            for name in AMBIENT:
                process.delenv(name, raising=False)
            for name, value in (env or {}).items():
                process.setenv(name, value)
            capfd.readouterr()
            done = subprocess.CompletedProcess(words, main.run(words), *capfd.readouterr())
        assert "Traceback" not in done.stderr, done.stderr
        assert code in (None, done.returncode), (done.args, done.returncode, done.stdout, done.stderr)
        return done

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests counted: faults injected and survived, torn reads, …"""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    counted = [
        (report.nodeid, fields)
        for report in reports
        for what, fields in report.user_properties
        if what == "tally" and report.when == "call"
    ]
    if counted:
        terminalreporter.section("faults injected and survived")
        for line in summary(counted):
            terminalreporter.line(line)


@pytest.fixture(scope="module")
def saved() -> Saved:
    """What the tests of one file save once."""
    return []


@pytest.fixture
def workshop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Workshop]:
    """A workshop in the current folder; what it imports is forgotten afterwards."""
    from tests.workshop import PACKAGE, Workshop

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file within a second
    yield Workshop(tmp_path, capfd)
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]
