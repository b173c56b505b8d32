"""How long each check takes."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from junitparser import JUnitXml
from safetensors import safe_open
from safetensors.torch import save_file

from ptsave.verbs import verify
from tests.support import Command


def test_times_go_from_one_check_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 12.5, 20.0, 21.0, 21.25])
    monkeypatch.setattr(verify, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told: list[str] = []
    times = verify.Times(told.append)
    for check in ("bytes", "finite", "bytes"):
        times.began(check)
    assert times.ended() == times.ended() == {"bytes": 2.25, "finite": 7.5}
    assert told == ["bytes", "finite", "bytes"]


@pytest.mark.parametrize("kind", ["file", "run"])
def test_a_report_has_the_time_of_each_check(kind: str, tmp_path: Path, ptsave_here: Command) -> None:
    path = tmp_path / "run" / "step-000000001.pt"
    path.parent.mkdir()
    torch.save(OrderedDict(step=1, weight=torch.randn(1000, 2000)), path)
    ptsave_here("verify", path if kind == "file" else path.parent, "--report", "report.xml")
    (suite,) = JUnitXml.fromstring((tmp_path / "report.xml").read_bytes())
    taken = {case.name: case.time for case in suite if not case.is_skipped}
    assert taken.keys() >= {"bytes", "finite"}
    assert 0 < sum(taken.values()) <= suite.time + 0.001 * len(taken)


def test_a_tensor_that_was_taken_out_is_lost(tmp_path: Path, ptsave_here: Command) -> None:
    torch.save({"a": torch.zeros(2), "b": torch.ones(3)}, tmp_path / "plain.pt")
    ptsave_here("convert", "plain.pt", "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata, kept = file.metadata(), {"a": file.get_tensor("a")}
    save_file(kept, tmp_path / "model.safetensors", metadata)
    done = ptsave_here("verify", "model.safetensors", code=1).stdout
    assert "because    lost: 1 tensor that was recorded is not in the file (b)" in done
