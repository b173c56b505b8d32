"""Calls that report what they did not do: a write whose bytes are lost, a count that is short."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptsave.core.storage import BLOCK_BYTES
from ptsave.errors import WriteError
from tests.crash.scenes import CONVERSIONS, Scene, Sources, make_scene, name_of
from tests.crash.tally import Tally
from tests.crash.test_errors import COMMITTED, inject, problems_of_failure
from tests.crash.tracing import Call, traced
from tests.crash.trials import Trials

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("strace")]

OVER_OLD = [case for case in CONVERSIONS if case[2]]
SHORT = (1, 4095, 65_537)
"""Bytes that a call reports to have written of more."""


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """New weights that are all zeros, over old ones that are not."""
    folder = tmp_path_factory.mktemp("zeros")
    for name, value in (("new.pt", 0.0), ("old.pt", 1.0)):
        torch.save({f"t{i}": torch.full((2, BLOCK_BYTES // 4), value) for i in range(2)}, folder / name)
    return Sources(folder / "new.pt", folder / "old.pt", folder / "none.toml")


@pytest.mark.parametrize("scene", OVER_OLD, ids=name_of, indirect=True)
def test_a_lost_write_is_found_when_it_is_read_back(
    scene: Scene, trials: Trials, tally: Tally, log: Path
) -> None:
    ended, calls = traced(trials.prepare_command(scene.arguments, scene.folder), log, calls="pwrite64")
    assert ended.code == 0
    for call in calls:
        if not (wanted := call.result).isdigit():
            continue
        ended, done = inject(scene, trials, log, f"pwrite64:retval={wanted}:when={call.number}")
        if not any(other.is_injected for other in done):
            continue  # the other thread took what this one wrote before
        if ended.code == 0 and scene.state() == "new":
            tally.count("lost nothing")  # the bytes are zeros, as they would be in a new file
            continue
        problems = problems_of_failure(scene, ended, done, "pwrite64")
        if ended.code != WriteError.exit_code:
            problems.append(f"ends with {ended.code}: {ended.stderr}")
        tally.add(f"pwrite64 {call.number} lost", problems)
    tally.check()


@pytest.mark.parametrize("lie", ["rename:retval=0", "linkat:retval=0", "fallocate:retval=0"])
@pytest.mark.parametrize("scene", CONVERSIONS, ids=name_of, indirect=True)
def test_a_call_that_does_nothing_is_never_taken_for_done(
    scene: Scene, lie: str, trials: Trials, tally: Tally, log: Path
) -> None:
    n = 1
    while True:
        ended, calls = inject(scene, trials, log, f"{lie}:when={n}")
        if not any(call.is_injected for call in calls):
            break
        state = scene.state()
        is_new = ended.code == 0 or bool(COMMITTED.search(ended.stderr))
        problems = [] if is_new == (state == "new") else [f"ends with {ended.code}, {state}"]
        if litter := scene.litter() + scene.strangers():
            problems.append(f"leaves {litter}")
        tally.add(f"{lie} {n}", problems)
        n += 1
    if n > 1:
        tally.check()


@pytest.mark.parametrize("case", OVER_OLD, ids=name_of)
def test_a_short_count_is_written_on(
    case: tuple[str, str, bool], trials: Trials, tally: Tally, log: Path, memory_path: Path, zeros: Sources
) -> None:
    """strace writes nothing where it reports a count, so the bytes are zeros, which a new file holds."""
    scene = make_scene(memory_path / "scene", case, zeros, trials)
    ended, calls = traced(trials.prepare_command(scene.arguments, scene.folder), log, calls="pwrite64")
    assert ended.code == 0
    blocks = [call for call in calls if is_block(call)]
    assert blocks, "no call writes zeros alone"
    for call in blocks:
        for count in SHORT:
            ended, done = inject(scene, trials, log, f"pwrite64:retval={count}:when={call.number}")
            injected = [other for other in done if other.is_injected]
            if not injected or not all(map(is_block, injected)):
                continue  # strace counts each thread's calls apart, and one of them wrote something else
            problems = []
            if ended.code != 0 or scene.state() != "new":
                problems.append(f"ends with {ended.code}, the destination is {scene.state()}: {ended.stderr}")
            tally.add(f"pwrite64 {call.number} short {count}", problems)
    tally.check()


def is_block(call: Call) -> bool:
    """Whether it writes a whole block of one tensor's zeros."""
    return f", {BLOCK_BYTES}, " in call.arguments
