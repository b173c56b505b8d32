"""The commands on archives: what they say, what they judge, and what they do not write."""

from __future__ import annotations

import base64
import collections
import io
import json
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.errors import RefusedError
from ptsave.formats import open_checkpoint
from tests.formats.wrapping import WRAPPERS, tarred, zipped
from tests.support import Command

SIMPLE = Path(__file__).parents[3] / "configs" / "simple_net.toml"


def torch_file(value: Any) -> bytes:
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


def test_inspect_says_in_what_it_is(ptsave_here: Command, tmp_path: Path) -> None:
    data = torch_file({"w": torch.ones(2)})
    (tmp_path / "a.tar.gz").write_bytes(WRAPPERS["tar.gz"](data))
    text = ptsave_here("inspect", "a.tar.gz").stdout
    assert text.startswith("a.tar.gz::model.bin: pt, 1 tensor")
    assert text.splitlines()[1] == (
        "the member 'model.bin' of a tar archive, "
        "in a gzip-compressed file (unpacked into a temporary file of 10.0 KiB)"
    )
    described = json.loads(ptsave_here("inspect", "a.tar.gz::model.bin", "--json").stdout)
    assert described["wrapped_in"] == [
        {"kind": "gzip", "member": "", "num_bytes": 10240, "is_unpacked": True},
        {"kind": "tar", "member": "model.bin", "num_bytes": len(data), "is_unpacked": False},
    ]
    assert described["file_bytes"] == len(data)
    (tmp_path / "a.pt").write_bytes(data)
    assert json.loads(ptsave_here("inspect", "a.pt", "--json").stdout)["wrapped_in"] == []


@pytest.mark.parametrize(
    "destination", ["b.zip::c.pt", "new.zip::c.pt", "new.tar.gz::c.safetensors", "b::c.pt"]
)
def test_nothing_is_written_into_an_archive(destination: str, ptsave_here: Command, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(torch_file({"w": torch.ones(2)}))
    for name in ("b.zip", "b"):
        (tmp_path / name).write_bytes(zipped({"c.pt": b"old"}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for words in (("convert", "a.pt", destination), ("save", SIMPLE, destination)):
        for more in ((), ("--overwrite",)):
            error = ptsave_here(*words, *more, code=4).stderr
            assert error.startswith(f"error: nothing is written into an archive ({destination})")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_name_with_two_colons(ptsave_here: Command, tmp_path: Path) -> None:
    """Which no archive is before: a file like any other, and read as it."""
    (tmp_path / "a.pt").write_bytes(torch_file({"w": torch.ones(2)}))
    ptsave_here("convert", "a.pt", "run::1.safetensors")
    assert "run::1.safetensors: safetensors" in ptsave_here("inspect", "run::1.safetensors").stdout


@pytest.mark.parametrize("wrapper", ["gzip", "zip", "tar.zst"])
def test_no_behaviour_is_recorded_in_one(wrapper: str, ptsave_here: Command, tmp_path: Path) -> None:
    ptsave_here("save", SIMPLE, "a.pt")
    data = WRAPPERS[wrapper]((tmp_path / "a.pt").read_bytes())
    (tmp_path / "wrapped").write_bytes(data)
    ptsave_here("verify", "wrapped", "-c", SIMPLE)
    error = ptsave_here("verify", "wrapped", "-c", SIMPLE, "--record", code=4).stderr
    assert "nothing is written into a" in error
    assert (tmp_path / "wrapped").read_bytes() == data
    ptsave_here("load", "wrapped", "-c", SIMPLE)
    ptsave_here("save", SIMPLE, "b.pt", "--weights", "wrapped")
    ptsave_here("inspect", "wrapped", "--diff", "b.pt")


def test_an_archive_is_not_written_over_by_its_member(ptsave_here: Command, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(zipped({"m.pt": torch_file({"w": torch.ones(2)})}))
    before = (tmp_path / "a.pt").read_bytes()
    ptsave_here("convert", "a.pt::m.pt", "a.pt", "--overwrite", code=4)
    ptsave_here("convert", "a.pt", "a.pt", "--overwrite", code=4)
    assert (tmp_path / "a.pt").read_bytes() == before


def test_the_library_for_zstd_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zst").write_bytes(WRAPPERS["zstd"](torch_file({})))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(RefusedError, match="zstandard") as error:
        open_checkpoint(tmp_path / "a.zst")
    assert error.value.hint == "pip install 'ptsave[zst]'"


# Real archives


class Schedule:
    """What an agent's learning rate is, as a user may have written it."""


def agent(folder: Path) -> Path:
    """As stable-baselines3 saves PPO.

    Source: stable_baselines3/common/save_util.py, `save_to_zip_file` and `data_to_json`, release 2.7: values
    that are not JSON are written by cloudpickle, which writes a class of a module that can be imported by its
    name, as pickle does.
    """
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    path = folder / "agent.zip"
    serialized = base64.b64encode(
        pickle.dumps({"space": collections.OrderedDict(), "lr": Schedule()})
    ).decode()
    data = {
        "policy_class": {":type:": "<class 'abc.ABCMeta'>", ":serialized:": serialized, "__module__": "x"},
        "num_timesteps": 1000,
        "learning_rate": 0.0003,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data, indent=4))
        for name, value in {
            "pytorch_variables": {},
            "policy": model.state_dict(),
            "policy.optimizer": optimizer.state_dict(),
        }.items():
            with archive.open(f"{name}.pth", "w", force_zip64=True) as member:
                torch.save(value, member)
        archive.writestr("_stable_baselines3_version", "2.7.0")
        archive.writestr("system_info.txt", "- OS: Linux\n")
    return path


def test_an_agent_of_stable_baselines3(ptsave_here: Command, tmp_path: Path) -> None:
    agent(tmp_path)
    error = ptsave_here("inspect", "agent.zip", code=4).stderr
    assert "holds 3 checkpoints" in error
    assert "agent.zip::policy.pth, agent.zip::policy.optimizer.pth" in error
    ptsave_here("convert", "agent.zip::policy.pth", "policy.safetensors")
    against = ("verify", "agent.zip::policy.pth", "--against", "policy.safetensors")
    verdict = json.loads(ptsave_here(*against, "--json", code=1).stdout)
    failed = {(f["check"], f["where"]) for f in verdict["findings"] if f["level"] == "fail"}
    assert failed == {("safe", f"{Schedule.__module__}.Schedule")}
    allowed = ("--allow", f"{Schedule.__module__}.*")
    ptsave_here(*against, *allowed)
    described = json.loads(ptsave_here("inspect", "agent.zip::policy.optimizer.pth", "--json").stdout)
    assert [*described["globals"]] == [f"{Schedule.__module__}.Schedule"]
    notes = "\n".join(described["notes"])
    assert "stable-baselines3 unpickles values of data" in notes
    assert "the archive also holds pytorch_variables.pth, policy.pth" in notes


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_of_nemo(mode: Any, ptsave_here: Command, tmp_path: Path) -> None:
    """Source: NeMo, nemo/core/connectors/save_restore_connector.py, `_make_nemo_file_from_folder`."""
    content = tmp_path / "content"
    content.mkdir()
    (content / "model_config.yaml").write_text("target: nemo.X\n")
    (content / "model_weights.ckpt").write_bytes(torch_file({"encoder.w": torch.ones(2)}))
    (content / "0b1a_tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with tarfile.open(tmp_path / "model.nemo", mode) as archive:
        archive.add(content, arcname=".")
    assert "model.nemo::model_weights.ckpt: pt, 1 tensor" in ptsave_here("inspect", "model.nemo").stdout
    ptsave_here("verify", "model.nemo")
    ptsave_here("convert", "model.nemo::./model_weights.ckpt", "model.safetensors")


def test_what_the_other_members_name_is_judged(ptsave_here: Command, tmp_path: Path) -> None:
    """Whichever is asked for: a program that reads the archive may take any."""
    good, bad = torch_file({"w": torch.ones(2)}), torch_file({"w": torch.ones(2), "x": Schedule()})
    name = f"{Schedule.__module__}.Schedule"
    for pack in (tarred, zipped):
        (tmp_path / "a").write_bytes(pack({"good.pt": good, "bad.pt": bad, "n.pkl": pickle.dumps({})}))
        for member in ("good.pt", "bad.pt"):
            assert name in ptsave_here("verify", f"a::{member}", "--checks", "safe", code=1).stdout
        (tmp_path / "a").write_bytes(pack({"good.pt": good, "bad.pkl": pickle.dumps(Schedule())}))
        assert name in ptsave_here("verify", "a", "--checks", "safe", code=1).stdout
        (tmp_path / "a").write_bytes(pack({"good.pt": good, "bad.pt": good[:-40]}))
        assert "cannot be read" in ptsave_here("verify", "a::good.pt", "--checks", "safe", code=1).stdout
        (tmp_path / "a").write_bytes(pack({"good.pt": good, "more.pt.gz": WRAPPERS["gzip"](bad)}))
        assert "not looked at" in ptsave_here("verify", "a", "--checks", "safe").stdout
