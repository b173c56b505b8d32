"""Whatever takes a path takes an address: every command, from files that a web server has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

import ptsave
from ptsave.cli.app import app
from tests.servers.folders import folder
from tests.servers.serving import Server
from tests.support import Command

CONFIG = """
[model]
class = "ptsave.examples.SimpleNet"
args = {input_size = 10, hidden_size = 5, output_size = 2}
[inputs.x]
file = "data/../inputs.npz"
key = "x"
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "served"
    root.mkdir()
    (root / "net.toml").write_text(CONFIG)
    np.savez(root / "inputs.npz", x=np.ones((4, 10), "float32"))
    with Server(folder(root)) as running:
        yield running


def test_no_option_is_a_path_of_this_machine_but_the_folder_of_code() -> None:
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        of_disk = {parameter.name for parameter in command.params if parameter.type.name == "path"}
        assert of_disk <= {"app_dir"}, command.name


@pytest.mark.slow
def test_every_command_from_a_web_server(server: Server, tmp_path: Path, ptsave_here: Command) -> None:
    url, saved, out = server.url, tmp_path / "served" / "net.safetensors", tmp_path / "out.npz"
    config = f"{url}/net.toml"
    ptsave_here("save", config, saved)
    model = f"{url}/net.safetensors"
    ptsave_here("inspect", model, "--diff", model)
    ptsave_here("load", model, "-c", config, "--inputs", f"{url}/inputs.npz", "--outputs", out)
    assert np.load(out)["output"].shape == (4, 2)
    ptsave_here("save", config, tmp_path / "copy.pt", "--weights", model)
    ptsave_here("convert", model, tmp_path / "copy.npz")
    verdict = json.loads(ptsave_here("verify", model, "-c", config, "--json").stdout)
    assert verdict["verdict"] == "yes"
    assert {"behaviour", "keys", "roundtrip"} <= {one["check"] for one in verdict["findings"]}
    ptsave_here("verify", tmp_path / "copy.pt", "--against", model)
    ptsave_here("verify", model, "--against", config, "--close", code=0)


def test_every_function_from_a_web_server(server: Server, tmp_path: Path) -> None:
    config = f"{server.url}/net.toml"
    from ptsave.examples import SimpleNet

    model = SimpleNet(10, 5, 2)
    ptsave.save(tmp_path / "served" / "net.pt", model, config=config)
    where = f"{server.url}/net.pt"
    ptsave.load(where, config=config)
    ptsave.load(where, SimpleNet(10, 5, 2))
    assert ptsave.inspect(where).num_tensors == len(model.state_dict())
    assert ptsave.verify(where, config=config, against=where).is_yes
    assert ptsave.convert(where, tmp_path / "a.npz").num_tensors == len(model.state_dict())
    with ptsave.open(where) as checkpoint:
        assert len(checkpoint.tensors) == len(model.state_dict())
