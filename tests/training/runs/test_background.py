"""Work on a thread: one at a time, its failure raised once, nothing begun twice."""

from __future__ import annotations

import sys
import threading

import pytest

from ptsave.training.runs.background import SWITCH_SECONDS, Background


def fail() -> None:
    raise ValueError("no")


def test_one_at_a_time_in_order() -> None:
    background = Background()
    gate = threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        gate.wait()
        done.append(number)

    background.start(lambda: work(1), "one")
    assert done == []
    threading.Timer(0.01, gate.set).start()
    background.start(lambda: work(2), "two")
    assert done[0] == 1
    background.wait()
    background.wait()
    assert done == [1, 2]


def test_a_failure_is_raised_once_and_keeps_the_next_from_beginning() -> None:
    background = Background()
    begun: list[str] = []
    background.start(fail, "one")
    with pytest.raises(ValueError, match="no"):
        background.start(lambda: begun.append("two"), "two")
    background.wait()
    assert begun == []
    background.start(lambda: begun.append("three"), "three")
    background.wait()
    assert begun == ["three"]


def test_threads_take_turns_more_often_while_it_works() -> None:
    background = Background()
    before = sys.getswitchinterval()
    during: list[float] = []
    background.start(lambda: during.append(sys.getswitchinterval()), "one")
    background.wait()
    assert during == [pytest.approx(SWITCH_SECONDS)]
    assert sys.getswitchinterval() == before


def test_without_a_thread_it_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on threads is met, or the interpreter is on its way out."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    background = Background()
    done: list[str] = []
    background.start(lambda: done.append("one"), "one")
    assert done == ["one"]
    background.start(fail, "two")
    with pytest.raises(ValueError, match="no"):
        background.wait()


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_interrupt_while_it_begins(has_begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has begun goes on and is waited for; what has not is not begun later."""
    start = threading.Thread.start
    begun, gate = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        gate.wait()
        done.append("one")

    def interrupted(thread: threading.Thread) -> None:
        if has_begun:
            start(thread)
            begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    background = Background()
    with pytest.raises(KeyboardInterrupt):
        background.start(work, "one")
    monkeypatch.undo()
    gate.set()
    background.wait()
    assert done == (["one"] if has_begun else [])
