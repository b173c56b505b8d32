"""Rows: an export with its proof beside torch's bare call, and signatures beside the same command without."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, peak, ptsave, python, wall_ratio
from benchmarks.verifying import CONFIGS, settings

MAKE = """
import sys, torch
from ptsave.examples import TinyTransformer
model = TinyTransformer(**MODEL_).eval()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
tokens = torch.randint(0, 8192, [2, 128])
"""
EXPORTS = {
    "pt2": MAKE + "torch.export.save(torch.export.export(model, (tokens,)), sys.argv[2])",
    "onnx": MAKE + "torch.onnx.export(model, (tokens,), sys.argv[2], dynamo=True, external_data=False)",
}
"""What users write."""


def _export(files: Files, suffix: str) -> Row:
    """A transformer of about 300 MiB."""
    model = {
        "vocab_size": 8192,
        "d_model": 1024,
        "num_heads": 16,
        "num_layers": max(1, files.gib * 6 // (2**30)),
        "max_length": 128,
        "dropout": 0.1,
    }
    flags = settings({f"model.args.{key}": value for key, value in model.items()})
    flags += settings({"inputs.tokens.shape": [2, 128], "inputs.tokens.high": 8192})
    config = CONFIGS / "tiny_transformer.toml"
    weights = files.model(config, flags)
    script = EXPORTS[suffix].replace("MODEL_", repr(model))
    return Row(
        {
            "convert": Command(
                lambda out: ptsave("convert", "-q", weights, out / f"m.{suffix}", "-c", config, *flags)
            ),
            "bare": Command(lambda out: python(script, weights, out / f"m.{suffix}")),
        },
        [
            Budget(
                f"`convert model.pt model.{suffix} -c CONFIG`, 300 MiB, compared with the model",
                "torch's exporter alone",
                wall_ratio("convert", "bare"),
                "×",
                1.5,
            ),
            Budget(f"`convert model.pt model.{suffix} -c CONFIG`, 300 MiB, peak", "", peak("convert"), "MiB"),
            Budget(f"torch's exporter of 300 MiB to {suffix}, peak", "", peak("bare"), "MiB"),
        ],
        touch_bytes=2 * files.gib,
    )


def export_pt2(files: Files) -> Row:
    """torch.export's archive."""
    return _export(files, "pt2")


def export_onnx(files: Files) -> Row:
    """ONNX, with the weights in the file."""
    return _export(files, "onnx")


def sign(files: Files) -> Row:
    """1 GiB, with SHA-256 on both sides."""
    plain = files.state(files.gib)[1]
    key = Ed25519PrivateKey.generate()
    private, public = files.folder / "signer.key", files.folder / "signer.pub"
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    signed = files.folder / "signed.safetensors"
    files.run("convert", "-q", plain, signed, "--sign", private, "--overwrite")
    convert = ("convert", "-q", plain, "--digest", "sha256", "--no-check")
    verify = ("verify", "-q", signed, "--checks")
    return Row(
        {
            "convert": Command(lambda out: ptsave(*convert, out / "a.safetensors")),
            "sign": Command(lambda out: ptsave(*convert, out / "a.safetensors", "--sign", private)),
            "verify": Command(lambda out: ptsave(*verify, "bytes")),
            "signed-by": Command(lambda out: ptsave(*verify, "bytes,signature", "--signed-by", public)),
        },
        [
            Budget("`convert --sign`, 1 GiB", "the same without", wall_ratio("sign", "convert"), "×", 1.05),
            Budget(
                "`verify --signed-by`, 1 GiB",
                "the same without",
                wall_ratio("signed-by", "verify"),
                "×",
                1.05,
            ),
        ],
    )


ROWS = [export_pt2, export_onnx, sign]
