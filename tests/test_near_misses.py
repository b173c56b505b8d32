"""What is almost right is refused with what would be right, or understood."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer.main
from torch import nn

import ptsave
from ptsave.cli import main
from ptsave.cli.app import app
from ptsave.cli.elsewhere import COMMANDS
from ptsave.verbs.request import FLAGS


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.save({f"net.{i}.{name}": torch.ones(3) for i in range(2) for name in ("weight", "bias")}, "a.pt")
    return "a.pt"


@pytest.mark.parametrize(
    "line", ["inspect a.pt --filter {}", "convert a.pt b.pt --only {}", "convert a.pt b.pt --drop {}"]
)
@pytest.mark.parametrize(
    ("glob", "hint"),
    [
        ("weight", "did you mean '*weight*'?"),
        ("net.0.bais", "did you mean 'net.0.bias'?"),
        ("net.?.wieght", "did you mean 'net.?.weight'?"),
        ("*biass", "did you mean '*bias'?"),
        ("nett.*", "did you mean 'net.*'?"),
        ("x", "known names:"),
    ],
)
def test_a_glob_that_fits_nothing(
    line: str, glob: str, hint: str, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(line.format(glob).split()) == 2
    err = capfd.readouterr().err
    assert f"no name matches {glob!r} (--{line.split('--')[1].split()[0]})" in err
    assert f"hint: {hint}" in err
    assert not Path("b.pt").exists()


def test_globs_reach_nested_names_and_data(file: str) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, "nested.pt")
    assert main.run(["convert", "nested.pt", "b.pt", "--drop", "epoch"]) == 0
    assert torch.load("b.pt").keys() == {"model"}


@pytest.mark.parametrize(
    ("written", "name"),
    [("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16"), ("torch.bf16", "bfloat16")],
)
def test_dtypes_as_people_write_them(written: str, name: str, file: str) -> None:
    assert main.run(["convert", file, "b.pt", "--dtype", written]) == 0
    assert {value.dtype for value in torch.load("b.pt").values()} == {getattr(torch, name)}


def test_a_part_of_which_all_was_dropped_is_gone(file: str) -> None:
    model = nn.Linear(3, 2)
    model(torch.ones(3)).sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": [(1, 2.5), (2, 1.5)]}
    torch.save(parts, "training.pt")
    assert main.run(["convert", "training.pt", "b.pt", "--drop", "optimizer*"]) == 0
    assert torch.load("b.pt").keys() == {"model", "epochs"}
    assert main.run(["convert", "training.pt", "c.pt", "--drop", "epochs.1", "--drop", "*state*"]) == 0
    kept = torch.load("c.pt")
    assert kept["epochs"] == [(1, 2.5)]
    assert kept["optimizer"].keys() == {"param_groups"}


def test_a_shard_size_makes_shards(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(f"convert {file} shards --shard-size 24B".split()) == 0
    assert len([*Path("shards").glob("*.safetensors")]) == 2
    assert main.run(f"convert {file} b.safetensors --shard-size 24B".split()) == 2
    assert "this is one file" in capfd.readouterr().err


def test_a_shard_size_without_a_unit(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(f"convert {file} shards --shard-size 5".split()) == 2
    err = capfd.readouterr().err
    assert "'5' has no unit (--shard-size)" in err
    assert "did you mean 5GB? 5B is so many bytes" in err
    assert not Path("shards").exists()
    assert main.run(f"convert {file} shards --shard-size 2000000".split()) == 0
    with pytest.raises(ptsave.errors.UsageError, match="has no unit"):
        ptsave.convert(file, "others", shard_size="5")


@pytest.mark.parametrize(("one", "other"), [("a.pt", "m.pt"), ("m.pt", "a.pt")])
def test_a_prefix_of_all_names_is_one_line(
    one: str, other: str, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({f"module.{name}": value for name, value in torch.load(file).items()}, "m.pt")
    assert main.run(["inspect", one, "--diff", other]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "~  module.*  begins 4 names in m.pt alone: not compared"
    assert len(lines) == 2
    assert main.run(["inspect", one, "--diff", other, "--json"]) == 1
    assert len(json.loads(capfd.readouterr().out)["only_in_b"]) == 4


def test_a_prefix_of_some_names_is_none(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    names = list(torch.load(file))
    torch.save(
        {f"module.{name}" if i else f"x.{name}": torch.ones(3) for i, name in enumerate(names)}, "m.pt"
    )
    assert main.run(["inspect", file, "--diff", "m.pt"]) == 1
    assert len(capfd.readouterr().out.splitlines()) == 9


def test_the_word_model_is_the_model_wherever_it_is(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    """As convert has it; a key of this name comes first, and another word is still no key."""
    torch.save({"state_dict": torch.load(file), "epoch": 3}, "training.pt")
    assert main.run(f"verify {file} --against training.pt --select model --checks against".split()) == 0
    torch.save({"model": {"w": torch.zeros(1)}, "state_dict": torch.load(file)}, "both.pt")
    assert main.run(f"verify {file} --against both.pt --select model --checks against".split()) == 1
    assert main.run(f"verify {file} --against training.pt --select modell --checks against".split()) == 2
    assert "has no key 'modell'" in capfd.readouterr().err


class Net(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)  # whose loading code is asked
        self.head = nn.Linear(4, num_classes)


WAYS_OUT = {
    "under a key": (
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 1},
        "the model's tensors are all under 'state_dict.model': select=\"state_dict.model\"",
    ),
    "under a key of a wrapper": (
        lambda state: {"other.weight": torch.ones(9, 9), **{f"module.net.{n}": v for n, v in state.items()}},
        "the model's tensors are all under 'module.net': select=\"module.net\"",
    ),
    "renamed": (
        lambda state: {name.replace("fc", "linear"): value for name, value in state.items()},
        "rename its tensors with `ptsave convert`: --rename '^linear\\.=fc.' (then all 9 fit)",
    ),
    "another head": (
        lambda state: {**state, "head.weight": torch.ones(7, 4), "head.bias": torch.ones(7)},
        'or let what differs be: allow_missing="head.*" allow_unexpected="head.*"',
    ),
    "one too many": (
        lambda state: {**state, "extra": torch.ones(7)},
        'or leave it there: allow_unexpected="extra"',
    ),
}


@pytest.mark.parametrize("case", WAYS_OUT)
def test_a_misfit_says_what_would_fit(case: str, tmp_path: Path) -> None:
    change, hint = WAYS_OUT[case]
    torch.save(change(Net().state_dict()), tmp_path / "a.pt")
    with pytest.raises(ptsave.PtsaveError) as failed:
        ptsave.load(tmp_path / "a.pt", Net())
    assert failed.value.hint.endswith(hint)
    if found := re.search(r'select="(.*)"', hint):
        ptsave.load(tmp_path / "a.pt", Net(), select=found[1])


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("diff a.pt b.pt", "did you mean `ptsave inspect A --diff B`?"),
        ("convert a.pt b.pt --force", "did you mean --overwrite? see `ptsave convert --help`"),
        ("inspect a.pt --force", "see `ptsave inspect --help`"),
        ("convert a.pt -o b.pt", "the last path is what is written; see `ptsave convert --help`"),
        ("nothing a.pt", "see `ptsave --help`"),
        ("a.pt", "a command comes before the path: did you mean `ptsave inspect a.pt`?"),
        ("some/folder", "a command comes before the path: did you mean `ptsave inspect some/folder`?"),
        ("version", "did you mean `ptsave --version`?"),
        ("load a.pt --map-location cpu", "did you mean --device? see `ptsave load --help`"),
        ("inspect .\\a.pt", "did you mean './a.pt'?"),
        ("inspect x*.pt", "no file fits the pattern"),
        ("convert a.pt b.safetensors --shard-size 5GB", "leave --shard-size out"),
        ("inspect a.pt --diff", "see `ptsave inspect --help`"),
        ("inspect A.PT", "did you mean 'a.pt'?"),
        ("inspect -", "standard input is not read: name a file"),
        ("inspect a.pt --format json", "did you mean --json?"),
        ("inspect a.pt --values w", "ptsave.open(PATH)[NAME] is one of them"),
        ("convert a.pt b --shards 2", "did you mean --shard-size 5GB?"),
        ("convert a.pt b.pt --add-prefix net.", "did you mean --rename ^=PREFIX.?"),
        ("verify a.pt --checks nan", "did you mean 'finite'?"),
        ("params a.pt", "did you mean `ptsave inspect PATH --params`?"),
        ("inspect x/a.pt", "check the path"),
        ("convert a.pt folder", "name a file, such as folder.safetensors, or the format with --format:"),
        ("convert a.pt b.gguf", "formats that are written:"),
        ("load a.pt", "`ptsave inspect CHECKPOINT --make-config model.toml --class pkg.mod.Name` writes one"),
        ("load a.pt -c a.py", "`ptsave inspect CHECKPOINT --make-config model.toml` writes one"),
    ],
)
def test_what_other_tools_have_is_named(
    line: str, hint: str, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("a.py").write_text("class Net: ...")
    assert main.run(line.split()) in (2, 3)
    assert f"{hint}" in capfd.readouterr().err.partition("hint: ")[2]


def test_typers_proposal_gives_way_to_a_better_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["version"]) == 2
    assert "verify" not in capfd.readouterr().err
    assert main.run(["verifi"]) == 2
    assert "'verify'" in capfd.readouterr().err


def test_what_is_proposed_instead_is_there() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    flags = {name: {f for p in command.params for f in p.opts} for name, command in commands.items()}
    for name, line in COMMANDS.items():
        _, command, *words = line.split()
        assert name not in commands
        if command in ("--help", "--version"):
            assert main.run([command]) == 0
            continue
        assert {word for word in words if word.startswith("-")} <= flags[command], line
    for flag, instead in FLAGS.items():
        assert not any(flag in known for known in flags.values()), flag
        assert any({w for w in instead.split() if w.startswith("--")} <= known for known in flags.values())


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: ptsave.load("a.pt", nn.Linear(3, 2), map_location="cpu"), "did you mean device=?"),
        (
            lambda: ptsave.load("a.pt", strict=False),
            "allow_missing= and allow_unexpected= name what may differ",
        ),
        (lambda: ptsave.load("a.pt", weights_only=True), "leave it out: nothing in a file is run"),
        (lambda: ptsave.load("a.pt", mmap=True), "did you mean lazy=?"),
        (lambda: ptsave.load("a.pt", trust_record=True), "did you mean 'trust_recorded'?"),
        (lambda: ptsave.open("a.pt", map_location="cpu"), "known parameters: path"),
        (lambda: ptsave.save("b.pt", {}, force=True), "did you mean overwrite=?"),
        (lambda: ptsave.convert("a.pt", "b.pt", exclude="*"), "did you mean drop=?"),
        (lambda: ptsave.convert("a.pt", "b.pt", half=True), 'did you mean dtype="float16"?'),
        (lambda: ptsave.Checkpoints("runs", max_to_keep=3), "did you mean keep_last=?"),
        (lambda: ptsave.Checkpoints("runs", keep_lats=3), "did you mean 'keep_last'?"),
        (lambda: ptsave.inspect("a.pt", grep="*"), "did you mean filter=?"),
        (lambda: ptsave.verify("a.pt", strict_=True), "did you mean 'strict'?"),
    ],
)
def test_a_parameter_of_another_name(call: Callable[[], object], hint: str, file: str) -> None:
    with pytest.raises(ptsave.errors.UsageError, match="there is no parameter") as caught:
        call()
    assert caught.value.hint == hint
    assert not Path("b.pt").exists()
