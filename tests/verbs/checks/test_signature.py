"""The check `signature`: every way of changing what was signed is a no with a cause of its own."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import ptsave
from ptsave.core.finding import Kind
from ptsave.core.verdict import Verdict
from ptsave.errors import UsageError
from ptsave.sign.canonical import canonical
from ptsave.sign.envelope import encoded, to_json
from ptsave.sign.keys import private_key
from ptsave.sign.statement import parse_statement
from tests.sign.keys_made import write_certificate, write_pair

Document = dict[str, Any]


@dataclass
class Signed:
    """A signed safetensors file in parts, which an attacker can put together again as he likes."""

    folder: Path
    secret: Path
    public: Path
    tensors: dict[str, torch.Tensor]
    record: Document

    @property
    def envelope(self) -> Document:
        return self.record["signatures"][0]  # type: ignore[no-any-return]

    @property
    def payload(self) -> Document:
        return json.loads(b64decode(self.envelope["payload"]))  # type: ignore[no-any-return]

    def sign_payload(self, payload: bytes, secret: Path | None = None) -> None:
        """Put a payload of the attacker's into the envelope, signed by a key as DSSE says."""
        key = private_key(secret or self.secret)
        self.record["signatures"] = [to_json(payload, [(key.public.key_id, key.sign(encoded(payload)))])]

    def written(self) -> Path:
        """The file that the parts make."""
        path = self.folder / "changed.safetensors"
        aliases = self.record.get("aliases", {})
        metadata = {"format": "pt", **aliases, "ptsave": json.dumps(self.record)}
        safetensors.torch.save_file(self.tensors, path, metadata)
        return path


def tree() -> Document:
    """Two tensors of one shape, two of one value, a tie, and plain data."""
    a = torch.arange(12.0).reshape(4, 3)
    values = {"a.w": a, "b.w": a + 1, "c": torch.ones(3), "d": torch.ones(3), "tied": a}
    return {**values, "epoch": 3, "rates": [0.1, 0.2], "name": "net"}


def parts(path: Path) -> tuple[dict[str, torch.Tensor], Document]:
    """The tensors and the record of a safetensors file."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["ptsave"])


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    secret, public = write_pair(tmp_path, "release")
    ptsave.save(tmp_path / "plain.pt", tree())
    path = tmp_path / "signed.safetensors"
    ptsave.convert(tmp_path / "plain.pt", path, extras="keep", sign=secret)
    tensors, record = parts(path)
    return Signed(tmp_path, secret, public, tensors, record)


def kinds(verdict: Verdict, level: str = "fail") -> set[Kind]:
    return {f.kind for f in verdict.findings if f.check == "signature" and f.level == level}


def check(path: Path, public: Path, **options: Any) -> Verdict:
    return ptsave.verify(path, signed_by=public, checks="signature", **options)


def test_what_was_signed_is_a_yes(signed: Signed) -> None:
    verdict = check(signed.written(), signed.public)
    assert verdict.is_yes, verdict.findings
    (ok,) = [f for f in verdict.findings if f.level == "ok"]
    assert ok.kind == Kind.SIGNED
    assert ok.count == 5
    assert "3 values beside them" in ok.message


# --- what an attacker does ------------------------------------------------------------------------


def unsigned(s: Signed) -> None:
    del s.record["signatures"]


def stripped(s: Signed) -> None:
    s.envelope["signatures"] = []


def foreign(s: Signed) -> None:
    secret, _ = write_pair(s.folder, "other")
    s.sign_payload(b64decode(s.envelope["payload"]), secret)


def foreign_that_names_the_trusted_key(s: Signed) -> None:
    key_id = s.envelope["signatures"][0]["keyid"]
    foreign(s)
    s.envelope["signatures"][0]["keyid"] = key_id


def expired(s: Signed) -> None:
    s.sign_payload(
        replace(parse_statement(b64decode(s.envelope["payload"]), ""), expires="2001-01-01").payload()
    )


def weak_digest(s: Signed) -> None:
    payload = s.payload
    payload["predicate"]["algorithm"] = "xxh3_128"
    s.sign_payload(canonical(payload))


def moved_from_another_model(s: Signed) -> None:
    path = s.folder / "another.safetensors"
    ptsave.convert(s.folder / "plain.pt", path, extras="drop", only=["a.w", "c"], sign=s.secret)
    s.record["signatures"] = parts(path)[1]["signatures"]


def moved_from_another_training(s: Signed) -> None:
    again = {name: value + 1 if isinstance(value, torch.Tensor) else value for name, value in tree().items()}
    again["tied"] = again["a.w"]
    ptsave.save(s.folder / "again.pt", again)
    path = s.folder / "again.safetensors"
    ptsave.convert(s.folder / "again.pt", path, extras="keep", sign=s.secret)
    s.record["signatures"] = parts(path)[1]["signatures"]


def swapped(s: Signed) -> None:
    s.tensors["a.w"], s.tensors["b.w"] = s.tensors["b.w"], s.tensors["a.w"]


def added(s: Signed) -> None:
    s.tensors["backdoor"] = torch.ones(2)


def added_without_elements(s: Signed) -> None:
    s.tensors["empty"] = torch.ones(0)


def dropped(s: Signed) -> None:
    del s.tensors["b.w"]


def renamed(s: Signed) -> None:
    s.tensors["e"] = s.tensors.pop("d")


def changed(s: Signed) -> None:
    s.tensors["b.w"][0, 0] += 1


def negative_zero(s: Signed) -> None:
    s.tensors["a.w"][0, 0] = -0.0


def other_dtype(s: Signed) -> None:
    s.tensors["c"] = s.tensors["c"].view(torch.int32)


def other_shape(s: Signed) -> None:
    s.tensors["b.w"] = s.tensors["b.w"].reshape(3, 4)


def with_another_dimension(s: Signed) -> None:
    s.tensors["c"] = s.tensors["c"].reshape(1, 3)


def tie_broken(s: Signed) -> None:
    del s.record["aliases"]
    s.tensors["tied"] = s.tensors["a.w"].clone()


def tie_added(s: Signed) -> None:
    del s.tensors["d"]
    s.record["aliases"]["d"] = "c"


def tie_moved(s: Signed) -> None:
    s.record["aliases"]["tied"] = "b.w"


def data_changed(s: Signed) -> None:
    s.record["extras"]["epoch"] = 4


def data_of_another_type(s: Signed) -> None:
    s.record["extras"]["epoch"] = "3"


def data_added(s: Signed) -> None:
    s.record["extras"]["debug"] = True


def data_dropped(s: Signed) -> None:
    del s.record["extras"]


def data_that_is_no_table(s: Signed) -> None:
    s.record["extras"] = ["epoch", 3]


def payload_changed(s: Signed) -> None:
    payload = s.payload
    payload["predicate"]["tensors"]["count"] = 4
    s.envelope["payload"] = b64encode(canonical(payload)).decode()


def payload_spelled_otherwise(s: Signed) -> None:
    s.envelope["payload"] = b64encode(json.dumps(s.payload).encode()).decode()


def signature_changed(s: Signed) -> None:
    value = bytearray(b64decode(s.envelope["signatures"][0]["sig"]))
    value[3] ^= 1
    s.envelope["signatures"][0]["sig"] = b64encode(value).decode()


def signature_of_the_bare_payload(s: Signed) -> None:
    value = private_key(s.secret).sign(b64decode(s.envelope["payload"]))
    s.envelope["signatures"][0]["sig"] = b64encode(value).decode()


def signature_of_another_type(s: Signed) -> None:
    s.envelope["payloadType"] = "text/plain"


def signature_that_is_no_base64(s: Signed) -> None:
    s.envelope["signatures"][0]["sig"] += "\n"


def signature_that_is_no_text(s: Signed) -> None:
    s.envelope["signatures"][0]["sig"] = 7


def signatures_in_a_table(s: Signed) -> None:
    s.envelope["signatures"] = {"sig": "AAAA"}


def envelope_that_is_a_number(s: Signed) -> None:
    s.record["signatures"].append(7)


def too_many_envelopes(s: Signed) -> None:
    s.record["signatures"] *= 65


def too_many_signatures(s: Signed) -> None:
    s.envelope["signatures"] *= 65


def too_many_signatures_in_all(s: Signed) -> None:
    s.envelope["signatures"] *= 33
    s.record["signatures"] *= 2


def signature_that_names_no_key(s: Signed) -> None:
    del s.envelope["signatures"][0]["keyid"]


def signed_spaces(s: Signed) -> None:
    s.sign_payload(json.dumps(s.payload).encode())


def signed_twice_in_one(s: Signed) -> None:
    text = b64decode(s.envelope["payload"]).decode()
    s.sign_payload(('{"_type":"x",' + text[1:]).encode())


def signed_for_another_purpose(s: Signed) -> None:
    payload = s.payload
    payload["predicateType"] = "https://slsa.dev/provenance/v1"
    s.sign_payload(canonical(payload))


def signed_with_more_subjects(s: Signed) -> None:
    payload = s.payload
    payload["subject"] *= 2
    s.sign_payload(canonical(payload))


def signed_with_a_field_of_its_own(s: Signed) -> None:
    payload = s.payload
    payload["predicate"]["not_really"] = True
    s.sign_payload(canonical(payload))


def signed_with_a_short_root(s: Signed) -> None:
    payload = s.payload
    payload["subject"][0]["digest"]["sha256"] = "00"
    s.sign_payload(canonical(payload))


def signed_that_contradicts_itself(s: Signed) -> None:
    payload = s.payload
    payload["predicate"]["tensors"]["values"] = "0" * 64
    s.sign_payload(canonical(payload))


def contradicting(s: Signed) -> None:
    first = s.record["signatures"]
    moved_from_another_training(s)
    s.record["signatures"] = [*first, *s.record["signatures"]]


ATTACKS: dict[Callable[[Signed], None], set[Kind]] = {
    unsigned: {Kind.NOT_SIGNED},
    stripped: {Kind.STRIPPED},
    foreign: {Kind.FOREIGN},
    foreign_that_names_the_trusted_key: {Kind.FORGED_SIGNATURE},
    expired: {Kind.SIGNATURE_EXPIRED},
    weak_digest: {Kind.WEAK_DIGEST},
    moved_from_another_model: {Kind.SIGNED_OTHER_NAMES, Kind.SIGNED_OTHER_DATA},
    moved_from_another_training: {Kind.SIGNED_OTHER_VALUES},
    swapped: {Kind.SIGNED_SWAPPED, Kind.SIGNED_CHANGED},
    added: {Kind.SIGNED_OTHER_NAMES, Kind.SIGNED_ADDED},
    added_without_elements: {Kind.SIGNED_OTHER_NAMES, Kind.SIGNED_ADDED},
    dropped: {Kind.SIGNED_OTHER_NAMES, Kind.SIGNED_GONE},
    renamed: {Kind.SIGNED_RENAMED, Kind.SIGNED_GONE, Kind.SIGNED_ADDED},
    changed: {Kind.SIGNED_OTHER_VALUES, Kind.SIGNED_CHANGED},
    negative_zero: {Kind.SIGNED_OTHER_VALUES, Kind.SIGNED_CHANGED},
    other_dtype: {Kind.SIGNED_OTHER_LAYOUT, Kind.SIGNED_CHANGED},
    other_shape: {Kind.SIGNED_OTHER_LAYOUT, Kind.SIGNED_CHANGED},
    with_another_dimension: {Kind.SIGNED_OTHER_LAYOUT, Kind.SIGNED_CHANGED},
    tie_broken: {Kind.SIGNED_OTHER_TIES},
    tie_added: {Kind.SIGNED_OTHER_TIES},
    tie_moved: {Kind.SIGNED_OTHER_TIES, Kind.SIGNED_SWAPPED, Kind.SIGNED_CHANGED},
    data_changed: {Kind.SIGNED_OTHER_DATA},
    data_of_another_type: {Kind.SIGNED_OTHER_DATA},
    data_added: {Kind.SIGNED_OTHER_DATA},
    data_dropped: {Kind.SIGNED_OTHER_DATA},
    data_that_is_no_table: {Kind.SIGNED_OTHER_DATA},
    payload_changed: {Kind.FORGED_SIGNATURE},
    payload_spelled_otherwise: {Kind.FORGED_SIGNATURE},
    signature_changed: {Kind.FORGED_SIGNATURE},
    signature_of_the_bare_payload: {Kind.FORGED_SIGNATURE},
    signature_of_another_type: {Kind.MALFORMED_SIGNATURE},
    signature_that_is_no_base64: {Kind.MALFORMED_SIGNATURE},
    signature_that_is_no_text: {Kind.MALFORMED_SIGNATURE},
    signatures_in_a_table: {Kind.MALFORMED_SIGNATURE},
    envelope_that_is_a_number: {Kind.MALFORMED_SIGNATURE},
    too_many_envelopes: {Kind.MALFORMED_SIGNATURE},
    too_many_signatures: {Kind.MALFORMED_SIGNATURE},
    too_many_signatures_in_all: {Kind.MALFORMED_SIGNATURE},
    signature_that_names_no_key: {Kind.FOREIGN},
    signed_spaces: {Kind.MALFORMED_SIGNATURE},
    signed_twice_in_one: {Kind.MALFORMED_SIGNATURE},
    signed_for_another_purpose: {Kind.MALFORMED_SIGNATURE},
    signed_with_more_subjects: {Kind.MALFORMED_SIGNATURE},
    signed_with_a_field_of_its_own: {Kind.MALFORMED_SIGNATURE},
    signed_with_a_short_root: {Kind.MALFORMED_SIGNATURE},
    signed_that_contradicts_itself: {Kind.SIGNED_INCONSISTENT},
    contradicting: {Kind.SIGNED_OTHER_VALUES, Kind.CONTRADICTS},
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_a_no_with_its_cause(attack: Callable[[Signed], None], signed: Signed) -> None:
    attack(signed)
    verdict = check(signed.written(), signed.public)
    assert not verdict.is_yes
    assert verdict.because.startswith("not what was signed, or not by whom: ")
    assert kinds(verdict) == ATTACKS[attack], [str(f) for f in verdict.findings]


def test_a_record_that_follows_the_change_hides_which_tensor_it_is_and_not_that(signed: Signed) -> None:
    signed.tensors["b.w"][0, 0] += 1
    del signed.record["digests"]
    assert kinds(check(signed.written(), signed.public)) == {Kind.SIGNED_OTHER_VALUES}


def test_a_class_that_was_not_signed(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    path = tmp_path / "net.safetensors"
    ptsave.save(
        path, torch.nn.Linear(2, 1), hyperparameters={"in_features": 2, "out_features": 1}, sign=secret
    )
    tensors, record = parts(path)
    one = Signed(tmp_path, secret, public, tensors, record)
    assert "the class that the record names" in str(check(one.written(), public).findings)
    for key, value in (("class", "os.system"), ("args", {"in_features": 3}), ("source_digest", "0" * 64)):
        hurt = replace(one, record={**record, "model": {**record["model"], key: value}})
        assert kinds(check(hurt.written(), public)) == {Kind.SIGNED_OTHER_MODEL}
    bare = tmp_path / "bare.safetensors"
    ptsave.save(bare, torch.nn.Linear(2, 1), sign=secret)
    tensors, without = parts(bare)
    lured = Signed(tmp_path, secret, public, tensors, {**without, "model": record["model"]})
    assert kinds(check(lured.written(), public), "warn") == {Kind.MODEL_NOT_COVERED}
    assert not check(lured.written(), public, strict=True).is_yes


def test_two_paths_with_one_name(tmp_path: Path, signed: Signed) -> None:
    twice = tmp_path / "twice.pt"
    detached = tmp_path / "s.json"
    detached.write_text(json.dumps(signed.envelope))
    torch.save({**tree(), "a": {"w": tree()["b.w"]}}, twice)
    assert kinds(check(twice, signed.public, signature=detached)) == {Kind.CANNOT_BE_SIGNED}
    with pytest.raises(ptsave.errors.LossyError, match="one name"):
        ptsave.convert(twice, tmp_path / "x.pt", sign=signed.secret)


def test_a_certificate_that_does_not_hold(signed: Signed) -> None:
    now = write_certificate(signed.folder, signed.secret, (-1, 1))
    past = write_certificate(signed.folder, signed.secret, (-9, -1))
    assert check(signed.written(), now).is_yes
    assert kinds(check(signed.written(), past)) == {Kind.KEY_OUT_OF_DATE}


def test_several_keys(tmp_path: Path) -> None:
    pairs = [write_pair(tmp_path, name) for name in "abc"]
    ptsave.save(tmp_path / "plain.pt", {"w": torch.ones(3)})
    both = tmp_path / "both.safetensors"
    ptsave.convert(tmp_path / "plain.pt", both, sign=[pairs[0][0], pairs[1][0]])
    a, b, c = (public for _, public in pairs)
    assert ptsave.verify(both, signed_by=[a, b]).is_yes
    assert kinds(ptsave.verify(both, signed_by=[a, c])) == {Kind.FOREIGN}
    assert kinds(ptsave.verify(both, signed_by=a), "skipped") == {Kind.OTHER_SIGNATURE, Kind.BESIDE_SIGNATURE}
    folder = tmp_path / "keys"
    folder.mkdir()
    for public in (b, c):
        (folder / public.name).write_bytes(public.read_bytes())
    assert ptsave.verify(both, signed_by=folder).is_yes
    third = tmp_path / "third.pt"
    ptsave.convert(both, third, sign=pairs[2][0])  # beside the two
    assert ptsave.verify(third, signed_by=[a, b, c]).is_yes


def test_a_signed_part_is_that(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    state = {"backbone.w": torch.ones(3), "backbone.b": torch.ones(1), "head.w": torch.ones(2)}
    ptsave.save(tmp_path / "plain.pt", state)
    path = tmp_path / "part.safetensors"
    ptsave.convert(tmp_path / "plain.pt", path, sign=secret, sign_only="backbone.*")
    verdict = check(path, public)
    assert verdict.is_yes
    (warned,) = [f for f in verdict.findings if f.level == "warn"]
    assert (warned.kind, warned.count, warned.places) == (Kind.SIGNED_IN_PART, 1, ("head.w",))
    tensors, record = parts(path)
    make = partial(Signed, tmp_path, secret, public)
    assert check(
        make({**tensors, "head.w": torch.zeros(5), "head.b": torch.ones(1)}, record).written(), public
    ).is_yes
    for hurt in ({**tensors, "backbone.b": torch.zeros(1)}, {**tensors, "backbone.c": torch.zeros(1)}):
        assert not check(make(hurt, record).written(), public).is_yes


def test_the_signature_of_a_part_by_the_names_that_count(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    backbone = {"encoder.w": torch.ones(3), "encoder.b": torch.ones(1)}
    ptsave.save(tmp_path / "backbone.pt", backbone, sign=secret, signature=tmp_path / "backbone.sig")
    ptsave.save(tmp_path / "model.pt", {**backbone, "head": torch.ones(2)})
    options: Document = {"signature": tmp_path / "backbone.sig"}
    assert kinds(check(tmp_path / "model.pt", public, **options)) == {Kind.SIGNED_OTHER_NAMES}
    assert check(tmp_path / "model.pt", public, only="encoder.*", **options).is_yes


def test_each_checkpoint_of_a_run_must_be_signed(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    run = tmp_path / "run"
    run.mkdir()
    for step in (1, 2):
        name = f"step-{step:09}.pt"
        torch.save({"step": step, "model_state_dict": {"w": torch.ones(step)}}, tmp_path / name)
        ptsave.convert(tmp_path / name, run / name, sign=secret)
    assert kinds(ptsave.verify(run, signed_by=public), "ok") == {Kind.SIGNED}
    (run / name).write_bytes((tmp_path / name).read_bytes())
    verdict = ptsave.verify(run, signed_by=public)
    assert kinds(verdict) == {Kind.NOT_SIGNED}
    assert [f.where for f in verdict.findings if f.level == "fail"] == [name]


def test_a_config_names_keys_once_for_all(signed: Signed) -> None:
    """Each of them as one more `--signed-by`, relative to the config; `--set` alone takes one back."""
    keys = signed.folder / "trusted" / "keys"
    keys.mkdir(parents=True)
    (keys / "release.pub").write_bytes(signed.public.read_bytes())
    config = keys.parent / "net.toml"
    config.write_text('[model]\nclass = "torch.nn.Identity"\n[verify]\nsigned_by = ["keys"]\n')
    options: Document = {"config": config, "checks": "signature,keys"}
    assert Kind.SIGNED in kinds(ptsave.verify(signed.written(), **options), "ok")
    assert kinds(ptsave.verify(signed.folder / "plain.pt", **options)) == {Kind.NOT_SIGNED}
    assert kinds(ptsave.verify(signed.folder / "plain.pt", against=config)) == {Kind.NOT_SIGNED}
    _, other = write_pair(signed.folder, "other")
    assert kinds(ptsave.verify(signed.written(), signed_by=other, **options)) == {Kind.FOREIGN}
    assert Kind.SIGNED in kinds(ptsave.verify(signed.written(), signed_by=signed.public, **options), "ok")
    found = ptsave.verify(signed.written(), set="verify.signed_by=[]", config=config)
    assert kinds(found, "skipped") == {Kind.SIGNATURE_UNCHECKED}
    (keys / "release.pub").unlink()
    with pytest.raises(UsageError, match="holds no keys"):
        ptsave.verify(signed.written(), **options)


def test_renames_are_undone_by_a_map(signed: Signed) -> None:
    path = signed.folder / "renamed.pt"
    done = ptsave.convert(signed.written(), path, rename={"^a[.]": "first."})
    assert any("old names" in note for note in done.notes)
    assert Kind.SIGNED_RENAMED in kinds(check(path, signed.public))
    assert check(path, signed.public, rename={"^first[.]": "a."}).is_yes
    wrong = check(path, signed.public, rename={"^first[.]": "b."})
    assert kinds(wrong) == {Kind.CANNOT_BE_SIGNED}


@pytest.mark.parametrize("options", [{"signature": "x"}, {"rename": ["a=b"]}, {"only": "a"}])
def test_options_of_signatures_need_a_key(options: Document, signed: Signed) -> None:
    with pytest.raises(UsageError, match="about signatures"):
        ptsave.verify(signed.written(), **options)


def test_it_needs_a_key_by_name_and_says_so_otherwise(signed: Signed) -> None:
    with pytest.raises(UsageError, match="needs a key"):
        ptsave.verify(signed.written(), checks="signature")
    with pytest.raises(UsageError, match="would not be used"):
        ptsave.verify(signed.written(), checks="safe", signed_by=signed.public)
    assert kinds(ptsave.verify(signed.written()), "skipped") == {Kind.SIGNATURE_UNCHECKED}


def test_the_bytes_are_read_once(signed: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptsave.storage.local.file import LocalFile

    path, data_bytes = signed.written(), 4 * (12 + 12 + 3 + 3)
    read: list[int] = []
    original = LocalFile.read_into

    def counted(file: LocalFile, offset_bytes: int, buffer: memoryview) -> None:
        if str(file.path) == str(path) and offset_bytes >= file.size_bytes - data_bytes:
            read.append(len(buffer))
        original(file, offset_bytes, buffer)

    monkeypatch.setattr(LocalFile, "read_into", counted)
    assert ptsave.verify(path, signed_by=signed.public).is_yes
    assert sum(read) == data_bytes
    read.clear()
    assert check(path, signed.public).is_yes
    assert sum(read) == data_bytes
