"""Pins: what a lock names must be what was approved, in any format, wherever ptsave reads weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ptsave
from ptsave.config.lock import read_lock
from ptsave.core.finding import Kind
from ptsave.errors import MissingFileError, RefusedError, UsageError
from tests.sign.keys_made import write_pair
from tests.support import Command

CONFIG = '[model]\nclass = "torch.nn.Linear"\n[model.args]\nin_features = 3\nout_features = 2\n'
SIZES = {"in_features": 3, "out_features": 2}
FORMATS = {"pt": None, "safetensors": None, "npz": None, "dcp": "dcp", "shards": "safetensors-sharded"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model that is pinned, and a config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.toml").write_text(CONFIG)
    ptsave.save("net.pt", nn.Linear(3, 2), hyperparameters=SIZES)
    assert ptsave.verify("net.pt", pin=True).is_yes
    return tmp_path


def pinned(path: str, lock: str = "approved.lock") -> None:
    """Approve what is there, in a lock that has to be named."""
    assert ptsave.verify(path, pin=True, lock=lock).is_yes


def test_what_was_approved_is_loaded_in_any_format(folder: Path) -> None:
    state = ptsave.load("net.pt", config="net.toml").state_dict()
    for name, form in FORMATS.items():
        ptsave.convert("net.pt", f"copy.{name}", format=form)
        pinned(f"copy.{name}")
        if name != "npz":
            (folder / "copy.npz").unlink(missing_ok=True)
    for name in ("safetensors", "npz"):  # approved as one format, there as another
        (folder / "net.pt").unlink()
        ptsave.convert(f"copy.{'dcp' if name == 'npz' else 'shards'}", f"x.{name}")
        (folder / f"x.{name}").rename("net.pt")
        assert ptsave.verify("net.pt", checks="signature").is_yes
        loaded = ptsave.load("net.pt", nn.Linear(3, 2)).state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_pins_that_are_written_at_the_same_time(folder: Path) -> None:
    names = [f"{i}.pt" for i in range(8)]
    for name in names:
        ptsave.save(name, {"w": torch.zeros(2)})
    with ThreadPoolExecutor(len(names)) as pool:
        verdicts = list(pool.map(lambda name: ptsave.verify(name, pin=True), names))
    assert all(verdict.is_yes for verdict in verdicts)
    assert {*names, "net.pt"} == read_lock(folder / "ptsave.lock").pins.keys()


def test_a_pin_is_renewed_under_each_name(folder: Path) -> None:
    (folder / "link.pt").symlink_to("net.pt")
    assert ptsave.verify("link.pt", pin=True).is_yes
    ptsave.save("net.pt", nn.Linear(3, 2), hyperparameters=SIZES)
    assert ptsave.verify("net.pt", pin=True).is_yes
    for name in ("net.pt", "link.pt"):
        ptsave.load(name, nn.Linear(3, 2))


def changed(state: dict[str, Any]) -> None:
    state["weight"][0, 0] += 1


def swapped(state: dict[str, Any]) -> None:
    state["weight"] = state["weight"].flip(0)


def renamed(state: dict[str, Any]) -> None:
    state["w"] = state.pop("weight")


def added(state: dict[str, Any]) -> None:
    state["more"] = torch.ones(1)


def cast(state: dict[str, Any]) -> None:
    state["bias"] = state["bias"].double()


def reshaped(state: dict[str, Any]) -> None:
    state["bias"] = state["bias"].reshape(1, 2)


def tied(state: dict[str, Any]) -> None:
    state["same"] = state["weight"]


def with_data(state: dict[str, Any]) -> None:
    state["epoch"] = 3


CHANGES: dict[Callable[[dict[str, Any]], None], str] = {
    changed: "values of tensors are others",
    swapped: "values of tensors are others",
    renamed: "the values have other names",
    added: "tensors were added",
    cast: "a dtype or a shape",
    reshaped: "a dtype or a shape",
    tied: "tensors were added",
    with_data: "values beside the tensors",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_content_is_refused_everywhere(change: Callable[[dict[str, Any]], None]) -> None:
    state = dict(torch.load("net.pt"))
    change(state)
    torch.save(state, "net.pt")
    uses: list[Callable[[], Any]] = [
        lambda: ptsave.load("net.pt", nn.Linear(3, 2)),
        lambda: ptsave.load("net.pt", config="net.toml", lazy=True),
        lambda: ptsave.convert("net.pt", "copy.pt"),
        lambda: ptsave.convert("net.pt", "copy.pt", dry_run=True),
    ]
    for use in uses:
        with pytest.raises(RefusedError, match=r"not what ptsave\.lock pins") as caught:
            use()
        assert CHANGES[change] in caught.value.what
        assert "ptsave verify net.pt --pin" in caught.value.hint
    assert not Path("copy.pt").exists()
    verdict = ptsave.verify("net.pt")
    assert not verdict.is_yes
    assert verdict.because.startswith("not what was approved: ")
    assert [f.kind for f in verdict.findings if f.check == "signature"] == [Kind.NOT_PINNED]
    assert ptsave.verify("net.pt", pin=True).is_yes
    assert ptsave.verify("net.pt", checks="signature").is_yes


def test_no_record_of_the_file_weakens_a_pin() -> None:
    """Digests, dtypes and classes in a record are the sender's word; a pin goes by the bytes."""
    before = ptsave.load("net.pt", config="net.toml")
    ptsave.save("evil.safetensors", nn.Linear(3, 2))
    content = Path("evil.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    ptsave.convert("net.pt", "good.safetensors")
    good = Path("good.safetensors").read_bytes()
    told = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]["ptsave"]
    record = json.loads(told)
    record["behaviour"] = {"dtypes": []}
    header["__metadata__"]["ptsave"] = json.dumps(record)
    text = json.dumps(header).encode()
    Path("net.pt").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(RefusedError, match="values of tensors are others"):
        ptsave.load("net.pt", before)


def test_a_class_that_was_not_approved() -> None:
    ptsave.save("bare.pt", nn.Linear(3, 2))
    pinned("bare.pt")
    state = torch.load("bare.pt")
    made = nn.Linear(3, 2)
    made.load_state_dict(state)
    ptsave.save("bare.pt", made, hyperparameters=SIZES)
    with pytest.raises(RefusedError, match="names another class"):
        ptsave.load("bare.pt", trust_recorded=True, lock="approved.lock")


def test_a_lock_that_is_named_must_have_a_pin() -> None:
    ptsave.convert("net.pt", "copy.pt")
    ptsave.load("copy.pt", nn.Linear(3, 2))  # the folder's lock is about what it names
    for use in (lambda: ptsave.load("copy.pt", nn.Linear(3, 2), lock="ptsave.lock"),
                lambda: ptsave.convert("copy.pt", "x.pt", lock="ptsave.lock")):  # fmt: skip
        with pytest.raises(RefusedError, match=r"ptsave\.lock has no pin of it") as caught:
            use()
        assert caught.value.hint.endswith("verify copy.pt --pin --lock ptsave.lock")
    verdict = ptsave.verify("copy.pt", lock="ptsave.lock", checks="signature")
    assert [f.kind for f in verdict.findings] == [Kind.NOT_IN_LOCK]
    with pytest.raises(MissingFileError):
        ptsave.load("copy.pt", nn.Linear(3, 2), lock="absent.lock")


def test_a_lock_beside_a_file_says_nothing(folder: Path) -> None:
    """Somebody sends other weights and a lock that approves them."""
    sent = folder / "sent"
    sent.mkdir()
    ptsave.save(sent / "net.pt", nn.Linear(3, 2))
    pinned("sent/net.pt", "sent/ptsave.lock")
    ptsave.load(sent / "net.pt", nn.Linear(3, 2))
    (folder / "net.pt").write_bytes((sent / "net.pt").read_bytes())
    with pytest.raises(RefusedError, match=r"not what ptsave\.lock pins"):
        ptsave.load("net.pt", nn.Linear(3, 2))


def test_a_lock_that_cannot_be_read_refuses_all(folder: Path) -> None:
    (folder / "ptsave.lock").write_text("version = 1\n[pins]\n'net.pt' = 3\n")
    with pytest.raises(UsageError):
        ptsave.load("net.pt", nn.Linear(3, 2))
    (folder / "ptsave.lock").unlink()
    (folder / "ptsave.lock").symlink_to("gone")
    with pytest.raises(MissingFileError):
        ptsave.convert("net.pt", "copy.pt")


def test_pins_stand_side_by_side_and_name_the_signers(folder: Path) -> None:
    secret, public = write_pair(folder, "k")
    ptsave.convert("net.pt", "signed.pt", sign=secret, digest="blake3")
    ptsave.verify("signed.pt", signed_by=public, pin=True).raise_for_no()
    lock = ptsave.config.lock.read_lock(folder / "ptsave.lock")
    assert [*lock.pins] == ["net.pt", "signed.pt"]
    assert len(lock.pins["signed.pt"].signed_by) == 1
    assert lock.pins["signed.pt"].statement.algorithm == "blake3"
    ptsave.load("signed.pt", nn.Linear(3, 2))
    _, other = write_pair(folder, "other")
    before = (folder / "ptsave.lock").read_bytes()
    assert not ptsave.verify("signed.pt", signed_by=other, pin=True).is_yes
    assert (folder / "ptsave.lock").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [{"pin": True, "checks": "bytes"}, {"lock": "ptsave.lock", "checks": "safe"},
     {"pin": True, "record": True, "config": "net.toml"}],
    ids=str,
)  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ptsave.verify("net.pt", **options)


def test_the_command_line(ptsave_here: Command, folder: Path) -> None:
    run = ptsave_here
    run("load", "net.pt", "-c", "net.toml")
    run("save", "net.toml", "new.pt", "--weights", "net.pt")
    run("verify", "new.pt", "net.pt", "--pin", "--lock", "other.lock")
    assert "pinned in other.lock: sha256:" in run("verify", "new.pt", "--pin", "--lock", "other.lock").stderr
    ptsave.save("net.pt", nn.Linear(3, 2))
    for words in (
        ("load", "net.pt", "-c", "net.toml"),
        ("load", "net.pt", "-c", "net.toml", "--lock", "other.lock"),
        ("save", "net.toml", "x.pt", "--weights", "net.pt"),
        ("convert", "net.pt", "x.pt"),
        ("convert", "net.pt", "x.pt2", "-c", "net.toml"),
    ):
        assert "pins: values of tensors are others" in run(*words, code=4).stderr
    assert not (folder / "x.pt").exists()
    run("verify", "net.pt", code=1)
    run("save", "net.toml", "x.pt", "--lock", "other.lock", code=2)
