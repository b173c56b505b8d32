"""Code of the current folder runs when it is named, and not because it is called as a library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.errors import PtsaveError

LIBRARIES = (
    *("xxhash", "blake3", "isal", "numpy", "safetensors", "torch", "typer", "rich", "click", "shellingham"),
    *("sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "typing_extensions"),
    *("setuptools", "triton", "yaml", "optree", "tqdm", "tomli", "colorama", "absent_library"),
    *("queue", "cmath", "wave", "sqlite3", "xml", "csv", "mailbox", "uuid", "graphlib", "pdb", "cProfile"),
)
"""Installed ones, some that torch and others would like to have, and some of the standard library."""

NET = """
import torch
import helper

class Net(torch.nn.Linear):
    def forward(self, x):
        import later  # at the first pass
        import queue  # the standard library's
        return super().forward(x) * later.ONE * len(queue.Queue.__name__) / 5
"""
CONFIG = """
[model]
class = "nets.mine.Net"
[model.args]
in_features = 3
out_features = 3
[inputs.x]
shape = [2, 3]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a user's code, and files that are called as libraries and say so when they run."""
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text(f"print('RAN {name}', flush=True)\nraise ImportError\n")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text(NET)
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "later.py").write_text("ONE = 1.0\n")
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


SCRIPT = [str(Path(sys.executable).with_name("ptsave"))]


@pytest.mark.slow
@pytest.mark.parametrize("program", [[sys.executable, "-m", "ptsave"], SCRIPT], ids=["module", "script"])
def test_only_what_is_named_runs(folder: Path, program: list[str], clean_env: dict[str, str]) -> None:
    (folder / "sub").mkdir()

    def run(*words: str, cwd: Path = folder) -> None:
        done = subprocess.run([*program, *words], cwd=cwd, env=clean_env, capture_output=True, text=True)
        assert "RAN" not in done.stdout + done.stderr
        assert done.returncode == 0, (words, done.stdout, done.stderr)

    run("--help")
    run("save", "c.toml", "a.pt", "--digest", "blake3")
    run("verify", "a.pt", "-c", "c.toml")
    run("load", "a.pt", "-c", "c.toml", "--outputs", "y.npz")
    run("convert", "a.pt", "b.safetensors")
    run("inspect", "b.safetensors", "--stats")
    run("load", "../a.pt", "-c", "../c.toml", "--app-dir", "..", "--outputs", "y.npz", cwd=folder / "sub")


def test_a_load_leaves_no_folder_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = list(sys.path), list(sys.meta_path)
    (folder / "solo_net.py").write_text("import torch\nclass Solo(torch.nn.Linear):\n    pass\n")
    text = CONFIG.replace("nets.mine.Net", "solo_net.Solo")
    Path("c.toml").write_text(text)
    model = torch.nn.Linear(3, 3)
    torch.save(model.state_dict(), "a.pt")
    assert torch.equal(ptsave.load("a.pt", config="c.toml").weight, model.weight)
    assert (list(sys.path), list(sys.meta_path)) == before
    Path("c.toml").write_text(text.replace("solo_net", "solo_nets"))
    with pytest.raises(PtsaveError) as caught:
        ptsave.load("a.pt", config="c.toml")
    assert caught.value.hint == "did you mean 'solo_net'?"
    assert (list(sys.path), list(sys.meta_path)) == before
    sys.modules.pop("solo_net")
