"""The five commands in this process: output, JSON, exit codes, what they leave behind."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ptsave.cli import main
from ptsave.examples import SimpleNet, TinyTransformer

Run = Callable[..., tuple[int, str, str]]
CONFIGS = Path(__file__).parents[2] / "configs"
SIMPLE = CONFIGS / "simple_net.toml"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in `tmp_path`; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main.run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def as_json(result: tuple[int, str, str], code: int = 0) -> dict[str, Any]:
    assert result[0] == code, result
    document = json.loads(result[1])
    assert document["schema_version"] == 1
    return document


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_save_inspect_load_verify(run: Run, suffix: str) -> None:
    saved = as_json(run("save", SIMPLE, f"net.{suffix}", "--seed", "7", "--json"))
    assert saved["num_tensors"] == 4
    assert saved["missing"] == saved["unexpected"] == saved["mismatched"] == []
    assert 1000 < saved["behaviour_bytes"] < 10_000
    _, _, told = run("save", SIMPLE, f"net.{suffix}", "--seed", "7", "--overwrite")
    assert "KiB of behaviour, from fresh weights of seed 7" in told

    torch.manual_seed(7)
    expected = SimpleNet(10, 5, 2).state_dict()
    read = torch.load if suffix == "pt" else safetensors.torch.load_file
    found = read(f"net.{suffix}")
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    inspected = as_json(run("inspect", f"net.{suffix}", "--json"))
    assert inspected["format"] == suffix
    assert inspected["num_elements"] == sum(t.numel() for t in expected.values())
    assert [t["name"] for t in inspected["tensors"]] == list(expected)
    assert inspected["globals"] == {}
    assert inspected["record"]["model"]["class"] == "ptsave.examples.SimpleNet"

    loaded = as_json(run("load", f"net.{suffix}", "-c", SIMPLE, "--outputs", "y.npz", "--json"))
    assert loaded["num_tensors"] == 4
    assert loaded["outputs"]["output"]["shape"] == [4, 2]
    assert Path("y.npz").exists()

    verified = as_json(run("verify", f"net.{suffix}", "-c", SIMPLE, "--json"))
    assert verified["verdict"] == "yes"
    levels = {(f["check"], f["level"]) for f in verified["findings"]}
    assert {(c, "ok") for c in ("bytes", "safe", "finite", "keys", "roundtrip")} <= levels
    assert "fail" not in {level for _, level in levels}


def test_trust_recorded_is_asked_for(run: Run) -> None:
    run("save", SIMPLE, "net.pt")
    code, _, err = run("load", "net.pt")
    assert code == 2
    assert "--trust-recorded" in err
    assert as_json(run("load", "net.pt", "--trust-recorded", "--outputs", "y.npy", "--json"))["model"]


def test_save_from_weights_with_wrappers(run: Run) -> None:
    net = SimpleNet(10, 5, 2)
    state = {f"module._orig_mod.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": state}, "run.pt")
    code, _, err = run("save", SIMPLE, "net.safetensors", "--weights", "run.pt")
    assert code == 0
    assert "model_state_dict" in err
    assert "module." in err
    found = safetensors.torch.load_file("net.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())


def test_save_refuses_weights_that_do_not_fit(run: Run) -> None:
    state = OrderedDict(SimpleNet(10, 5, 2).state_dict())
    state["fc3.weight"] = state.pop("fc1.weight")
    state["fc2.bias"] = torch.zeros(9)
    torch.save(state, "w.pt")
    document = as_json(run("save", SIMPLE, "net.pt", "--weights", "w.pt", "--json"), code=4)["error"]
    assert document["missing"] == ["fc1.weight"]
    assert document["unexpected"] == ["fc3.weight"]
    assert document["mismatched"][0]["name"] == "fc2.bias"
    assert document["nearest"] == {"fc1.weight": "fc3.weight"}
    assert not Path("net.pt").exists()


def test_save_from_a_factory(run: Run) -> None:
    assert run("save", CONFIGS / "train_simple_net.toml", "trained.pt")[0] == 0
    assert as_json(run("verify", "trained.pt", "-c", SIMPLE, "--json"))["verdict"] == "yes"


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_ties_stay_tied(run: Run, suffix: str) -> None:
    config = CONFIGS / "tiny_transformer.toml"
    assert run("save", config, f"t.{suffix}")[0] == 0
    model = TinyTransformer(vocab_size=64, d_model=32, num_heads=4, num_layers=2, max_length=16)
    tied = [n for n, p in model.named_parameters(remove_duplicate=False) if p is model.head.weight]
    assert len(tied) == 2
    inspected = as_json(run("inspect", f"t.{suffix}", "--json"))
    alias = {t["name"]: t["alias_of"] for t in inspected["tensors"]}
    assert sorted(name for name in tied if alias[name]) == [max(tied, key=lambda n: list(alias).index(n))]
    assert as_json(run("verify", f"t.{suffix}", "-c", config, "--json"))["verdict"] == "yes"


def test_training_checkpoint(run: Run) -> None:
    net = SimpleNet(10, 5, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net(torch.randn(4, 10)).sum().backward()
    optimizer.step()
    torch.save(
        {"epoch": 5, "model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict()},
        "run.pt",
    )
    document = as_json(run("inspect", "run.pt", "--json"))
    assert document["data"]["epoch"] == 5
    names = [t["name"] for t in document["tensors"]]
    assert "model_state_dict.fc1.weight" in names
    assert "optimizer_state_dict.state.0.exp_avg" in names
    code, out, _ = run("inspect", "run.pt")
    assert code == 0
    assert "Adam" in out
    assert "0.01" in out
    assert as_json(run("load", "run.pt", "-c", SIMPLE, "--json"))["num_tensors"] == 4
    code, _, err = run("convert", "run.pt", "w.safetensors")
    assert code == 4
    assert "epoch" in err
    assert not Path("w.safetensors").exists()
    assert run("convert", "run.pt", "w.safetensors", "--select", "model")[0] == 0
    found = safetensors.torch.load_file("w.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())
    assert as_json(run("verify", "run.pt", "-c", SIMPLE, "--json"))["verdict"] == "yes"
    assert run("convert", "run.pt", "again.pt")[0] == 0
    again = torch.load("again.pt")
    assert again["epoch"] == 5
    assert list(again["optimizer_state_dict"]["state"]) == [0, 1, 2, 3]
    assert torch.equal(
        again["optimizer_state_dict"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


def test_convert_there_and_back(run: Run) -> None:
    run("save", SIMPLE, "a.pt")
    assert as_json(run("convert", "a.pt", "b.safetensors", "--json"))["num_tensors"] == 4
    assert run("convert", "b.safetensors", "c.pt")[0] == 0
    assert run("inspect", "a.pt", "--diff", "c.pt")[0] == 0
    assert run("verify", "c.pt", "--against", "b.safetensors")[0] == 0


def test_convert_edits(run: Run) -> None:
    torch.save({f"module.{n}": t for n, t in SimpleNet(10, 5, 2).state_dict().items()}, "a.pt")
    document = as_json(
        run(
            "convert", "a.pt", "b.safetensors", "--strip-prefix", "auto", "--rename", r"^fc(\d)=layer\1",
            "--drop", "*.bias", "--dtype", "bfloat16", "--json",
        )
    )  # fmt: skip
    assert document["dropped"] == ["module.fc1.bias", "module.fc2.bias"]
    assert document["renamed"]["module.fc1.weight"] == "layer1.weight"
    found = safetensors.torch.load_file("b.safetensors")
    assert list(found) == ["layer1.weight", "layer2.weight"]
    assert found["layer1.weight"].dtype is torch.bfloat16
    code, _, err = run("convert", "a.pt", "c.pt", "--rename", r"weight|bias=x")
    assert code == 4
    assert "both become" in err


def test_dry_run_writes_nothing(run: Run) -> None:
    run("save", SIMPLE, "a.pt")
    code, out, _ = run("convert", "a.pt", "b.safetensors", "--dry-run")
    assert code == 0
    assert "would convert" in out
    assert not Path("b.safetensors").exists()


def test_verify_says_no(run: Run) -> None:
    run("save", SIMPLE, "a.pt")
    content = bytearray(Path("a.pt").read_bytes())
    weights = torch.load("a.pt")["fc1.weight"]
    at = content.index(weights.numpy().tobytes())
    content[at + 5] ^= 4
    Path("bad.pt").write_bytes(content)
    document = as_json(run("verify", "bad.pt", "--checks", "bytes", "--json"), code=1)
    assert document["verdict"] == "no"
    assert [f["where"] for f in document["findings"] if f["level"] == "fail"] == ["fc1.weight"]
    code, _, err = run("load", "bad.pt", "-c", SIMPLE)
    assert code == 3
    assert "fc1.weight" in err


def test_verify_safe(run: Run) -> None:
    torch.save({"w": torch.zeros(2), "args": argparse.Namespace(lr=0.1)}, "a.pt")
    document = as_json(run("inspect", "a.pt", "--json"))
    assert "argparse.Namespace" in document["globals"]
    assert document["data"]["args.lr"] == 0.1
    assert run("verify", "a.pt", "--checks", "safe")[0] == 1
    assert run("verify", "a.pt", "--checks", "safe", "--allow", "argparse.*")[0] == 0


def test_verify_finite(run: Run) -> None:
    torch.save({"w": torch.tensor([1.0, float("nan")])}, "a.pt")
    code, out, _ = run("verify", "a.pt", "--checks", "finite")
    assert code == 1
    assert "1 NaN" in out
    assert out.splitlines()[-1].startswith("no")


def test_verify_finite_judges_weights_and_optimizer_states(run: Run) -> None:
    """A default Lightning checkpoint has an infinite `kth_value`; a number in a model is a weight."""
    infinite = torch.tensor(float("inf"))
    model = {"w": torch.ones(3), "scale": torch.tensor(1.0), "mask": torch.full((3,), -float("inf"))}
    state = {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}
    adam = {"state": {0: state}, "param_groups": [{"params": [0]}]}
    tree = {"state_dict": model, "optimizer_states": [adam], "callbacks": {"best": {"kth_value": infinite}}}
    torch.save(tree, "a.ckpt")
    check = ("verify", "a.ckpt", "--checks", "finite")
    assert "state_dict.mask" in run(*check)[1]
    code, out, _ = run(*check, "--allow-infinite", "*.mask")
    assert code == 0
    assert "not finite, and neither a weight nor an optimizer's state" in out
    for place, name in ((model, "scale"), (state, "step")):
        kept = place[name]
        place[name] = infinite
        torch.save(tree, "a.ckpt")
        assert run(*check, "--allow-infinite", "*.mask")[0] == 1
        place[name] = kept
    model["mask"][0] = float("nan")
    torch.save(tree, "a.ckpt")
    assert run(*check, "--allow-infinite", "*.mask")[0] == 1
    assert run("verify", "a.ckpt", "--checks", "bytes", "--allow-infinite", "*")[0] == 2


def test_one_tensor_is_not_said_to_be_many(run: Run) -> None:
    torch.save({"w": torch.ones(1)}, "a.pt")
    out = run("verify", "a.pt")[1]
    assert "1 tensor lies within" in out
    assert "1 tensor matches its CRC-32" in out
    assert "1 floating-point tensor, every" in out


def test_verify_without_a_config_skips_the_model(run: Run) -> None:
    run("save", SIMPLE, "a.pt")
    document = as_json(run("verify", "a.pt", "--json"))
    assert {f["check"]: f["level"] for f in document["findings"]}["roundtrip"] == "skipped"
    assert run("verify", "a.pt", "--checks", "bytes,keys")[0] == 2  # what is asked for is done, or refused


NOISY = """
import torch
class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)
    def forward(self, x):
        return self.fc(x) + torch.rand(2)
"""


def test_a_model_that_is_not_deterministic_is_said_to_be_so(run: Run) -> None:
    Path("noisy.py").write_text(NOISY)
    Path("noisy.toml").write_text('[model]\nclass = "noisy.Noisy"\n[inputs.x]\nshape = [1, 2]\n')
    assert run("save", "noisy.toml", "n.pt")[0] == 0
    document = as_json(run("verify", "n.pt", "-c", "noisy.toml", "--json"))
    assert document["verdict"] == "yes"
    assert any("not deterministic" in f["message"] and f["level"] == "warn" for f in document["findings"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "absent.pt"], 3),
        (["inspect", "empty.pt"], 3),
        (["inspect", "page.html"], 3),
        (["inspect", "pointer.pt"], 3),
        (["inspect", "folder.pt"], 3),
        (["inspect", "a.pt", "--sort", "sise"], 2),
        (["inspect", "a.pt", "--frobnicate"], 2),
        (["frobnicate"], 2),
        (["convert", "a.pt", "exists.pt"], 4),
        (["convert", "a.pt", "folder.pt"], 4),
        (["convert", "a.pt", "no/such/folder.pt"], 4),
        (["convert", "a.pt", "b.unknown"], 2),
        (["convert", "a.pt"], 2),
        (["verify", "a.pt", "--checks", "bites"], 2),
        (["save", SIMPLE, "exists.pt"], 4),
        (["save", "absent.toml", "b.pt"], 3),
        (["load", "a.pt", "-c", SIMPLE, "--device", "warp"], 2),
    ],
)
def test_bad_input_gets_an_error_and_a_hint(run: Run, arguments: list[object], code: int) -> None:
    torch.save({"w": torch.zeros(2)}, "a.pt")
    Path("empty.pt").touch()
    Path("exists.pt").write_text("precious")
    Path("folder.pt").mkdir()
    Path("page.html").write_text("<!DOCTYPE html><html></html>")
    Path("pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    before = sorted(Path().iterdir())
    found, out, err = run(*arguments)
    assert found == code, err
    assert out == ""
    assert err.startswith("error: ")
    assert "\nhint: " in err
    assert sorted(Path().iterdir()) == before
    assert Path("exists.pt").read_text() == "precious"
    error = json.loads(run(*arguments, "--json")[1])["error"]
    assert error["code"] == code
    assert error["what"]
    assert error["hint"]


def test_a_missing_argument_is_named(run: Run) -> None:
    code, _, err = run("save", SIMPLE)
    assert (code, err.splitlines()[0]) == (2, "error: Missing argument 'DST'")


def test_quiet_is_quiet(run: Run) -> None:
    assert run("save", SIMPLE, "a.pt", "-q") == (0, "", "")
    assert run("convert", "a.pt", "b.safetensors", "-q") == (0, "", "")
    assert run("load", "a.pt", "-c", SIMPLE, "-q") == (0, "", "")
    code, out, err = run("verify", "a.pt", "-q", "--checks", "bytes")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1


def test_names_never_reach_the_terminal_raw(run: Run) -> None:
    torch.save({"\x1b[31mred[bold]\u202e": torch.zeros(1), "x": {"\x07": 1}}, "a.pt")
    code, out, _ = run("inspect", "a.pt")
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert "\\x1b[31mred[bold]\\u202e" in out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[inputs.x]", "[inputs.y]", "forward() takes no 'y'"),
        ("shape = [4, 10]", "shape = [4, 11]", "the forward pass failed"),
        ("[inputs.x]", "[inputs.z]\nshape = [1]\n[inputs.x]", "forward() takes no 'z'"),
    ],
)
def test_inputs_that_do_not_fit_cost_no_record_in_silence(run: Run, old: str, new: str, words: str) -> None:
    Path("c.toml").write_text(SIMPLE.read_text().replace(old, new))
    code, _, err = run("save", "c.toml", "a.pt")
    assert code == 2
    assert f"cannot record the model's behaviour: {words}" in err
    assert "--no-behaviour saves without" in err
    assert not Path("a.pt").exists()
    assert run("save", "c.toml", "a.pt", "--no-behaviour")[0] == 0
    assert "behaviour" not in json.loads(run("inspect", "a.pt", "--json")[1])["record"]
    last = run("verify", "a.pt", "-c", SIMPLE)[1].splitlines()[-1]
    assert "skipped: behaviour (" in last


def test_a_yes_says_what_was_skipped_and_why(run: Run) -> None:
    torch.save({"w": torch.ones(2)}, "a.pt")
    last = run("verify", "a.pt")[1].splitlines()[-1]
    assert last.endswith("; skipped: behaviour, keys, roundtrip (needs a config: -c CONFIG)"), last
