"""No flag is ignored: one that nothing would look at is an error of usage, of every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main

from ptsave.cli import main
from ptsave.cli.app import app
from ptsave.models.verify.checks import MODEL_CHECKS
from ptsave.verbs.checks import FILE_CHECKS
from ptsave.verbs.verify import ALWAYS, NEED_A_MODEL, OF_LIST_CHECKS, RECORD, USED_BY

Run = Callable[..., tuple[int, str]]
SIMPLE = Path(__file__).parents[1] / "configs" / "simple_net.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a list of tensors and a run's folder."""
    folder = tmp_path_factory.mktemp("made")
    assert main.run(["save", str(SIMPLE), str(folder / "net.pt"), "-q"]) == 0
    np.savez(folder / "x.npz", x=np.zeros((4, 10), "float32"))
    (folder / "run").mkdir()
    torch.save({"step": 1, "model_state_dict": {"w": torch.ones(2)}}, folder / "run" / "step-000000001.pt")
    return folder


@pytest.fixture
def run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Run the command line in a copy of that folder; its exit code and stderr."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code = main.run([str(a) for a in arguments])
        return code, capfd.readouterr().err

    return call


def test_the_table_has_every_flag_of_verify() -> None:
    command = typer.main.get_command(app).commands["verify"]  # type: ignore[attr-defined]
    flags = {
        max(parameter.opts, key=len)
        for parameter in command.params
        if parameter.param_type_name == "option" and parameter.name != "help"
    }
    known = {*USED_BY, *ALWAYS, *OF_LIST_CHECKS, RECORD, "--checks"}
    assert flags == known
    assert {check for users in USED_BY.values() for check in users} <= {
        *FILE_CHECKS,
        *NEED_A_MODEL,
        RECORD,
    }


def test_the_checks_that_need_a_model_are_named() -> None:
    assert tuple(name for name in MODEL_CHECKS if name not in FILE_CHECKS) == NEED_A_MODEL


@pytest.mark.parametrize(
    "flags",
    [
        "--against net.pt --checks bytes",
        "--against absent.pt --checks bytes",
        f"--against {SIMPLE} --checks bytes,safe",
        "--against net.pt --close --checks finite",
        "--close",
        "--through pt --checks bytes",
        "--through pt",
        f"-c {SIMPLE} --through pt --checks keys",
        "--allow x.* --checks bytes",
        f"-c {SIMPLE} --checks bytes",
        "--trust-recorded --checks safe",
        f"-c {SIMPLE} --trust-recorded",
        "--select model",
        f"-c {SIMPLE} --select model --checks resume",
        "--device cpu",
        f"-c {SIMPLE} --device cpu --checks keys",
        "--set model.args.hidden_size=5",
        "--trust-recorded --set model.args.hidden_size=5",
        "--app-dir .",
        "--record",
        "--checks against",
        "--list-checks --against net.pt",
        "--list-checks --report x.json",
    ],
)
def test_verify_refuses_what_its_checks_do_not_use(run: Run, flags: str) -> None:
    code, err = run("verify", "net.pt", *flags.split())
    assert code == 2, err
    assert err.startswith("error: "), err
    assert not Path("x.json").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--against net.pt --checks against",
        "--against net.pt --close",
        f"-c {SIMPLE} --through pt,safetensors --checks roundtrip",
        f"-c {SIMPLE} --checks keys --set model.args.hidden_size=5 --app-dir .",
        f"-c {SIMPLE} --checks bytes --record",
        f"-c {SIMPLE} --checks behaviour --device cpu",
        f"-c {SIMPLE} --checks against --against {SIMPLE} --close --set model.args.hidden_size=5",
        "--allow x.*",
    ],
)
def test_verify_takes_what_its_checks_use(run: Run, flags: str) -> None:
    code, err = run("verify", "net.pt", *flags.split())
    assert code in (0, 1), err


@pytest.mark.parametrize("flag", ["--close", "--select m", "--device cpu", "--app-dir .", "--record"])
def test_verify_of_a_run_takes_no_flag_about_one_checkpoint(run: Run, flag: str) -> None:
    assert run("verify", "run", "--trust-recorded", *flag.split())[0] == 2
    assert run("verify", "run")[0] == 0


@pytest.mark.parametrize(
    "line",
    [
        f"save {SIMPLE} b.pt --weights net.pt --seed 0",
        f"save {SIMPLE} b.pt --select model",
        f"save {SIMPLE} b.pt --no-record --digest blake3",
        f"load net.pt -c {SIMPLE} --trust-recorded",
        f"load net.pt -c {SIMPLE} --overwrite",
        "load net.pt --trust-recorded --set model.args.hidden_size=5",
        "inspect net.pt --diff net.pt --stats",
        "inspect net.pt --diff net.pt --limit 3",
        "inspect net.pt --diff net.pt --sort name",
        "inspect net.pt --diff net.pt --filter w",
        "inspect net.pt --tree --stats",
        "inspect run --filter w",
        "inspect run --limit 3",
        "convert net.pt b.pt --shard-size 5GB",
        "convert net.pt b.npz --digest sha256 --no-record",
    ],
)
def test_other_commands_refuse_what_they_would_ignore(run: Run, line: str) -> None:
    before = sorted(Path().iterdir())
    code, err = run(*line.split())
    assert code == 2, err
    assert err.startswith("error: "), err
    assert sorted(Path().iterdir()) == before


def test_other_commands_take_what_they_use(run: Run) -> None:
    assert run("save", SIMPLE, "b.pt", "--seed", 1, "--digest", "blake3")[0] == 0
    assert run("save", SIMPLE, "c.pt", "--weights", "net.pt", "--no-record")[0] == 0
    assert (
        run("load", "net.pt", "-c", SIMPLE, "--inputs", "x.npz", "--outputs", "y.npz", "--overwrite")[0] == 0
    )
    assert run("convert", "net.pt", "d", "--format", "safetensors-sharded", "--shard-size", "100B")[0] == 0
    assert run("inspect", "net.pt", "--tree", "--sort", "name", "--limit", 1)[0] == 0
