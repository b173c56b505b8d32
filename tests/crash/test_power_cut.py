"""A power cut under every writer of ptsave, and under the others, on ext4 and XFS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import mounts
from tests.crash.power_cut import DURING, TOOLS, Tool, prepared, run
from tests.crash.tally import Tally
from tests.crash.trials import Trials

NUM_POINTS = 6


@pytest.mark.slow
@pytest.mark.parametrize("with_old", [True, False], ids=["over-old", "fresh"])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: f"{tool.name}-{tool.format}")
@pytest.mark.parametrize("kind", mounts.MAKERS)
def test_a_power_cut(
    kind: str, tool: Tool, with_old: bool, trials: Trials, tally: Tally, memory_path: Path
) -> None:
    """ptsave: the new file once it has returned, the old or the new one before. The others are counted."""
    if reason := mounts.why_no_image(kind):
        pytest.skip(f"NOT RUN, nothing was proved: {reason}")
    with prepared(memory_path, kind, trials, num_elements=2**18) as stage:
        for phase, where, state in run(stage, tool, NUM_POINTS, with_old=with_old):
            tally.count(f"{state} in {tool.name}'s")
            allowed = ("old", "new") if phase == DURING else ("new",)
            is_ours = tool.name == "ptsave"
            tally.add(where, [f"{phase} it is {state}"] if is_ours and state not in allowed else [])
    tally.check()
