"""What `safe` says of a name, by the fields of its findings."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.core.nodes import GlobalUse
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1",)


def found(tmp_path: Path, value: object, allow: Sequence[str] = ()) -> list[Finding]:
    torch.save(value, tmp_path / "a.pt", pickle_module=pickle)
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        return list(safe(Subject(checkpoint, allow=allow)))


def test_plain_tensors_name_nothing(tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"a": torch.zeros(2)})
    assert (one.level, one.kind) == ("ok", Kind.NOTHING_RUNS)


@pytest.mark.parametrize(("allow", "level"), [([], "fail"), (["argparse.*"], "ok")])
def test_a_class_may_be_allowed_by_a_glob(allow: list[str], level: str, tmp_path: Path) -> None:
    spaces = [argparse.Namespace(lr=1), argparse.Namespace(lr=2)]
    (one,) = found(tmp_path, {"a": torch.zeros(2), "args": spaces}, allow)
    assert (one.level, one.where) == (level, "argparse.Namespace")
    assert one.kind in (Kind.LIBRARY, Kind.UNKNOWN)
    assert one.count == 2


@pytest.mark.parametrize(
    ("allow", "level"), [([], "fail"), (["builtins.*"], "fail"), (["builtins.eval"], "warn")]
)
def test_what_runs_is_allowed_by_its_full_name_alone(allow: list[str], level: str, tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"a": torch.zeros(2), "b": Runs()}, allow)
    assert (one.level, one.kind, one.where) == (level, Kind.RUNS, "builtins.eval")


def test_who_takes_a_name_is_said(tmp_path: Path) -> None:
    checkpoint = Checkpoint("pt2", tmp_path / "a.pt2", {})
    checkpoint.globals = {name: GlobalUse(name, 1, "called") for name in ("pkg.mod.F", "torch.ops.mine")}
    outcomes = {finding.where: finding.facts["outcome"] for finding in safe(Subject(checkpoint))}
    assert outcomes == {
        "pkg.mod.F": "; a plain unpickler imports it",
        "torch.ops.mine": "; a runtime runs what is registered under it",
    }
