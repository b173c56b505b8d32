"""The bar on a terminal, driven as readers drive it."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from rich.progress import Progress

from ptsave.cli import main
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


@pytest.mark.parametrize("how", [[], ["-v"], ["--stats"], ["--tree"], ["--params"]])
def test_names_are_cut_to_fit_a_terminal_and_nowhere_else(
    how: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    name = "encoder_with_a_long_name_that_goes_on_and_on_to_the_end_of_the_line_and_beyond_it_again"
    flat = torch.arange(4000.0)
    torch.save({f"{name}.0.weight": flat[:3000], f"{name}.0.bias": flat[3000:], "b": flat[:8]}, "a.pt")
    assert main.run(["inspect", "a.pt", *how]) == 0
    assert name in capfd.readouterr().out
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main.run(["inspect", "a.pt", *how]) == 0
    lines = sys.stdout.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 100 + len("\x1b[1m\x1b[0m")
    assert name not in "".join(lines)
    assert any("…" in line and "encoder" in line for line in lines)
    assert any("11.7 KiB" in line or "3999" in line or "4,000" in line for line in lines)
