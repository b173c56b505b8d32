"""What a notebook shows of results: short, escaped, complete keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ptsave
from ptsave.core.names import MAX_ROWS, html_table, nearest
from ptsave.errors import UsageError

HOSTILE = "<script>alert(1)</script>\x1b[31m"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"a": torch.ones(2, 3), HOSTILE: torch.ones(1)}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_reprs_are_short(path: Path) -> None:
    assert repr(ptsave.inspect(path)) == f"<inspection of {str(path)!r}: pt, 2 tensors, 7 elements>"
    assert repr(ptsave.inspect(path, diff=path)) == "<diff: same, 2 tensors>"
    converted = ptsave.convert(path, path.with_suffix(".safetensors"), only="a")
    assert repr(converted).endswith("w.safetensors' was converted: safetensors, 1 tensor>")
    changed = ptsave.inspect(path, diff=path.with_suffix(".safetensors"))
    assert repr(changed) == "<diff: 0 of 1 tensors in both differ; 1 only in a, 0 only in b>"
    (path.parent / "runs").mkdir()
    saved = ptsave.save(path.parent / "runs" / "step-000000001.pt", {"w": torch.ones(2)})
    assert repr(saved).endswith("step-000000001.pt' was saved: pt, 1 tensor>")
    assert repr(ptsave.inspect(path.parent)) == f"<inspection of {str(path.parent)!r}: folder, 2 checkpoints>"
    assert repr(ptsave.inspect(path.parent / "runs")).endswith("runs': run, 1 checkpoint>")
    assert repr(ptsave.verify(path, checks="bytes")) == "<verdict yes: passed bytes>"


def test_tables_are_escaped(path: Path) -> None:
    other = path.with_name("other.pt")
    torch.save({"a": torch.zeros(2, 3)}, other)
    (path.parent / "run").mkdir()
    torch.save({"w": torch.ones(1)}, path.parent / "run" / "step-000000001.pt")
    with ptsave.open(path) as checkpoint:
        assert checkpoint._ipython_key_completions_() == ["a", HOSTILE]
        shown = [
            checkpoint._repr_html_(),
            ptsave.inspect(path)._repr_html_(),
            ptsave.inspect(path, diff=other)._repr_html_(),
            ptsave.verify(path)._repr_html_(),
            ptsave.inspect(path.parent)._repr_html_(),
            ptsave.inspect(path.parent / "run")._repr_html_(),
        ]
    for page in shown[:3]:
        assert "&lt;script&gt;" in page
    for page in shown[:2]:
        assert "[2, 3]" in page
    assert "6 values differ by up to 1" in shown[2]
    assert '<td style="text-align:left">other.pt</td>' in shown[4]
    assert '<td style="text-align:left">step-000000001.pt</td>' in shown[5]
    for page in shown:
        assert "<script" not in page
        assert "\x1b" not in page
        assert page.count("<table") == page.count("</table>") == 1
    assert "yes: passed" in shown[3]


def test_a_long_table_is_cut() -> None:
    page = html_table("t", ("n",), ((i,) for i in range(10_000)), 10_000)
    assert page.count("<tr>") == MAX_ROWS + 1
    assert f"… {10_000 - MAX_ROWS:,} more" in page


def test_a_part_of_a_name_is_near() -> None:
    names = ["model_state_dict.module.0.bias", "model_state_dict.module.0.bias_hh", "epoch"]
    assert nearest("0.bias", names) == names[0]
    assert nearest("epok", names) == "epoch"
    assert nearest("0.", names) is None
    assert nearest("", names) is None


def test_a_notebook_sees_names(path: Path) -> None:
    with ptsave.open(path) as checkpoint:
        assert repr(checkpoint.keys()) == f"dict_keys(['a', {HOSTILE!r}])"
        with pytest.raises(KeyError, match="did you mean"):
            checkpoint["script"]


def test_a_wrong_name_of_the_package_gets_a_proposal() -> None:
    program = [sys.executable, "-c", "import ptsave; ptsave.Checkpoint"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.stderr.endswith("has no attribute 'Checkpoint'. Did you mean: 'Checkpoints'?\n")


def test_a_bare_load_says_what_there_is(path: Path) -> None:
    with pytest.raises(UsageError, match="does not say what class") as raised:
        ptsave.load(path)
    assert "ptsave.load(path, model)" in raised.value.hint
    assert "ptsave.open(path).state_dict()" in raised.value.hint


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear, "Linear is a class, and weights go into a module that was made"),
        ({"a": 1}, "a state dict is not a module"),
        ("cuda", "a text is not a module"),
        (3, "a value of type int is not a module"),
    ],
)
def test_what_is_no_module(path: Path, model: object, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        ptsave.load(path, model)  # type: ignore[call-overload]
    assert "ptsave.load(path, " in raised.value.hint
