"""Certificates: whose a key is by an authority's word, and a cause for each chain that does not count."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

import ptsave
from ptsave.core.finding import Finding, Kind
from ptsave.errors import PtsaveError, RefusedError, UsageError
from ptsave.sign.certificates import CertifiedName
from ptsave.sign.envelope import Envelope, Signature
from ptsave.sign.trusted import claimed
from tests.sign.keys_made import SIGNING, Certified, certify, issuing, key_usage, write_pair

ALICE = "alice@example.com"
URI = "https://example.com/release"
NAMES = (x509.RFC822Name(ALICE), x509.UniformResourceIdentifier(URI))
ROOT = certify("Root")
MIDDLE = certify("Middle", ROOT, issuing(0))


def leaf(issuer: Certified = MIDDLE, extensions: Any = SIGNING, **how: Any) -> Certified:
    return certify("Alice", issuer, extensions, **{"names": NAMES, **how})


def write(folder: Path, *chain: Certified, root: Certified = ROOT) -> tuple[Path, Path]:
    """A checkpoint that the first of `chain` signed, with the chain beside, and the root."""
    secret, path, trusted = chain[0].write_key(folder / "k.key"), folder / "chain.pem", folder / "root.pem"
    path.write_bytes(b"".join(one.pem for one in chain))
    trusted.write_bytes(root.pem)
    model = folder / "net.safetensors"
    state = {"w": torch.arange(6.0), "b": torch.zeros(2)}
    ptsave.save(model, state, sign=secret, certificate=path)
    return model, trusted


def findings(model: Path, root: Path, identity: str = ALICE, **how: Any) -> list[Finding]:
    verdict = ptsave.verify(model, signed_by=root, identity=identity, checks="signature", **how)
    assert verdict.is_yes == all(one.level != "fail" for one in verdict.findings)
    return list(verdict.findings)


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519"])
@pytest.mark.parametrize("identity", [ALICE, URI])
def test_a_name_is_by_an_authority_s_word_in_any_format(kind: str, identity: str, tmp_path: Path) -> None:
    model, root = write(tmp_path, leaf(kind=kind), MIDDLE)
    ptsave.convert(model, tmp_path / "net.pt")
    ptsave.convert(tmp_path / "net.pt", tmp_path / "dcp", format="dcp")
    for path in (model, tmp_path / "net.pt", tmp_path / "dcp"):
        found = findings(path, root, identity)
        assert found[0].kind is Kind.SIGNED
        assert found[0].facts["key"] == f"{ALICE}, {URI}"
    listed = [one for one in ptsave.verify(model).findings if one.kind is Kind.SIGNATURE_UNCHECKED]
    assert [one.facts["found"] for one in listed] == [f"{ALICE}, {URI}"]


def swapped(folder: Path) -> tuple[Path, Path]:
    """Another authority of the same name in the middle."""
    return write(folder, leaf(), certify("Middle", ROOT, issuing(0)))


def leaf_as_authority(folder: Path) -> tuple[Path, Path]:
    own = leaf()
    return write(folder, leaf(own), own, MIDDLE)


def put(model: Path, chain: list[Certified]) -> Path:
    """Put another chain beside the signature in the record."""
    rows = [{"rawBytes": b64encode(one.certificate.public_bytes(Encoding.DER)).decode()} for one in chain]
    beside = model.parent / "sig"
    document = of_record(model)
    document["verificationMaterial"]["x509CertificateChain"]["certificates"] = rows
    beside.write_text(json.dumps(document))
    ptsave.convert(model, model.parent / "bare.safetensors", no_record=True, overwrite=True)
    return model.parent / "bare.safetensors"


def of_record(model: Path) -> Any:
    with open(model, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["ptsave"])["signatures"][0]


OTHER = certify("Root")
CONSTRAINED = x509.NameConstraints(permitted_subtrees=[x509.DNSName("example.com")], excluded_subtrees=None)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda f: write(f, leaf(), MIDDLE, root=OTHER), Kind.CERTIFICATE_FOREIGN, "leads to no authority"),
        (lambda f: write(f, leaf()), Kind.CERTIFICATE_FOREIGN, "leads to no authority"),
        (swapped, Kind.CERTIFICATE_FOREIGN, "leads to no authority"),
        (leaf_as_authority, Kind.CERTIFICATE_UNFIT, "of no authority"),
        (
            lambda f: write(f, leaf(certify("Low", MIDDLE)), certify("Low", MIDDLE), MIDDLE),
            Kind.CERTIFICATE_FOREIGN,
            "leads to no authority",
        ),
    ],
    ids=range(5),
)
def test_paths_that_lead_nowhere(make: Any, kind: Kind, says: str, tmp_path: Path) -> None:
    (found,) = findings(*make(tmp_path))
    assert found.kind is kind
    assert says in found.message


def through(*middle: Certified, **how: Any) -> Any:
    return lambda folder: write(folder, leaf(middle[0], **how), *middle)


LOW = certify("Low", MIDDLE)
NO_ISSUER = certify("M", ROOT, ((x509.BasicConstraints(True, None), True), (key_usage("crl_sign"), True)))
OF_TLS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (through(LOW, MIDDLE), "it may have 0 authorities below it, and has 1"),
        (through(NO_ISSUER), "it may not issue certificates"),
        (through(certify("M", ROOT, (*issuing(), (OF_TLS, False)))), "not for code signing"),
        (through(certify("M", ROOT, (*issuing(), (CONSTRAINED, True)))), "constrains names"),
        (through(certify("M", ROOT, (*issuing(), (CONSTRAINED, False)))), "constrains names"),
        (through(certify("M", ROOT, (*issuing(), (UNKNOWN, True)))), "critical extension"),
        (through(certify("M", ROOT, SIGNING)), "of no authority"),
        (through(certify("M", ROOT, ())), "of no authority"),
        (through(certify("M", ROOT, key=rsa.generate_private_key(65537, 1024))), "less than 2048 bits"),
    ],
    ids=range(9),
)
def test_certificates_that_do_not_count(make: Any, says: str, tmp_path: Path) -> None:
    (found,) = findings(*make(tmp_path))
    assert found.kind is Kind.CERTIFICATE_UNFIT
    assert says in found.message


@pytest.mark.parametrize(
    ("extensions", "says"),
    [
        ((*SIGNING[:2], (OF_TLS, False)), "not for code signing"),
        ((SIGNING[0], (key_usage("key_agreement"), True)), "not for digital signatures"),
        ((), "not for digital signatures"),
        ((*SIGNING, (UNKNOWN, True)), "critical extension"),
        (issuing(), "of an authority"),
    ],
    ids=range(5),
)
def test_nobody_signs_with_a_certificate_that_nobody_accepts(
    extensions: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=says):
        write(tmp_path, leaf(extensions=extensions), MIDDLE)


def test_dates(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="does not hold today"):
        write(tmp_path, leaf(days=(-9, -1)), MIDDLE)
    for middle, root in ((certify("M", ROOT, days=(-9, -1)), ROOT), (certify("M", ROOT, days=(1, 9)), ROOT)):
        (found,) = findings(*write(tmp_path, leaf(middle), middle, root=root))
        assert (found.kind, found.facts["key"]) == (Kind.KEY_OUT_OF_DATE, "M")
    old = certify("Old", days=(-9, -1))
    (found,) = findings(*write(tmp_path, leaf(old), root=old))
    assert (found.kind, found.facts["key"]) == (Kind.KEY_OUT_OF_DATE, "Old")
    renewed = certify("Old", key=old.key)
    model, root = write(tmp_path, leaf(old), root=old)
    root.write_bytes(old.pem + renewed.pem)
    assert findings(model, root)[0].kind is Kind.SIGNED


@pytest.mark.parametrize(
    "identity", ["bob@example.com", "alice", "ALICE@example.com", "Alice", ALICE + " ", ""]
)
def test_another_name(identity: str, tmp_path: Path) -> None:
    """The common name counts where there is no other alone; a name is compared whole."""
    (found,) = findings(*write(tmp_path, leaf(), MIDDLE), identity)
    assert found.kind is Kind.OTHER_IDENTITY
    assert ALICE in found.message
    if identity == "Alice":
        assert findings(*write(tmp_path, leaf(names=()), MIDDLE), identity)[0].kind is Kind.SIGNED


def test_a_signature_by_another_key_than_the_certificate_s(tmp_path: Path) -> None:
    model, root = write(tmp_path, leaf(), MIDDLE)
    bare = put(model, [leaf(), MIDDLE])
    (found,) = findings(bare, root, signature=tmp_path / "sig")
    assert found.kind is Kind.FORGED_SIGNATURE
    bare = put(model, [MIDDLE])
    (found,) = findings(bare, root, signature=tmp_path / "sig")
    assert (found.kind, "of an authority" in found.message) == (Kind.CERTIFICATE_UNFIT, True)
    bare = put(model, [])
    (found,) = findings(bare, root, signature=tmp_path / "sig")
    assert found.kind is Kind.MALFORMED_SIGNATURE
    bare = put(model, [leaf()] * 17)
    (found,) = findings(bare, root, signature=tmp_path / "sig")
    assert found.kind is Kind.MALFORMED_SIGNATURE


def test_a_chain_may_come_in_any_order_and_with_its_root(tmp_path: Path) -> None:
    top = certify("Top", ROOT)
    deep = certify("Deep", top)
    for chain in ((deep, top), (top, deep), (top, ROOT, deep)):
        assert findings(*write(tmp_path, leaf(deep), *chain))[0].kind is Kind.SIGNED
    model, root = write(tmp_path, leaf(deep), deep, top, root=top)
    assert findings(model, root)[0].kind is Kind.SIGNED, "an authority that is none itself is trusted as that"


def test_weak_hashes(tmp_path: Path) -> None:
    """The library makes no such certificates, and openssl does."""
    top, low = ROOT.write_key(tmp_path / "top.key"), tmp_path / "low.key"
    (tmp_path / "top.pem").write_bytes(ROOT.pem)
    (tmp_path / "ext").write_text("basicConstraints=critical,CA:TRUE")
    run = [
        "openssl",
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        low,
        "-subj",
        "/CN=M",
        "-out",
    ]
    subprocess.run([*run, tmp_path / "csr"], check=True, capture_output=True)
    by = [
        "openssl",
        "x509",
        "-req",
        "-sha1",
        "-in",
        tmp_path / "csr",
        "-CA",
        tmp_path / "top.pem",
        "-CAkey",
        top,
    ]
    made = subprocess.run([*by, "-extfile", tmp_path / "ext"], check=True, capture_output=True).stdout
    key = serialization.load_pem_private_key(low.read_bytes(), None)
    weak = Certified(key, x509.load_pem_x509_certificate(made))
    (found,) = findings(*write(tmp_path, leaf(weak), weak))
    assert found.level == "fail"
    assert found.kind in (Kind.CERTIFICATE_UNFIT, Kind.CERTIFICATE_FOREIGN), "by how the library was built"


def test_what_is_refused(tmp_path: Path) -> None:
    model, root = write(tmp_path, leaf(), MIDDLE)
    own, public = write_pair(tmp_path, "bare")
    for how in (
        {"signed_by": root},
        {"signed_by": public, "identity": ALICE},
        {"signed_by": root, "identity": ALICE, "issuer": "https://example.com"},
        {"identity": ALICE},
    ):
        with pytest.raises(UsageError):
            ptsave.verify(model, checks="signature", **how)
    chain = tmp_path / "chain.pem"
    for sign in (own, ()):
        with pytest.raises(UsageError):
            ptsave.convert(model, tmp_path / "out.pt", sign=sign, certificate=chain)
    for damaged in (b"", chain.read_bytes()[:200], own.read_bytes()):
        (tmp_path / "bad.pem").write_bytes(damaged)
        with pytest.raises(PtsaveError):
            ptsave.convert(
                model, tmp_path / "out.pt", sign=tmp_path / "k.key", certificate=tmp_path / "bad.pem"
            )
    assert not (tmp_path / "out.pt").exists()


def test_a_certificate_beside_a_bare_key(tmp_path: Path) -> None:
    """Each has a statement of its own, and each is found."""
    model, root = write(tmp_path, leaf(), MIDDLE)
    own, public = write_pair(tmp_path, "bare")
    out, chain = tmp_path / "out.pt", tmp_path / "chain.pem"
    done = ptsave.convert(model, out, sign=[own, tmp_path / "k.key"], certificate=chain, overwrite=True)
    assert len(done.signed_by) == 2
    verdict = ptsave.verify(out, signed_by=[root, public], identity=ALICE, checks="signature")
    assert verdict.is_yes
    with pytest.raises(UsageError, match="a file holds one"):
        ptsave.convert(
            model,
            tmp_path / "x.pt",
            sign=[own, tmp_path / "k.key"],
            certificate=chain,
            signature=tmp_path / "s",
        )


def test_model_signing_accepts_ours_and_we_accept_theirs(tmp_path: Path) -> None:
    model_signing: Any = pytest.importorskip("model_signing", reason="it needs Python 3.11")
    own = leaf()
    model, root = write(tmp_path, own, MIDDLE)
    secret, chain, ours, theirs = (tmp_path / name for name in ("k.key", "chain.pem", "ours", "theirs"))
    for form in ("safetensors-sharded", "dcp"):
        folder = tmp_path / form
        ptsave.convert(
            model, folder, format=form, sign=secret, certificate=chain, bundle=ours, overwrite=True
        )
        accepts = model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[root])
        accepts.verify(folder, ours)
        assert findings(folder, root, signature=ours)[0].kind is Kind.FILES_SIGNED
        (tmp_path / "own.pem").write_bytes(own.pem)
        (tmp_path / "above.pem").write_bytes(MIDDLE.pem)
        signs = model_signing.signing.Config().use_certificate_signer(
            private_key=secret,
            signing_certificate=tmp_path / "own.pem",
            certificate_chain=[tmp_path / "above.pem"],
        )
        signs.sign(folder, theirs)
        assert findings(folder, root, signature=theirs)[0].kind is Kind.FILES_SIGNED
        (folder / "more.txt").write_text("")
        verdict = ptsave.verify(folder, signed_by=root, identity=ALICE, signature=theirs, checks="signature")
        assert not verdict.is_yes


def test_a_config_says_whose_certificates_count(tmp_path: Path) -> None:
    model, _ = write(tmp_path, leaf(), MIDDLE)
    ptsave.save(
        model,
        torch.nn.Linear(2, 1),
        hyperparameters={"in_features": 2, "out_features": 1},
        sign=tmp_path / "k.key",
        certificate=tmp_path / "chain.pem",
    )
    config = tmp_path / "net.toml"
    for name, is_yes in ((ALICE, True), ("bob@example.com", False)):
        table = f'[verify]\nsigned_by = ["root.pem"]\nidentity = ["{name}"]\n'
        config.write_text(
            f'[model]\nclass = "torch.nn.Linear"\n[model.args]\nin_features = 2\nout_features = 1\n{table}'
        )
        assert ptsave.verify(model, config=config, checks="signature").is_yes == is_yes
    with pytest.raises(UsageError, match="would not be used"):
        ptsave.verify(
            model, config=config, checks="signature", signed_by=tmp_path / "root.pem", identity=ALICE
        )


def doubled(certificate: x509.Certificate) -> bytes:
    """A certificate whose extension for names is there twice, in place of that for uses of the key."""
    data = certificate.public_bytes(Encoding.DER)
    names, uses = b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x25"
    assert data.count(names) == data.count(uses) == 1
    return data.replace(uses, names)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_malformed_certificates_are_a_no(tmp_path: Path) -> None:
    """Whoever sends a signature writes them: nothing that is in them is a bug of ours."""
    whole = [one.certificate.public_bytes(Encoding.DER) for one in (leaf(), MIDDLE)]
    chains = [[doubled(leaf().certificate), whole[1]]]
    random = Random(7)
    for _ in range(600):
        chain = [bytearray(one) for one in whole]
        one = random.choice(chain)
        one[random.randrange(len(one))] = random.randrange(256)
        chains.append([bytes(one) for one in chain])
    who = CertifiedName([ROOT.certificate], [ALICE])
    kinds = {Kind.MALFORMED_SIGNATURE, Kind.CERTIFICATE_FOREIGN, Kind.FORGED_SIGNATURE}
    for chain in chains:
        envelope = Envelope(b"{}", [Signature("", bytes(70))], chain=chain)
        (found,) = [judged for _, judged in who.judge(envelope, "")]
        assert isinstance(found, Finding)
        assert found.kind in kinds
        assert claimed(envelope)
