"""What the crash tests share: forked commands, their sources, and the counts that the run ends with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.crash import tracing
from tests.crash.scenes import Scene, Sources, make_scene, make_sources
from tests.crash.tally import Tally
from tests.crash.trials import Trials


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return Trials(tmp_path_factory.mktemp("said"))


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def strace() -> None:
    if reason := tracing.why_not():
        pytest.skip(f"NOT RUN, nothing was proved: {reason}")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Counts trials; the run prints what every test counted."""
    counted = Tally()
    request.node.user_properties.append(("tally", counted.fields))
    return counted


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, so that the fsyncs of thousands of trials cost nothing."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(mkdtemp(prefix="ptsave-crash-", dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def scene(request: pytest.FixtureRequest, memory_path: Path, sources: Sources, trials: Trials) -> Scene:
    """The case that the test is parametrized with, indirectly."""
    return make_scene(memory_path / "scene", request.param, sources, trials)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where strace writes."""
    return tmp_path / "strace.log"
