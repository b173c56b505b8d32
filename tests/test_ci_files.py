"""The pre-commit hooks and the GitHub action, run as pre-commit and the runner would."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.support import some

Done = subprocess.CompletedProcess[str]

ROOT = Path(__file__).parents[1]
HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))}
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
INSTALL, VERIFY = ACTION["runs"]["steps"]


@pytest.fixture
def env(clean_env: dict[str, str]) -> dict[str, str]:
    """An environment with this Python's programs in front."""
    return clean_env | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), clean_env["PATH"]])}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a whole checkpoint, one with a NaN, and one that is none."""
    save_file({"weight": torch.ones(3)}, tmp_path / "good.safetensors")
    torch.save({"weight": torch.ones(3)}, tmp_path / "a good one.pt")
    save_file({"weight": torch.tensor([1.0, float("nan")])}, tmp_path / "bad.safetensors")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    return tmp_path


# --- pre-commit ---------------------------------------------------------------------------------------


@pytest.fixture
def hook(files: Path, env: dict[str, str]) -> Callable[..., Done]:
    """Run a hook on files, as pre-commit does: its entry split like a shell's words, then the names."""

    def run(name: str, *paths: str) -> Done:
        command = [*shlex.split(HOOKS[name]["entry"]), *HOOKS[name].get("args", []), *paths]
        return subprocess.run(command, cwd=files, env=env, capture_output=True, text=True)

    return run


def test_the_hooks_have_what_pre_commit_demands() -> None:
    assert set(HOOKS) == {"ptsave-verify", "ptsave-verify-system"}
    for hook in HOOKS.values():
        assert {"id", "name", "entry", "language"} <= hook.keys()
        assert "types" not in hook  # `file` by default: what git-lfs left out is refused, not passed over
    assert HOOKS["ptsave-verify"]["language"] == "python"
    assert HOOKS["ptsave-verify-system"]["language"] == "system"


@pytest.mark.slow
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_passes_whole_checkpoints(hook: Callable[..., Done], name: str) -> None:
    done = hook(name, "good.safetensors", "a good one.pt")
    assert done.returncode == 0, done.stderr
    assert "yes: good.safetensors passed" in done.stdout
    assert "yes: a good one.pt passed" in done.stdout


@pytest.mark.parametrize(
    "paths", some([("bad.safetensors", "good.safetensors"), ("page.pt", "good.safetensors")])
)
def test_a_hook_stops_at_none_and_fails_for_one(hook: Callable[..., Done], paths: tuple[str, ...]) -> None:
    done = hook("ptsave-verify", *paths)
    assert done.returncode != 0
    assert "yes: good.safetensors passed" in done.stdout
    if "page.pt" in paths:
        assert "error:" in done.stderr
    else:
        assert "no: bad.safetensors failed finite" in done.stdout


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("model.safetensors", True),
        ("runs/1/model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin.index.json", True),
        ("a.pt", True),
        ("a.pth", True),
        ("lightning/epoch=1.ckpt", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("peft/adapter_model.bin", True),
        ("firmware.bin", False),
        ("config.json", False),
        ("a.pt.md", False),
        ("script.py", False),
        ("my_pytorch_model.bin.txt", False),
    ],
)
def test_the_hooks_look_at_checkpoints_only(path: str, is_one: bool) -> None:
    for hook in HOOKS.values():
        assert bool(re.search(hook["files"], path)) == is_one


# --- the action ---------------------------------------------------------------------------------------


@pytest.fixture
def step(files: Path, env: dict[str, str]) -> Callable[..., Done]:
    """Run a step of the action with inputs, as the runner does: expressions filled in, in its own bash."""

    def run(step: dict[str, Any], *, env_: dict[str, str] | None = None, **inputs: str) -> Done:
        values = {f"inputs.{name}": spec.get("default", "") for name, spec in ACTION["inputs"].items()}
        values |= {f"inputs.{name}": value for name, value in inputs.items()}
        values["github.action_path"] = str(ROOT)
        filled = {
            name: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values[m[1]], text)
            for name, text in step["env"].items()
        }
        script = files / "step.sh"
        script.write_text(step["run"], encoding="utf-8")
        (files / "output").write_text("")
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=files,
            env=env | {"GITHUB_OUTPUT": str(files / "output")} | filled | (env_ or {}),
            capture_output=True,
            text=True,
        )

    return run


def outputs(files: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (files / "output").read_text().splitlines())


def test_the_action_has_what_github_demands() -> None:
    assert {"name", "description", "inputs", "outputs", "runs"} <= ACTION.keys()
    assert ACTION["runs"]["using"] == "composite"
    for step in (INSTALL, VERIFY):
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # an input would be run as a command
    for entry in (*ACTION["inputs"].values(), *ACTION["outputs"].values()):
        assert entry["description"].endswith(".")
    text = json.dumps(ACTION)
    assert set(re.findall(r"\binputs\.(\w+)", text)) == set(ACTION["inputs"])
    assert set(re.findall(r"steps\.(\w+)\.outputs\.(\w+)", text)) == {
        (VERIFY["id"], name) for name in ACTION["outputs"]
    }
    assert "uses" not in INSTALL.keys() | VERIFY.keys()  # nothing else is trusted, nothing is uploaded


@pytest.mark.parametrize(
    ("path", "code", "verdict"),
    some([("bad.safetensors", 1, "no"), ("good.safetensors", 0, "yes"), ("no.pt", 3, "error")]),
)
def test_the_action_gives_the_verdict(
    step: Callable[..., Done], files: Path, path: str, code: int, verdict: str
) -> None:
    done = step(VERIFY, path=path)
    assert done.returncode == code, done.stderr
    assert outputs(files) == {"verdict": verdict, "report": "ptsave-report.html"}
    assert (files / "ptsave-report.html").exists() == (code != 3)


@pytest.mark.slow
def test_the_action_hands_on_every_input(step: Callable[..., Done], files: Path) -> None:
    (files / "my models").mkdir()
    shapes = {"fc1.weight": (5, 10), "fc1.bias": (5,), "fc2.weight": (2, 5), "fc2.bias": (2,)}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(state, files / "my models" / "-odd 'name'.safetensors")
    shutil.copytree(ROOT / "configs", files / "configs")
    done = step(
        VERIFY,
        path="my models/-odd 'name'.safetensors",
        config="configs/simple_net.toml",
        report="my models/out.json",
        args="--checks bytes,safe,keys\n  --set 'model.args.hidden_size=7' --allow \"a b.$(touch ran)*\"",
    )
    assert done.returncode == 1, done.stderr  # these weights fit a hidden size of 5
    report = json.loads((files / "my models" / "out.json").read_text("utf-8"))
    assert report["path"] == "my models/-odd 'name'.safetensors"
    assert {finding["check"] for finding in report["findings"]} == {"bytes", "safe", "keys"}
    assert any("[7, 10]" in finding["message"] for finding in report["findings"]), report
    assert outputs(files)["report"] == "my models/out.json"
    assert not (files / "ran").exists()


@pytest.mark.slow
def test_the_action_adds_no_argument_of_its_own(step: Callable[..., Done]) -> None:
    done = step(VERIFY, path="good.safetensors", args="   \n\t")
    assert done.returncode == 0, done.stderr


def test_the_action_stops_at_arguments_that_it_cannot_read(step: Callable[..., Done], files: Path) -> None:
    done = step(VERIFY, path="good.safetensors", args="--checks 'bytes")
    assert done.returncode == 2
    assert "quote" in done.stderr
    assert outputs(files) == {}
    assert not (files / "ptsave-report.html").exists()


@pytest.mark.slow
def test_the_action_annotates(step: Callable[..., Done]) -> None:
    done = step(VERIFY, path="bad.safetensors", env_={"GITHUB_ACTIONS": "true"})
    assert "::error file=bad.safetensors,title=ptsave finite::weight: " in done.stdout + done.stderr


OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one the other way round
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


@pytest.mark.slow
def test_the_action_installs_itself(step: Callable[..., Done], files: Path) -> None:
    done = step(INSTALL, env_=OFFLINE | {"PIP_TARGET": str(files / "site")})
    assert done.returncode == 0, done.stderr
    assert (files / "site" / "ptsave" / "errors.py").read_bytes() == (
        ROOT / "ptsave" / "errors.py"
    ).read_bytes()
    assert (files / "site" / "ptsave" / "render" / "report" / "page.css").exists()


@pytest.mark.slow
def test_the_action_installs_a_version_that_is_asked_for(step: Callable[..., Done], files: Path) -> None:
    done = step(INSTALL, version="123.4.5", env_=OFFLINE | {"PIP_TARGET": str(files / "site")})
    assert done.returncode == 1
    assert "ptsave==123.4.5" in done.stderr
    assert INSTALL["if"] == "inputs.version != 'none'"
