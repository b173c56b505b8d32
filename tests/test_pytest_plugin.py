"""The pytest plugin, in a run of pytest: a yes, a no with its findings, and recording anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptsave.config.lock import LockFile, lock_bytes
from tests.config.test_lock import PIN
from tests.support import Command

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x) * {factor}
"""
CONFIG = '[model]\nclass = "net_of_suite.Net"\n[inputs.x]\nshape = [2, 3]\n'
TEST = """
def test_still_the_same(ptsave_verify):
    verdict = ptsave_verify("net.pt"{options})
    assert verdict.is_yes
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ptsave_here: Command) -> Iterator[Path]:
    """A folder with a model, its config, its checkpoint and a test, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file within a second
    (tmp_path / "net_of_suite.py").write_text(NET.format(factor=1))
    (tmp_path / "net.toml").write_text(CONFIG)
    (tmp_path / "test_net.py").write_text(TEST.format(options=', config="net.toml"'))
    ptsave_here("save", "net.toml", "net.pt", "-q")
    yield tmp_path
    sys.modules.pop("net_of_suite", None)


def test_in_a_suite(suite: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*flags: str) -> tuple[int, str]:
        for name in ("net_of_suite", "test_net"):
            sys.modules.pop(name, None)
        capfd.readouterr()
        # what that plugin collects at the end of each run is all of this process's garbage, five times
        options = ["-q", "-p", "ptsave.pytest_plugin", "-p", "no:unraisableexception", f"--rootdir={suite}"]
        code = pytest.main([*options, *flags])
        return int(code), "".join(capfd.readouterr())

    assert run()[0] == 0
    before = (suite / "net.pt").read_bytes()
    (suite / "net_of_suite.py").write_text(NET.format(factor=2))
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
    (suite / "ptsave.lock").write_bytes(lock_bytes(LockFile(suite / "ptsave.lock", {"net.pt": PIN})))
    code, said = run()
    assert code == 1, said
    assert "signature  fail     it is not what " in said
    (suite / "ptsave.lock").unlink()
    (suite / "net.pt").write_bytes(recorded.replace(b"fc.weight", b"fd.weight"))
    (suite / "test_net.py").write_text(TEST.format(options=', config="net.toml"'))
    damaged = (suite / "net.pt").read_bytes()
    assert run("--ptsave-update")[0] == 1
    assert (suite / "net.pt").read_bytes() == damaged
