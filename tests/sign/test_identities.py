"""Identities: what an instance of sigstore vouches for, by its own library, and what it does not confirm."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ptsave
from ptsave.core.finding import Finding, Kind
from ptsave.errors import RefusedError, UsageError
from ptsave.sign.identities import TOKEN
from tests.servers.sigstore_instance import GITHUB, WORKFLOW, Instance, instance, token

pytest.importorskip("sigstore", reason="the extra is not installed")
STATE = {"w": torch.arange(6.0), "b": torch.zeros(2)}


@pytest.fixture(scope="module")
def here() -> Iterator[Instance]:
    with instance() as running:
        yield running


@pytest.fixture
def config(here: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(TOKEN, token())
    return here.write(tmp_path)[0]


@pytest.fixture
def signed(config: Path, tmp_path: Path) -> Path:
    ptsave.save(tmp_path / "net.safetensors", STATE, sign=config, signature=tmp_path / "net.sig")
    return tmp_path / "net.safetensors"


def findings(
    path: Path, root: Path, identity: str = WORKFLOW, issuer: str = GITHUB, **how: Any
) -> list[Finding]:
    verdict = ptsave.verify(path, signed_by=root, identity=identity, issuer=issuer, checks="signature", **how)
    assert verdict.is_yes == all(one.level != "fail" for one in verdict.findings)
    return list(verdict.findings)


def test_an_identity_signs_tensors_in_any_format(signed: Path, here: Instance, tmp_path: Path) -> None:
    ptsave.convert(signed, tmp_path / "net.pt")
    ptsave.convert(tmp_path / "net.pt", tmp_path / "dcp", format="dcp")
    here.requests.clear()
    for path in (signed, tmp_path / "net.pt", tmp_path / "dcp"):
        for trusted in ("root.json", "config.json"):
            found = findings(path, tmp_path / trusted)
            assert (found[0].kind, found[0].facts["key"]) == (Kind.SIGNED, f"{WORKFLOW} ({GITHUB})")
    assert here.requests == [], "verifying asks nobody"
    listed = [one for one in ptsave.verify(signed).findings if one.kind is Kind.SIGNATURE_UNCHECKED]
    assert [one.facts["found"] for one in listed] == ["an identity of sigstore"]


def test_the_file_beside_is_a_bundle_that_sigstore_itself_verifies(signed: Path, tmp_path: Path) -> None:
    from sigstore.models import Bundle, TrustedRoot
    from sigstore.verify import Verifier, policy

    bundle = Bundle.from_json((tmp_path / "net.sig").read_text())
    who = policy.Identity(identity=WORKFLOW, issuer=GITHUB)
    verifier = Verifier(trusted_root=TrustedRoot.from_file(str(tmp_path / "root.json")))
    kind, payload = verifier.verify_dsse(bundle, who)
    assert (kind, json.loads(payload)["predicateType"]) == (
        "application/vnd.in-toto+json",
        "urn:ptsave:tensors:1",
    )
    ptsave.convert(signed, tmp_path / "bare.npz")
    assert (
        findings(tmp_path / "bare.npz", tmp_path / "root.json", signature=tmp_path / "net.sig")[0].kind
        is Kind.SIGNED
    )


def test_another_identity_issuer_or_instance(signed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root.json"
    for identity, issuer in ((f"{WORKFLOW}2", GITHUB), (WORKFLOW, "https://accounts.example.com")):
        (found,) = findings(signed, root, identity, issuer)
        assert (found.kind, found.facts["who"]) == (Kind.OTHER_IDENTITY, f"{WORKFLOW} ({GITHUB})")
    (found,) = findings(signed, Path("sigstore"))
    assert found.kind is Kind.NOT_LOGGED, "the public instance knows nothing of this one"
    other = tmp_path / "other"
    other.mkdir()
    (found,) = findings(signed, Instance(url="http://127.0.0.1:1").write(other)[1])
    assert found.kind is Kind.NOT_LOGGED


def test_other_tensors(signed: Path, tmp_path: Path) -> None:
    document = json.loads((tmp_path / "net.sig").read_text())
    assert document["verificationMaterial"]["tlogEntries"]
    ptsave.save(tmp_path / "other.pt", {**STATE, "w": -STATE["w"]})
    found = findings(tmp_path / "other.pt", tmp_path / "root.json", signature=tmp_path / "net.sig")
    assert found[0].kind is Kind.SIGNED_OTHER_VALUES


def without_log(bundle: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = []


def another_time(bundle: dict[str, Any]) -> None:
    entry = bundle["verificationMaterial"]["tlogEntries"][0]
    entry["integratedTime"] = str(int(entry["integratedTime"]) - 3600)


def another_payload(bundle: dict[str, Any]) -> None:
    envelope = bundle["dsseEnvelope"]
    envelope["payload"] = b64encode(
        b64decode(envelope["payload"]).replace(b'"count":2', b'"count":3')
    ).decode()


def another_signature(bundle: dict[str, Any]) -> None:
    one = bundle["dsseEnvelope"]["signatures"][0]
    data = bytearray(b64decode(one["sig"]))
    data[-1] ^= 1
    one["sig"] = b64encode(data).decode()


def another_entry(bundle: dict[str, Any]) -> None:
    entry = bundle["verificationMaterial"]["tlogEntries"][0]
    body = b64decode(entry["canonicalizedBody"]).replace(b'"kind":"dsse"', b'"kind":"dsse" ')
    entry["canonicalizedBody"] = b64encode(body).decode()


def two_entries(bundle: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["tlogEntries"] *= 2


def no_promise(bundle: dict[str, Any]) -> None:
    del bundle["verificationMaterial"]["tlogEntries"][0]["inclusionPromise"]


def nonsense(bundle: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = [{"logIndex": {}}]


def bad_certificate(bundle: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["certificate"]["rawBytes"] = "MAA="


CHANGES = (
    without_log,
    another_time,
    another_payload,
    another_signature,
    another_entry,
    two_entries,
    no_promise,
    nonsense,
    bad_certificate,
)


@pytest.mark.parametrize("change", CHANGES)
def test_bundles_that_are_not_confirmed(
    change: Callable[[dict[str, Any]], None], signed: Path, tmp_path: Path
) -> None:
    bundle = json.loads((tmp_path / "net.sig").read_text())
    change(bundle)
    (tmp_path / "net.sig").write_text(json.dumps(bundle))
    ptsave.convert(signed, tmp_path / "bare.npz")
    (found,) = findings(tmp_path / "bare.npz", tmp_path / "root.json", signature=tmp_path / "net.sig")[:1]
    assert found.kind is Kind.NOT_LOGGED


def test_a_certificate_that_was_over_when_the_log_had_it(
    config: Path, here: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "minutes", -0.5)
    with pytest.raises(RefusedError, match="sigstore has not signed"):
        ptsave.save(tmp_path / "net.pt", STATE, sign=config)
    assert not (tmp_path / "net.pt").exists()


def test_a_job_s_own_login(
    here: Instance, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that GitHub gives to a job with `id-token: write`, asked for when it is needed."""
    monkeypatch.delenv(TOKEN)
    for name in ("GITLAB_CI", "CIRCLECI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{here.url}/token")
    done = ptsave.save(tmp_path / "net.pt", STATE, sign=config)
    assert list(done.signed_by) == [f"{WORKFLOW} ({GITHUB})"]
    assert findings(tmp_path / "net.pt", tmp_path / "root.json")[0].kind is Kind.SIGNED


def test_model_signing_accepts_ours_and_we_accept_theirs(
    config: Path, here: Instance, tmp_path: Path
) -> None:
    model_signing: Any = pytest.importorskip("model_signing", reason="it needs Python 3.11")
    ours, theirs, folder = tmp_path / "ours", tmp_path / "theirs", tmp_path / "model"
    ptsave.save(tmp_path / "net.pt", STATE)
    ptsave.convert(tmp_path / "net.pt", folder, format="safetensors-sharded", sign=config, bundle=ours)
    whom = {"identity": WORKFLOW, "oidc_issuer": GITHUB, "trust_config": config}
    accepts = model_signing.verifying.Config().use_sigstore_verifier(**whom)
    accepts.verify(folder, ours)
    signs = model_signing.signing.Config().use_sigstore_signer(identity_token=token(), trust_config=config)
    signs.sign(folder, theirs)
    for bundle in (ours, theirs):
        found = findings(folder, tmp_path / "root.json", signature=bundle)
        assert Kind.FILES_SIGNED in [one.kind for one in found]


def test_what_is_refused(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ptsave.save(tmp_path / "net.pt", STATE)
    for how in ({}, {"identity": WORKFLOW}, {"issuer": GITHUB}):
        with pytest.raises(UsageError, match="say whom you mean"):
            ptsave.verify(tmp_path / "net.pt", signed_by="sigstore", checks="signature", **how)
    (tmp_path / "bad.json").write_text('{"mediaType": 3}')
    with pytest.raises(RefusedError):
        findings(tmp_path / "net.pt", tmp_path / "bad.json")
    with pytest.raises(RefusedError):
        ptsave.save(tmp_path / "out.pt", STATE, sign=tmp_path / "bad.json")
    monkeypatch.setenv(TOKEN, "secret.secret.secret")
    with pytest.raises(RefusedError, match="refused") as caught:
        ptsave.save(tmp_path / "out.pt", STATE, sign=config)
    assert "secret.secret" not in str(caught.value)
    for name in (TOKEN, "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RefusedError, match="says who signs"):
        ptsave.save(tmp_path / "out.pt", STATE, sign=config)
    assert not (tmp_path / "out.pt").exists()


def test_without_the_extra_the_error_names_it(signed: Path, root: Path) -> None:
    hide = "import sys; sys.modules['sigstore'] = None; sys.path.insert(0, sys.argv.pop(1))"
    run = [sys.executable, "-c", f"{hide}; from ptsave.__main__ import main; main()", str(root)]
    asked = ["--signed-by", "sigstore", "--identity", WORKFLOW, "--issuer", GITHUB]
    done = subprocess.run([*run, "verify", str(signed), *asked], capture_output=True, text=True)
    assert done.returncode == 4
    assert "pip install 'ptsave[sigstore]'" in done.stderr
