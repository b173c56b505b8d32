"""The measuring itself: what is counted, and what is said of it. No test depends on a duration."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.files import Files
from benchmarks.main import ROWS
from benchmarks.measure import Command, Samples, SideError, compare, run
from benchmarks.rows import Budget, Row, net_ratio, peak_spread, wall_ratio

MIB = 2**20


def test_the_sides_run_as_often_as_asked_and_outputs_are_removed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); open(sys.argv[3], 'w')"
    sides = {
        name: Command(lambda out, name=name: [sys.executable, "-c", script, str(log), name, str(out / "x")])
        for name in ("a", "b")
    }
    samples = compare(sides, 3, 0, tmp_path)
    assert sorted(log.read_text()) == ["a"] * 4 + ["b"] * 4  # one more to warm up
    assert {len(taken.wall_s) for taken in samples.values()} == {3}
    assert not (tmp_path / "run").exists()


def test_peak_memory_is_the_child_s(tmp_path: Path) -> None:
    def peak(num_bytes: int) -> int:
        script = f"x = bytearray({num_bytes}); x[::4096] = b'1' * len(x[::4096])"
        return run(Command(lambda out: [sys.executable, "-c", script]), tmp_path)[1]

    assert 48 * MIB < peak(64 * MIB) - peak(4096) < 80 * MIB


def test_a_side_that_fails_stops_the_run(tmp_path: Path) -> None:
    command = Command(lambda out: [sys.executable, "-c", "raise SystemExit('broken')"])
    with pytest.raises(SideError, match="exited with 1:\nbroken"):
        run(command, tmp_path)


def test_a_side_can_time_itself(tmp_path: Path) -> None:
    script = 'print(\'{"wall_s": 1.5, "peak_bytes": 7}\')'
    command = Command(lambda out: [sys.executable, "-c", script], reports_itself=True)
    assert run(command, tmp_path) == (1.5, 7)


def test_ratios() -> None:
    samples = {
        "a": Samples([3.0, 2.0, 9.0], [10 * MIB]),
        "a-idle": Samples([1.0], [0]),
        "b": Samples([5.0], [14 * MIB]),
        "b-idle": Samples([1.0], [0]),
    }
    assert wall_ratio("a", "b")(samples) == pytest.approx(0.6)
    assert net_ratio("a", "a-idle", "b", "b-idle")(samples) == pytest.approx(0.5)
    assert peak_spread("a", "b")(samples) == 4


def test_the_table_says_what_was_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {"a": Command(lambda out: []), "b": Command(lambda out: [])}
    ratio = wall_ratio("a", "b")
    row = Row(sides, [Budget("fast", "b", ratio, "×", 1.1), Budget("faster", "b", ratio, "×", 0.4)])
    samples = {"a": Samples([1.0], [MIB]), "b": Samples([2.0], [MIB])}
    machine = {"cpu": "Abacus", "cores": 2, "memory_gib": 4, "kernel": "Linux 1", "file_system": "ext4"}
    out = tmp_path / "results.json"
    monkeypatch.setitem(report.LIMITS, "x", "the beads")
    out.write_text(json.dumps(report.merge(out, machine, report.results("x", row, samples), ["x"])))
    text = report.markdown(out)
    assert "| fast | b | ≤ 1.10× | 0.50× |" in text
    assert "| faster | b | ≤ 0.40× | **0.50×, missed** |" in text
    assert "Missed: faster against b. What limits it: the beads." in text
    again = report.merge(out, machine, report.results("x", row, samples), ["x"])
    assert len(again["results"]) == 2
    elsewhere = report.merge(out, machine | {"cores": 4}, [], ["x"])
    assert elsewhere["results"] == []


def test_every_row_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, its sides and its budgets fit together; the input files are not made."""
    monkeypatch.setattr("benchmarks.files._python", lambda script, *arguments: None)
    monkeypatch.setattr(Files, "model", lambda self, config, arguments: tmp_path)
    monkeypatch.setattr(Files, "sharded", lambda self, *arguments, **options: tmp_path)
    monkeypatch.setattr("benchmarks.reflinks.mount_xfs", lambda files: tmp_path)
    monkeypatch.setattr("subprocess.run", lambda command, **options: None)
    for name, make in ROWS.items():
        files = Files(tmp_path, MIB)
        with files.closing:
            row = make(files)
            samples = {side: Samples([1.0 + i], [MIB]) for i, side in enumerate(row.sides)}
            for result in report.results(name, row, samples):
                assert result["measured"] >= 0 or "net" in result["work"]
            for command in row.sides.values():
                assert all(isinstance(word, str) for word in command.argv(tmp_path))
