"""The pytest plugin, in a pytest of its own: a yes, a no with its findings, and recording anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptsave.verbs.signing import write_pin
from tests.config.test_lock import PIN

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x) * {factor}
"""
CONFIG = '[model]\nclass = "net.Net"\n[inputs.x]\nshape = [2, 3]\n'
TEST = """
def test_still_the_same(ptsave_verify):
    verdict = ptsave_verify("net.pt"{options})
    assert verdict.is_yes
"""


@pytest.fixture
def suite(tmp_path: Path, clean_env: dict[str, str], root: Path) -> Path:
    (tmp_path / "net.py").write_text(NET.format(factor=1))
    (tmp_path / "net.toml").write_text(CONFIG)
    (tmp_path / "test_net.py").write_text(TEST.format(options=', config="net.toml"'))
    save = [sys.executable, "-m", "ptsave", "save", "net.toml", "net.pt", "-q"]
    subprocess.run(save, cwd=tmp_path, env={**clean_env, "PYTHONPATH": str(root)}, check=True)
    return tmp_path


def test_in_a_suite(suite: Path, clean_env: dict[str, str], root: Path) -> None:
    def run(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "ptsave.pytest_plugin"]
        env = {**clean_env, "PYTHONPATH": str(root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run([*command, *flags], cwd=suite, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert run()[0] == 0
    before = (suite / "net.pt").read_bytes()
    (suite / "net.py").write_text(NET.format(factor=2))
    code, said = run()
    assert code == 1, said
    assert "net.pt: " in said
    assert "behaviour  fail" in said
    assert "pytest --ptsave-update records" in said
    assert "Traceback" not in said
    assert (suite / "net.pt").read_bytes() == before
    assert run("--ptsave-update")[0] == 0
    assert run()[0] == 0
    (suite / "test_net.py").write_text(TEST.format(options=""))
    recorded = (suite / "net.pt").read_bytes()
    assert run("--ptsave-update")[0] == 0
    assert (suite / "net.pt").read_bytes() == recorded
    write_pin(suite / "ptsave.lock", suite / "net.pt", PIN)
    code, said = run()
    assert code == 1, said
    assert "signature  fail     it is not what " in said
    (suite / "ptsave.lock").unlink()
    (suite / "net.pt").write_bytes(recorded.replace(b"fc.weight", b"fd.weight"))
    (suite / "test_net.py").write_text(TEST.format(options=', config="net.toml"'))
    damaged = (suite / "net.pt").read_bytes()
    assert run("--ptsave-update")[0] == 1
    assert (suite / "net.pt").read_bytes() == damaged
