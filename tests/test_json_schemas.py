"""docs/schemas: what commands print with --json is as the schema says, with no field beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from ptsave.cli.main import run
from tests.schemas import SCHEMA, faults
from tests.sign.keys_made import write_pair

ROOT = Path(__file__).parents[1]
NET = str(ROOT / "configs" / "tiny_transformer.toml")
Print = Callable[[str], Any]

LINES = {
    "save net.toml made.pt": "save",
    "save net.toml made.safetensors --weights a.pt --allow-missing *": "save",
    "inspect a.pt --stats": "inspect",
    "inspect training.pt": "inspect",
    "inspect lightning.ckpt": "inspect",
    "inspect signed.safetensors": "inspect",
    "convert a.pt made.safetensors --sign key.key": "convert",
    "verify signed.safetensors --signed-by key.pub": "verify",
    "verify signed.safetensors --signed-by other.pub": "verify",
    "inspect module.pt": "inspect",
    "inspect run": "inspect",
    "inspect plain": "inspect",
    "inspect a.pt training.pt run plain": "inspect-several",
    "inspect odd.pt --diff even.pt": "inspect-diff",
    "inspect a.pt --diff training.pt": "inspect-diff",
    "inspect a.pt --make-config new.toml": "inspect-make-config",
    "convert a.pt made.safetensors --drop *bias": "convert",
    "convert a.pt training.pt made.pt --dtype fp16 --dry-run": "convert",
    "load a.pt -c net.toml --outputs out.npz": "load",
    "verify a.pt -c net.toml": "verify",
    "verify odd.pt": "verify",
    "verify run": "verify",
    "verify a.pt odd.pt gone.pt": "verify-several",
    "verify --list-checks": "list-checks",
    "inspect gone.pt": "error",
    "load training.pt -c net.toml": "error",
    "load part.pt -c net.toml --allow-missing *": "error",
    "convert training.pt made.safetensors": "error",
    "save": "error",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every kind that a command prints differently."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "net.toml").write_text(Path(NET).read_text())
    assert run(["save", NET, str(folder / "a.pt"), "-q"]) == 0
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    state = {"epoch": 1, "loss": 0.5, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"scheduler": scheduler.state_dict(), "scaler": scaler.state_dict()}
    state["rng_state"] = torch.get_rng_state()
    torch.save(state, folder / "training.pt")
    groups = [{"params": [p], "lr": 0.1 * i} for i, p in enumerate(model.parameters(), 1)]
    sgd = torch.optim.SGD(groups, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 10)
    lightning = {"epoch": 2, "global_step": 9, "state_dict": model.state_dict(), "loops": {}}
    lightning |= {"optimizer_states": [sgd.state_dict()], "lr_schedulers": [cosine.state_dict()]}
    torch.save(lightning, folder / "lightning.ckpt")
    for name in ("key", "other"):
        write_pair(folder, name)
    signed = ["convert", str(folder / "a.pt"), str(folder / "signed.safetensors"), "--sign"]
    assert run([*signed, str(folder / "key.key"), "-q"]) == 0
    torch.save(model, folder / "module.pt")
    torch.save({"w": torch.tensor([1.0, float("nan"), 2.0])}, folder / "odd.pt")
    torch.save({"w": torch.tensor([1.5, 2.0, float("inf")]), "e": 1}, folder / "even.pt")
    torch.save({"norm.weight": torch.ones(32)}, folder / "part.pt")
    for name in ("run/step-000000001.pt", "plain/x.pt"):
        (folder / name).parent.mkdir()
        torch.save({"step": 1, "model_state_dict": {"w": torch.ones(2)}}, folder / name)
    (folder / "plain" / "notes.txt").write_text("")
    return folder


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    printed = {entry["$ref"].rpartition("/")[2] for entry in SCHEMA["anyOf"]}
    assert printed == set(LINES.values())


@pytest.mark.parametrize("line", LINES)
def test_what_is_printed_is_as_published(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.chdir(made)
    for path in (*made.glob("made.*"), made / "new.toml", made / "out.npz"):
        path.unlink(missing_ok=True)
    run([*line.split(), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert faults(document, LINES[line]) == []


def test_what_is_not_as_published_is_refused() -> None:
    rules = {**SCHEMA, "$ref": "#/$defs/error"}
    good: dict[str, Any] = {"schema_version": 1, "error": {"code": 3, "what": "", "where": "", "hint": ""}}
    assert Draft202012Validator(rules).is_valid(good)
    for bad in ({**good, "schema_version": 2}, {"schema_version": 1}, {**good, "error": {"code": 3}}):
        assert not Draft202012Validator(rules).is_valid(bad)


def undescribed(schema: Any, place: str) -> Iterator[str]:
    """The places of `schema` where an object or an array may hold anything."""
    if isinstance(schema, list):
        for item in schema:
            yield from undescribed(item, place)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and not {"properties", "additionalProperties"} & schema.keys():
        yield place
    if schema.get("type") == "array" and "items" not in schema:
        yield place
    for key, value in schema.items():
        yield from undescribed(value, f"{place}.{key}".removeprefix("."))


def test_no_object_is_left_undescribed() -> None:
    assert list(undescribed(SCHEMA, "")) == []
