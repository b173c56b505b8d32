"""What is expected is asked for joined and once, by many threads, in bounded memory."""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from ptsave.storage.remote import pieces
from ptsave.storage.remote.pieces import HeldPieces, Piece, Pieces

SIZE = 1 << 20
DATA = random.Random(0).randbytes(SIZE)


class Source:
    """Counts what is asked of it, and how much of that is held at a time."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.lock = threading.Lock()

    def fetch(self, begin: int, end: int, memory: memoryview) -> memoryview:
        with self.lock:
            self.asked.append((begin, end))
        memory[:] = DATA[begin:end]
        return memory


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4096)
    monkeypatch.setattr(pieces, "GAP_BYTES", 64)
    monkeypatch.setattr(pieces, "HELD_BYTES", 6 * 4096)


def read(of: Pieces, begin: int, size: int) -> bytes:
    """As a file does."""
    out = b""
    while len(out) < size:
        at = begin + len(out)
        taken = of.take(at)
        if taken is None:
            out += DATA[at : at + 1]
            continue
        piece, fetched = taken
        data = fetched.future.result(10)
        part = bytes(data[at - piece.begin : min(piece.end - piece.begin, begin + size - piece.begin)])
        of.give_back(piece, fetched, at, at + len(part))
        out += part
    return out


def test_neighbours_are_joined_and_far_ones_are_not() -> None:
    source = Source()
    of = Pieces(HeldPieces(), source.fetch)
    of.expect([(1000, 100), (1150, 100), (5000, 50)])
    assert read(of, 1150, 100) == DATA[1150:1250]
    assert read(of, 1000, 100) == DATA[1000:1100]
    assert read(of, 5000, 50) == DATA[5000:5050]
    assert sorted(source.asked) == [(1000, 1250), (5000, 5050)]


@pytest.mark.parametrize("seed", range(5))
def test_many_threads_read_what_is_there(seed: int) -> None:
    """Memory that is used again is never another piece's while somebody reads it."""
    chance = random.Random(seed)
    source, held = Source(), HeldPieces()
    of = Pieces(held, source.fetch)
    runs = [(chance.randrange(SIZE - 9000), chance.randrange(1, 9000)) for _ in range(300)]
    of.expect(runs)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda run: (of.expect([run]), read(of, *run))[1], sorted(runs)))
    assert found == [DATA[begin : begin + size] for begin, size in sorted(runs)]
    assert held.num_bytes + 4096 * len(held.free) <= 6 * 4096 + 8 * 4096
    of.close()
    assert (held.num_bytes, held.free, held.pieces) == (0, [], {})


def test_each_byte_that_is_read_in_order_is_asked_for_once() -> None:
    source = Source()
    of = Pieces(HeldPieces(), source.fetch)
    runs = [(begin, 1000) for begin in range(0, SIZE // 2, 1010)]
    of.expect(runs)
    assert all(read(of, *run) == DATA[run[0] : sum(run)] for run in runs)
    assert sum(end - begin for begin, end in source.asked) <= SIZE // 2 + 4096
    assert len(source.asked) <= SIZE // 2 // 4096 + 2


@pytest.mark.slow
def test_reading_one_by_one_takes_time_in_proportion() -> None:
    """Though something is left of each piece, so that all are kept."""

    def lines_to_read(number: int) -> int:
        """How many lines of Python are run for that many reads."""
        of, lines = Pieces(HeldPieces(), Source().fetch), 0

        def count(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal lines
            lines += event == "line"
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            for begin in range(0, number * 150, 150):
                of.expect([(begin, 80)])
                assert read(of, begin, 50) == DATA[begin : begin + 50]
        finally:
            sys.settrace(before)
        return lines

    assert lines_to_read(2000) < 2.5 * lines_to_read(1000)


def test_what_was_read_is_forgotten_and_can_be_expected_again() -> None:
    piece = Piece(0, 4096, [(0, 1000), (2000, 1000)])
    piece.count(500, 2500)
    assert piece.runs == [(0, 500), (2500, 500)]
    assert not piece.expects(400, 600)
    piece.add(400, 2600)
    assert piece.wanted_bytes == sum(size for _, size in piece.runs) == 3000
    piece.count(0, 4096)
    assert piece.is_used_up
