"""Signatures through whole commands: chains of conversions, the program of the docs, small statements."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import ptsave
from ptsave.errors import LossyError, UsageError
from tests.sign.keys_made import KINDS, write_pair
from tests.support import Command

CHAINS = (
    ("a.pt", "b.safetensors", "c.dcp", "d.shards", "e.pt", "f.safetensors"),
    ("a.safetensors", "b.shards", "c.pt", "d.dcp", "e.safetensors", "f.pt"),
    ("a.dcp", "b.pt", "c.shards", "d.safetensors", "e.dcp", "f.shards"),
    ("a.shards", "b.dcp", "c.safetensors", "d.pt", "e.shards", "f.dcp"),
)
FORMATS = {".dcp": "dcp", ".shards": "safetensors-sharded"}
SHARD_BYTES = 200


def state() -> dict[str, torch.Tensor]:
    """Dtypes, a scalar, an empty tensor, a strided view, a tie, and names that sort unlike in the formats."""
    tied = torch.arange(24.0).reshape(4, 6)
    return {
        "z.weight": tied,
        "a.weight": tied,
        "strided": tied.t(),
        "half": torch.linspace(0, 1, 70, dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "ünïcode": torch.tensor([True, False]),
        "deep.er.buffer": torch.full((3,), float("nan"), dtype=torch.float64),
    }


def written_by(folder: Path, name: str) -> tuple[Path, str | None]:
    path = folder / name
    return path, FORMATS.get(path.suffix)


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
@pytest.mark.parametrize("digest", ["sha256", "blake3"])
def test_a_signature_outlives_five_conversions(chain: tuple[str, ...], digest: str, tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k", KINDS[len(chain[0]) % 3])
    ptsave.save(tmp_path / "plain.pt", state())
    first, form = written_by(tmp_path, chain[0])
    signed = ptsave.convert(tmp_path / "plain.pt", first, format=form, sign=secret, digest=digest)
    assert len(signed.signed_by) == 1
    for one, other in pairwise(chain):
        (source, _), (target, form) = written_by(tmp_path, one), written_by(tmp_path, other)
        shards: dict[str, Any] = {"shard_size": SHARD_BYTES} if form == "safetensors-sharded" else {}
        done = ptsave.convert(source, target, format=form, **shards)
        assert not any("signature" in note for note in done.notes)
        verdict = ptsave.verify(target, signed_by=public, checks="bytes,signature")
        assert verdict.is_yes, [str(f) for f in verdict.findings]


def test_a_training_checkpoint_with_all_kinds_of_values(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    values = {
        "big": 2**60,
        "nan": float("nan"),
        "raw": b"\x00\x01",
        "none": None,
        "tuple": (1, 2.5),
        "empty": {},
    }
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, **values}
    path = tmp_path / "train.pt"
    ptsave.save(path, tree, sign=secret, signature=tmp_path / "train.sig")
    assert ptsave.verify(path, signed_by=public).is_yes
    kept = tmp_path / "train.safetensors"
    ptsave.convert(path, kept, extras="keep")
    assert ptsave.verify(kept, signed_by=public, checks="signature").is_yes
    back = tmp_path / "back.pt"
    ptsave.convert(kept, back)
    assert ptsave.verify(back, signed_by=public, checks="signature").is_yes
    again = tmp_path / "again.dcp"
    ptsave.convert(path, again, format="dcp")
    verdict = ptsave.verify(again, signed_by=public, checks="signature")
    assert verdict.is_yes, [str(f) for f in verdict.findings]
    dropped = ptsave.convert(path, tmp_path / "bare.safetensors", extras="drop")
    assert any("is void" in note for note in dropped.notes)


def test_what_objects_hold_is_signed(tmp_path: Path) -> None:
    def made(loss: float, rate: float) -> Path:
        path = tmp_path / f"{loss}-{rate}.pt"
        options = argparse.Namespace(rate=rate)
        torch.save({"w": torch.ones(2), "loss": numpy.float64(loss), "options": options}, path)
        return path

    secret, public = write_pair(tmp_path, "k")
    beside = tmp_path / "signature"
    first = made(3.0, 0.1)
    ptsave.convert(first, tmp_path / "kept.safetensors", extras="keep", sign=secret, signature=beside)
    for path, holds in ((first, True), (made(4.0, 0.1), False), (made(3.0, 0.2), False)):
        verdict = ptsave.verify(path, signed_by=public, signature=beside, checks="signature")
        assert verdict.is_yes == holds, path


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"dtype": "float16"}, "is void"),
        ({"only": "z.*"}, "is void"),
        ({"drop": "scalar"}, "is void"),
        ({"rename": {"^z": "y"}}, "old names"),
        ({"rename": {"^z": "y"}, "dtype": "float16"}, "is void"),
        ({"contiguous": True}, None),
        ({"strip_prefix": "deep."}, "old names"),
        ({"digest": "xxh3_128"}, None),
    ],
    ids=str,
)
def test_convert_says_what_voids_a_signature(edit: dict[str, Any], says: str | None, tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    ptsave.save(tmp_path / "a.pt", state(), sign=secret)
    done = ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", **edit)
    notes = [note for note in done.notes if "signature" in note]
    assert len(notes) == (says is not None), notes
    assert says is None or says in notes[0]
    assert ptsave.verify(tmp_path / "b.pt", signed_by=public, checks="signature").is_yes == (says is None)


def test_a_signature_outlives_two_renamings_and_what_comes_between(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    steps: list[tuple[str, dict[str, Any]]] = [
        ("b.pt", {"rename": {"^a": "x"}}),
        ("c.safetensors", {}),
        ("d.pt", {"rename": {"^x": "y"}}),
        ("e", {"format": "dcp"}),
        ("f.safetensors", {}),
    ]
    ptsave.save(tmp_path / "a.pt", {"a.w": torch.ones(2), "a.b": torch.zeros(3), "step": 3}, sign=secret)
    before = tmp_path / "a.pt"
    for name, how in steps:
        ptsave.convert(before, tmp_path / name, extras="keep" if "safetensors" in name else "fail", **how)
        before = tmp_path / name
    check = {"signed_by": public, "checks": "signature"}
    assert not ptsave.verify(before, **check).is_yes
    assert ptsave.verify(before, rename={"^y": "a"}, **check).is_yes
    for edit in ({"dtype": "float64"}, {"drop": ["*.b"]}):
        done = ptsave.convert(before, tmp_path / "out.safetensors", overwrite=True, extras="keep", **edit)
        assert any("is void" in note for note in done.notes), edit
    ptsave.convert(before, tmp_path / "back.pt", rename={"^y": "a"})
    assert ptsave.verify(tmp_path / "back.pt", **check).is_yes


def test_what_expired_is_superseded_by_the_same_signer(tmp_path: Path) -> None:
    """An old signature is carried along, and one by somebody else today takes no place of it."""
    (secret, public), (other, other_public) = (write_pair(tmp_path, name) for name in "kx")
    ptsave.save(tmp_path / "a.pt", {"w": torch.ones(2)})
    ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", sign=secret, expires="2020-01-01")
    ptsave.convert(tmp_path / "b.pt", tmp_path / "c.pt", sign=other)
    assert not ptsave.verify(tmp_path / "b.pt", signed_by=public, checks="signature").is_yes
    assert ptsave.verify(tmp_path / "c.pt", signed_by=other_public, checks="signature").is_yes
    assert not ptsave.verify(tmp_path / "c.pt", signed_by=[public, other_public], checks="signature").is_yes
    ptsave.convert(tmp_path / "c.pt", tmp_path / "d.pt", sign=secret)
    assert ptsave.verify(tmp_path / "d.pt", signed_by=[public, other_public], checks="signature").is_yes


def test_signed_anew_a_renamed_copy_has_one_signature(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    ptsave.save(tmp_path / "a.pt", state(), sign=secret)
    ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", rename={"^z": "y"}, sign=secret)
    assert ptsave.verify(tmp_path / "b.pt", signed_by=public, checks="signature").is_yes


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_of_the_docs_agrees(kind: str, tmp_path: Path, root: Path) -> None:
    page = (root / "docs" / "signatures.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(program.splitlines()) <= 40
    script = tmp_path / "check_signature.py"
    script.write_text(program, encoding="utf-8")
    secret, public = write_pair(tmp_path, "k", kind)
    _, foreign = write_pair(tmp_path, "other", kind)
    ptsave.save(tmp_path / "a.pt", state(), sign=secret)
    ptsave.convert(tmp_path / "a.pt", tmp_path / "a.safetensors")

    def says(path: Path, key: Path) -> tuple[int, str]:
        done = subprocess.run([sys.executable, script, path, key], capture_output=True, text=True)
        return done.returncode, done.stderr.strip()

    assert says(tmp_path / "a.safetensors", public) == (0, "")
    assert says(tmp_path / "a.safetensors", foreign) == (1, "not signed by this key")
    hurt = bytearray((tmp_path / "a.safetensors").read_bytes())
    hurt[-1] ^= 1
    (tmp_path / "b.safetensors").write_bytes(hurt)
    assert says(tmp_path / "b.safetensors", public) == (1, "this key signed other tensors")


def test_signing_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptsave.storage.local.file import LocalFile

    secret, _ = write_pair(tmp_path, "k")
    ptsave.save(tmp_path / "a.pt", state())
    read: list[tuple[int, int]] = []
    original = LocalFile.read_into

    def counted(file: LocalFile, offset_bytes: int, buffer: memoryview) -> None:
        if str(file.path) == str(tmp_path / "a.pt"):
            read.append((offset_bytes, len(buffer)))
        original(file, offset_bytes, buffer)

    monkeypatch.setattr(LocalFile, "read_into", counted)
    ptsave.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", digest="sha256")
    plain = sorted(read)
    assert plain
    read.clear()
    ptsave.convert(tmp_path / "a.pt", tmp_path / "c.safetensors", digest="sha256", sign=secret)
    assert sorted(read) == plain


@pytest.mark.slow
def test_it_is_small_for_many_tensors(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    sizes = []
    for number in (10, 3000):
        many = {f"layer.{i}.weight": torch.full((2,), float(i)) for i in range(number)}
        beside = tmp_path / f"{number}.sig"
        ptsave.save(tmp_path / f"{number}.safetensors", many, sign=secret, signature=beside)
        sizes.append(beside.stat().st_size)
        assert ptsave.verify(tmp_path / f"{number}.safetensors", signed_by=public, checks="signature").is_yes
    assert sizes[1] - sizes[0] < 10
    assert sizes[1] < 2000


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    ptsave.save(tmp_path / "a.pt", state())
    for kind in KINDS:
        secret, _ = write_pair(tmp_path, kind, kind)
        made = [tmp_path / f"{kind}{i}.safetensors" for i in range(2)]
        for path in made:
            ptsave.convert(tmp_path / "a.pt", path, sign=secret)
        assert made[0].read_bytes() == made[1].read_bytes()


def test_the_command_line(ptsave_here: Command, tmp_path: Path, root: Path) -> None:
    secret, public = write_pair(tmp_path, "k", password="hunter2")
    config = root / "configs" / "simple_net.toml"
    env = {"PTSAVE_KEY_PASSWORD": "hunter2"}
    ptsave_here("save", config, tmp_path / "a.pt", "--sign", secret, code=4)
    assert not (tmp_path / "a.pt").exists()
    done = ptsave_here(
        "save", config, tmp_path / "a.pt", "--sign", secret, "--signature", tmp_path / "s", "--json", env=env
    )
    key_id = json.loads(done.stdout)["signed_by"][0]
    done = ptsave_here(
        "convert", tmp_path / "a.pt", tmp_path / "b.safetensors", "--sign", secret, "--overwrite", env=env
    )
    assert f"signed by {key_id}" in done.stderr
    done = ptsave_here("verify", tmp_path / "b.safetensors", "--signed-by", public, "--json")
    assert json.loads(done.stdout)["verdict"] == "yes"
    _, other = write_pair(tmp_path, "other")
    done = ptsave_here(
        "verify", tmp_path / "b.safetensors", "--signed-by", other, "--checks", "signature", code=1
    )
    assert f"it is signed by {key_id}" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        {"digest": "xxh3_128"},
        {"no_record": True},
        {"format": "npz"},
        {"expires": "2027"},
        {"expires": "someday"},
        {"sign_only": "nothing"},
        {"dry_run": True},
    ],
    ids=str,
)
def test_what_cannot_be_signed_is_refused_before_anything_is_written(
    options: dict[str, Any], tmp_path: Path
) -> None:
    secret, _ = write_pair(tmp_path, "k")
    ptsave.save(tmp_path / "a.pt", state())
    with pytest.raises(UsageError):
        ptsave.convert(tmp_path / "a.pt", tmp_path / "b", **{"format": "pt", "sign": secret, **options})
    assert not (tmp_path / "b").exists()


@pytest.mark.filterwarnings("ignore:the record stays behind")
def test_a_format_without_a_record_has_its_signature_beside(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)}
    ptsave.save(tmp_path / "a.npz", tensors, sign=secret, signature=tmp_path / "s")
    ptsave.save(tmp_path / "a.pt", tensors)
    check = {"signed_by": public, "signature": tmp_path / "s", "checks": "signature"}
    for name in ("a.npz", "a.pt"):
        assert ptsave.verify(tmp_path / name, **check).is_yes
    ptsave.convert(tmp_path / "a.pt", tmp_path / "b.npz", sign=secret, signature=tmp_path / "t")
    assert (tmp_path / "s").read_bytes() == (tmp_path / "t").read_bytes()
    ptsave.save(tmp_path / "c.npz", {**tensors, "w": -tensors["w"]})
    assert not ptsave.verify(tmp_path / "c.npz", **check).is_yes
    assert not ptsave.verify(tmp_path / "a.npz", signed_by=public, checks="signature").is_yes
    tied = {"w": tensors["w"], "v": tensors["w"]}
    with pytest.raises(LossyError, match="unties"):
        ptsave.save(tmp_path / "d.npz", tied, sign=secret, signature=tmp_path / "u")
    assert not (tmp_path / "d.npz").exists()


@pytest.mark.parametrize(
    "options", [{"signature": "s"}, {"sign_only": "a"}, {"expires": "2027-01-01"}], ids=str
)
def test_options_of_signing_need_a_key(options: dict[str, Any], tmp_path: Path) -> None:
    ptsave.save(tmp_path / "a.pt", state())
    with pytest.raises(UsageError, match="nothing is signed"):
        ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", **options)


def test_the_signature_replaces_nothing(tmp_path: Path) -> None:
    secret, _ = write_pair(tmp_path, "k")
    ptsave.save(tmp_path / "a.pt", state())
    (tmp_path / "s").write_text("mine")
    with pytest.raises(ptsave.errors.ExistsError):
        ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", sign=secret, signature=tmp_path / "s")
    for taken in (tmp_path / "b.pt", tmp_path / "a.pt", secret):
        with pytest.raises((UsageError, ptsave.errors.RefusedError)):
            ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", sign=secret, signature=taken)
    assert not (tmp_path / "b.pt").exists()


def test_a_config_that_only_names_keys_explains_no_architecture(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    ptsave.save(tmp_path / "a.pt", {"w": torch.ones(2)}, sign=secret)
    config = tmp_path / "net.toml"
    model = 'class = "torch.nn.Linear"\nargs = {in_features = 1, out_features = 1}'
    config.write_text(f'[model]\n{model}\n[verify]\nsigned_by = ["{public.name}"]\n')
    verdict = ptsave.verify(tmp_path / "a.pt", config=config, checks="signature")
    assert (verdict.is_yes, "architecture" in verdict.because) == (True, False)
    verdict = ptsave.verify(tmp_path / "a.pt", config=config, checks="keys,signature")
    assert (verdict.is_yes, "architecture" in verdict.because) == (False, True)
