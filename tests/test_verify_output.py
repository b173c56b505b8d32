"""What `verify` prints for a person: a screen, with the verdict on the last line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ptsave.cli import main

NUM_TENSORS = 300
CONFIG = """
[model]
class = "ptsave.examples.SimpleNet"
args = {input_size = 4, hidden_size = 3, output_size = 2}
"""


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    """Exit code and the lines of stdout and stderr."""
    code = main.run([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out.splitlines(), err.splitlines()


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in which everything is wrong with hundreds of tensors."""
    monkeypatch.chdir(tmp_path)
    state = {f"layers.{i}.weight": torch.full((4,), float("nan")) for i in range(NUM_TENSORS)}
    torch.save(state, "a.pt")
    torch.save({name: torch.ones(4) for name in state}, "other.pt")
    data = bytearray(Path("a.pt").read_bytes())
    nan = torch.full((4,), float("nan")).numpy().tobytes()
    at = 0
    while (at := data.find(nan, at)) >= 0:
        data[at] ^= 1
        at += len(nan)
    Path("a.pt").write_bytes(data)
    Path("c.toml").write_text(CONFIG)
    return Path("a.pt")


def test_hundreds_of_findings_fit_on_a_screen(broken: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "verify", broken, "-c", "c.toml", "--against", "other.pt")
    assert code == 1
    assert len(out) <= 48
    assert out[-1] == "no: a.pt failed against, bytes, finite, keys"
    for check in ("bytes", "finite", "keys", "against"):
        lines = [line for line in out if line.startswith(check) and "FAIL" in line]
        assert len(lines) == 7
        assert lines[-1].endswith(f"{NUM_TENSORS - 6} more (--verbose lists them)") or check == "keys"


def test_verbose_and_json_have_them_all(broken: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capfd, "verify", broken, "--checks", "bytes,finite", "--verbose")
    assert sum("FAIL" in line for line in out) == 2 * NUM_TENSORS
    assert err == ["checking bytes …", "checking finite …"]
    _, out, err = run(capfd, "verify", broken, "--checks", "bytes,finite", "--json")
    assert sum(f["level"] == "fail" for f in json.loads(out[0])["findings"]) == 2 * NUM_TENSORS
    assert err == []


def test_recording_says_how_large_the_record_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(f"{CONFIG}[inputs.x]\nshape = [2, 4]\n")
    assert run(capfd, "save", "c.toml", "a.safetensors", "--no-record")[0] == 0
    code, out, err = run(capfd, "verify", "a.safetensors", "-c", "c.toml", "--record")
    assert code == 0
    assert out[-1].startswith("yes: ")
    assert err[-1].startswith(
        "recorded the behaviour of ptsave.examples.SimpleNet in a.safetensors: the record takes "
    )
    assert err[-1].endswith("KiB")
    assert run(capfd, "verify", "a.safetensors", "-c", "c.toml", "--record", "-q")[2] == []


def test_a_check_of_the_file_imports_no_report() -> None:
    """Nor torch, nor the training's parsers for what they do not need."""
    code = (
        "import sys\nfrom ptsave.cli import main as cli\n"
        "cli.run(['verify', sys.argv[1], '--checks', 'bytes'])\n"
        "print(sorted({'torch', 'ptsave.render.report', 'xml.etree'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
