"""The bar on a terminal, driven as readers drive it."""

from __future__ import annotations

import io
import sys
import time
from threading import Barrier, Thread

import pytest
from rich.progress import Progress

from ptsave.render import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_many_threads_have_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is gone at the end."""
    make, start = terminal._bar, Barrier(8)
    bars: list[Progress] = []

    def slow() -> Progress:
        time.sleep(0.05)  # the others come meanwhile
        bars.append(make())
        return bars[-1]

    def read() -> None:
        start.wait()
        for _ in range(100):
            advance(3)

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(terminal, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(terminal, "_bar", slow)
    with terminal.progress(terminal.Mode(), "reading", 2400) as advance:
        threads = [Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (bar,) = bars
    assert bar.tasks[0].completed == 2400
    assert not bar.live.is_started


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": ""}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True),
    ],
)
def test_colour_is_forced_where_asked(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert terminal.styled("word", "1", io.StringIO()) == ("\x1b[1mword\x1b[0m" if is_coloured else "word")
