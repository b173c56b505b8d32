"""Two writers at once, killed at random, with readers running: nothing torn, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from ptsave.errors import WriteError
from tests.crash.contents import ABSENT, by_others, by_ptsave
from tests.crash.scenes import Scene, Sources, make_scene
from tests.crash.tally import Tally
from tests.crash.trials import Trial, Trials

NUM_SAVES = {"safetensors": 220, "pt": 220, "safetensors-sharded": 40, "dcp": 40}
NUM_WRITERS = 2
NUM_READERS = 2
KILLED_SHARE = 0.8
PAUSE_SECONDS = 0.01
"""Between two reads, so that the writers get on as well."""
FILES = ("safetensors", "pt")


def read_on(path: str, format_name: str, expected: list[str], log: str) -> None:
    """Read again and again until told to stop; then write down how often, and what was torn or lost.

    Other readers of folders open their files one by one, by names that a save removes: they may fail, and
    are left out.
    """
    is_told = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_told
        is_told = True

    signal.signal(signal.SIGTERM, stop)
    counts = {"reads": 0, "torn reads": 0, "lost files": 0}
    while not is_told:
        seen = [by_ptsave(Path(path))]
        if format_name in FILES:
            seen.append(by_others(Path(path), format_name))
        counts["reads"] += len(seen)
        counts["lost files"] += seen.count(ABSENT)
        counts["torn reads"] += sum(one not in (*expected, ABSENT) for one in seen)
        time.sleep(PAUSE_SECONDS)
    Path(log).write_text("\n".join(f"{number} {what}" for what, number in counts.items()))


def start_reader(scene: Scene, trials: Trials, log: Path) -> Trial:
    expected = [scene.seen_old, scene.seen_new]
    trial = trials.prepare(
        read_on, str(scene.destination), scene.format, expected, str(log), cwd=scene.folder.parent
    )
    trial.go()
    return trial


def stop_reader(reader: Trial, log: Path, tally: Tally) -> None:
    os.kill(reader.pid, signal.SIGTERM)
    ended = reader.wait()
    assert ended.code == 0, ended
    for line in log.read_text().splitlines():
        number, _, what = line.partition(" ")
        tally.count(what, int(number))


def start_writer(scene: Scene, trials: Trials, source: Path, sources: Sources) -> Trial:
    arguments = [str(source) if word == str(sources.new) else word for word in scene.arguments]
    writer = trials.prepare_command(arguments, scene.folder)
    writer.go()
    return writer


def end_writer(writer: Trial, scene: Scene, tally: Tally) -> list[str]:
    """What is wrong with how a writer ended, and with what it left."""
    ended = writer.wait()
    tally.count("killed", ended.code == -signal.SIGKILL)
    is_refused = ended.code == WriteError.exit_code and "another process is writing" in ended.stderr
    tally.count("refused", is_refused)
    problems = []
    if ended.code not in (0, -signal.SIGKILL) and not (is_refused and scene.format not in FILES):
        problems.append(f"ends with {ended.code}: {ended.stderr}")
    if by_ptsave(scene.destination) not in (scene.seen_old, scene.seen_new):
        problems.append("the destination is half")
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("format_name", NUM_SAVES)
def test_saves_under_random_kills(
    format_name: str, trials: Trials, sources: Sources, tally: Tally, memory_path: Path
) -> None:
    scene = make_scene(memory_path / "scene", ("convert", format_name, True), sources, trials)
    begin = time.monotonic()
    assert trials.run(scene.arguments, scene.folder).code == 0
    whole_seconds = time.monotonic() - begin
    logs = [memory_path / f"reader-{i}" for i in range(NUM_READERS)]
    readers = [start_reader(scene, trials, log) for log in logs]
    draw = random.Random(format_name)
    for _ in range(NUM_SAVES[format_name] // NUM_WRITERS):
        writers = [
            start_writer(scene, trials, draw.choice((sources.new, sources.old)), sources)
            for _ in range(NUM_WRITERS)
        ]
        for writer in writers:
            time.sleep(draw.uniform(0, whole_seconds))
            if draw.random() < KILLED_SHARE:
                writer.process.kill()
            tally.add("save", end_writer(writer, scene, tally))
    for reader, log in zip(readers, logs, strict=True):
        stop_reader(reader, log, tally)
    assert scene.problems_of_next_write(trials) == []
    assert tally.fields["torn reads"] == tally.fields["lost files"] == 0
    assert tally.fields["reads"] > 0
    tally.check()
