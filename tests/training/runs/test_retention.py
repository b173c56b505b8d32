"""Which checkpoints are kept, over any history of a run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ptsave.formats.run_folder import RunFile, file_name
from ptsave.training.runs.retention import Best, Retention

METRICS = st.dictionaries(
    st.sampled_from(["loss", "acc"]), st.sampled_from([-math.inf, 0.0, 0.5, 1.0, math.inf, math.nan])
)
FILES = st.lists(
    st.builds(
        lambda step, metrics, is_ours, problem: RunFile(
            Path(file_name(step)), step, metrics=metrics, is_ours=is_ours, problem=problem
        ),
        st.integers(0, 40),
        METRICS,
        st.booleans(),
        st.sampled_from(["", "", "", "damaged"]),
    ),
    unique_by=lambda file: file.step,
    max_size=20,
).map(lambda files: sorted(files, key=lambda file: file.order))
BEST = st.builds(Best, st.sampled_from(["loss", "acc"]), st.booleans(), st.integers(1, 3))
RETENTION = st.builds(
    Retention,
    st.none() | st.integers(1, 5),
    st.none() | BEST,
    st.none() | st.integers(1, 10),
)


@given(FILES, RETENTION, st.data())
def test_what_goes_is_ours_whole_and_not_wanted(
    files: list[RunFile], retention: Retention, data: st.DataObject
) -> None:
    usable = [file for file in files if not file.problem]
    written = data.draw(st.sampled_from(usable)) if usable else RunFile(Path(file_name(99)), 99)
    gone = retention.superseded(files, written.path)
    left = [file for file in usable if file not in gone]
    assert all(file.is_ours and not file.problem and file.path != written.path for file in gone)
    if usable:
        assert usable[-1] in left
    if retention.last is None:
        assert gone == []
        return
    assert usable[-retention.last :] == left[-min(retention.last, len(usable)) :] or not usable
    if retention.every is not None:
        assert not any(file.step % retention.every == 0 for file in gone)
    if retention.best is not None:
        assert set(map(id, retention.best.ranked(usable)[: retention.best.number])) <= set(map(id, left))


@given(FILES, BEST)
def test_the_best_first_and_nan_never(files: list[RunFile], best: Best) -> None:
    ranked = best.ranked(files)
    values = [file.metrics[best.metric] for file in ranked]
    assert values == sorted(values, reverse=best.is_max)
    assert len(ranked) == sum(not math.isnan(file.metrics.get(best.metric, math.nan)) for file in files)
    for one, other in itertools.pairwise(ranked):
        if one.metrics[best.metric] == other.metrics[best.metric]:
            assert one.step > other.step
