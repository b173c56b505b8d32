"""Every style of [parallel.tensor] where it may stand, and what is said of plans that leave parts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.distributed.launch import errors, ptsave, run_cases, torchrun

pytestmark = pytest.mark.slow

CODE = """
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ff = nn.Linear(6, 12)
        self.out = nn.ModuleDict({"ff": nn.Linear(12, 6)})

    def forward(self, x):
        return self.out["ff"](self.ff(x).relu())


class Words(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(14, 6)
        self.norm = nn.LayerNorm(6)
        self.shift = nn.LayerNorm(6)
        self.block = Block()
        self.head = nn.Linear(6, 14, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.norm(self.embed(tokens))) + self.shift.weight)
"""
CONFIG = """
[model]
class = "words.Words"

[inputs.tokens]
shape = [2, 5]
dtype = "int64"
low = 0
high = 14

[parallel]
mesh = {tp = 2}
"""
TIED = "model.args.tied=true"
FF = {"block.ff": "colwise", "block.out.ff": "rowwise"}
GATHERED = "colwise_gather_output"


def plan(**styles: str) -> str:
    """For --set; `__` stands for a dot."""
    pairs = (f'"{name.replace("__", ".")}" = "{style}"' for name, style in styles.items())
    return f"parallel.tensor={{{', '.join(pairs)}}}"


@pytest.fixture
def studio(tmp_path: Path) -> Path:
    (tmp_path / "words.py").write_text(CODE)
    (tmp_path / "c.toml").write_text(CONFIG)
    ptsave(tmp_path, "save", "c.toml", "m.pt")
    ptsave(tmp_path, "save", "c.toml", "t.pt", "--set", TIED)
    return tmp_path


def test_each_style_gives_what_one_process_gives(studio: Path) -> None:
    plans = {
        plan(**FF): "m.pt",
        plan(embed="rowwise"): "m.pt",
        plan(embed=GATHERED): "m.pt",
        plan(norm="sequence"): "m.pt",
        plan(head=GATHERED): "m.pt",
        plan(head="rowwise_split_input"): "m.pt",
        plan(embed="rowwise", norm="sequence", **FF, head=GATHERED): "m.pt",
        plan(**{"*.ff": "rowwise_split_input", "block.out.*": "rowwise_split_input"}): "m.pt",
        plan(embed="rowwise", head=GATHERED): "t.pt",
    }
    whole = "parallel={mesh={dp=1}}"
    cases = [
        {"path": path, "config": "c.toml", "set": [*([TIED] if path == "t.pt" else []), table]}
        for table, path in plans.items()
    ]
    references = {
        path: run_cases(1, studio, [{"path": path, "config": "c.toml", "set": [whole, *more]}])[0]
        for path, more in {"m.pt": [], "t.pt": [TIED]}.items()
    }
    for case, found in zip(cases, run_cases(2, studio, cases), strict=True):
        reference = references[str(case["path"])]
        assert "error" not in found, found
        assert found["digests"] == reference["digests"]
        pairs = zip(found["output"], reference["output"], strict=True)
        assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in pairs), case


def test_plans_that_split_what_cannot_be(studio: Path) -> None:
    plans = {
        plan(
            **{"*.ff": "colwise", "block.out.*": "rowwise"}
        ): "'block.out.ff' is colwise by '*.ff' and rowwise",
        plan(block="colwise"): "torch cannot split 'block', a words.Block",
        plan(head=GATHERED): "'embed.weight' and 'head.weight' are one parameter, and would become two",
        'parallel={wrap=["block.out"]}': "'block.out' is a container",
    }
    cases = [{"path": "t.pt", "config": "c.toml", "set": [TIED, table]} for table in plans]
    for found, message in zip(run_cases(2, studio, cases), plans.values(), strict=True):
        assert message in found["error"], found
        assert found["kind"] in ("UsageError", "PlanError")  # which is one
        assert found["hint"]


def test_a_model_that_returns_parts_is_not_taken_for_whole(studio: Path) -> None:
    table = plan(head="colwise")
    done = torchrun(2, "load", "m.pt", "-c", "c.toml", "--outputs", "o.npz", "--set", table, cwd=studio)
    (line,) = errors(done.stderr)
    assert "rank 1 has another 'output' than rank 0: the model returns parts of it" in line
    assert GATHERED in done.stderr
    assert not (studio / "o.npz").exists()


@pytest.mark.parametrize(
    ("table", "what"),
    [
        (plan(head="colwise"), "the model returns parts of it"),
        ('parallel={wrap=["shift"]}', "got mixed torch.Tensor and DTensor"),
    ],
)
def test_a_bad_plan_is_no_verdict(studio: Path, table: str, what: str) -> None:
    """Of a checkpoint that is as good as ever."""
    done = torchrun(2, "verify", "m.pt", "-c", "c.toml", "--json", "--set", table, cwd=studio)
    error = json.loads(done.stdout)["error"]
    assert what in error["what"]
    assert error["code"] == 2
    assert "parallel" in error["where"]
    assert error["hint"]


def test_a_forward_that_fails_says_where_to_look(studio: Path) -> None:
    """One line of ptsave's; torch's own tracebacks are of no use to who wrote the plan."""
    done = torchrun(
        2, "load", "m.pt", "-c", "c.toml", "--outputs", "o.npz", "--set", plan(head="rowwise"), cwd=studio
    )
    (line,) = errors(done.stderr)
    assert "the forward pass failed" in line
    assert "check [parallel.tensor]" in done.stderr
    assert "fake_tensor" not in done.stderr
