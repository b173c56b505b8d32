"""Rows: `verify` reads every byte once; a model's checks cost a load and its forward passes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.files import Files, settings
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, net_ratio, peak, ptsave, python, wall_ratio

MODEL = {"vocab_size": 32_000, "d_model": 768, "num_heads": 12, "num_layers": 12, "max_length": 256}
"""Of TinyTransformer: 110 million parameters."""

LOAD_AND_RUN = """
import sys, torch
from ptsave.examples import TinyTransformer
model = TinyTransformer(VOCAB, dropout=0.1).eval()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
tokens = torch.randint(0, 32000, (2, 256))
with torch.no_grad():
    model(tokens)
    model(tokens)
"""


def _cat(path: Path) -> Command:
    return Command(lambda out: ["sh", "-c", 'cat "$1" > /dev/null', "sh", str(path)])


def verify_bytes(files: Files) -> Row:
    """CRCs of a torch zip."""
    large, tiny = files.state(files.gib)[0], files.tiny()[0]
    return Row(
        {
            "verify": Command(lambda out: ptsave("verify", "-q", "--checks", "bytes", large)),
            "idle": Command(lambda out: ptsave("verify", "-q", "--checks", "bytes", tiny)),
            "cat": _cat(large),
            "cat-idle": _cat(tiny),
        },
        [
            Budget(
                "`verify --checks bytes` 1 GiB `.pt`, start-up subtracted",
                "`cat FILE > /dev/null`",
                net_ratio("verify", "idle", "cat", "cat-idle"),
                "×",
                1.5,
            ),
            Budget(
                "`verify --checks bytes` 1 GiB `.pt`, whole process",
                "the same",
                wall_ratio("verify", "cat"),
                "×",
            ),
            Budget("`verify --checks bytes` 1 GiB `.pt`, peak", "", peak("verify"), "MiB"),
        ],
    )


def verify_model(files: Files) -> Row:
    """Every check."""
    config = Path(__file__).parents[1] / "configs" / "tiny_transformer.toml"
    checkpoint = files.model(config, MODEL)
    inputs = ["--set", "inputs.tokens.shape=[2, 256]", "--set", "inputs.tokens.high=32000"]
    flags = [*settings(MODEL), *inputs]
    script = LOAD_AND_RUN.replace("VOCAB", ", ".join(f"{key}={value}" for key, value in MODEL.items()))
    return Row(
        {
            "verify": Command(lambda out: ptsave("verify", "-q", checkpoint, "-c", config, *flags)),
            "script": Command(lambda out: python(script, checkpoint)),
        },
        [
            Budget(
                "`verify`, every check, a transformer of 110 million parameters",
                "one load and two forward passes",
                wall_ratio("verify", "script"),
                "×",
                1.3,
            )
        ],
        touch_bytes=2 * files.gib,
    )


ROWS = [verify_bytes, verify_model]
