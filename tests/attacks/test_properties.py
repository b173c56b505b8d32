"""Whatever the bytes are, a reader answers with what is in them or with an error of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS, Bench
from tests.support import examples

from .strategies import STRATEGIES


@pytest.fixture(scope="module", params=STRATEGIES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(TARGETS[request.param])
    yield made
    made.close()


QUIET = settings(
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(QUIET, max_examples=examples(150))
@given(data=st.data())
def test_nearly_right_files(bench: Bench, data: st.DataObject) -> None:
    bench.run(data.draw(STRATEGIES[bench.target.name]))


@pytest.mark.slow
@settings(QUIET, max_examples=3000)
@given(data=st.data())
def test_many_nearly_right_files(bench: Bench, data: st.DataObject) -> None:
    bench.run(data.draw(STRATEGIES[bench.target.name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_of_the_fuzzer(name: str) -> None:
    """Both answers are among them, so that a fuzzer starts on both sides."""
    made = Bench(TARGETS[name])
    answers = {made.run(seed) for seed in TARGETS[name].seeds()}
    made.close()
    assert answers == {True, False} or name == "dcp"
