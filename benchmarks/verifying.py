"""Rows: `verify` reads every byte once; a model's checks cost a load and its forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, net_ratio, peak, peak_ratio, ptsave, python, wall_ratio

CONFIGS = Path(__file__).parents[1] / "configs"

ALONE = """
import sys, torch
MAKE
with torch.no_grad():
    model(**inputs)
"""
LOAD_AND_RUN = """
import sys, torch
MAKE
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
with torch.no_grad():
    model(**inputs)
    model(**inputs)
"""
BERT = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
BERT_INPUTS = [2, 128]
MAKE_BERT = """
from transformers import BertConfig, BertModel
model = BertModel(BertConfig(**CONFIG_)).eval()
ids = torch.randint(1000, 30522, SHAPE_)
inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
"""
TOKENS = [2, 256]
MAKE_TRANSFORMER = """
from ptsave.examples import TinyTransformer
model = TinyTransformer(**CONFIG_).eval()
inputs = dict(tokens=torch.randint(0, 32000, SHAPE_))
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


def _verify(files: Files, what: str, config: Path, flags: list[str], make: str) -> Row:
    """Every check on one model; `make` is a script's lines that make `model` and `inputs`."""
    checkpoint = files.model(config, flags)
    return Row(
        {
            "verify": Command(lambda out: ptsave("verify", "-q", checkpoint, "-c", config, *flags)),
            "script": Command(lambda out: python(LOAD_AND_RUN.replace("MAKE", make), checkpoint)),
            "alone": Command(lambda out: python(ALONE.replace("MAKE", make))),
        },
        [
            Budget(
                f"`verify`, every check, {what}",
                "one load and two forward passes",
                wall_ratio("verify", "script"),
                "×",
                1.1,
            ),
            Budget(
                f"`verify`, every check, {what}, peak",
                "the model made and run once, nothing loaded",
                peak_ratio("verify", "alone"),
                "×",
                1.1,
            ),
            Budget(
                f"One load and two forward passes, {what}, peak",
                "the same",
                peak_ratio("script", "alone"),
                "×",
            ),
        ],
        touch_bytes=2 * files.gib,
    )


def verify_bert(files: Files) -> Row:
    """Every check of a model that transformers makes, of 110 million parameters."""
    flags = settings({f"model.args.config.{key}": value for key, value in BERT.items()})
    flags += settings({f"inputs.{name}.shape": BERT_INPUTS for name in ("input_ids", "attention_mask")})
    make = MAKE_BERT.replace("CONFIG_", repr(BERT)).replace("SHAPE_", repr(BERT_INPUTS))
    return _verify(files, "BERT (base)", CONFIGS / "all_minilm_l6_v2.toml", flags, make)


def verify_model(files: Files) -> Row:
    """Every check of a model of 1 GiB."""
    layers = max(1, files.gib // (12 * 1024 * 1024 * 4))
    model = {
        "vocab_size": 32_000,
        "d_model": 1024,
        "num_heads": 16,
        "num_layers": layers,
        "max_length": 256,
        "dropout": 0.1,
    }
    flags = settings({f"model.args.{key}": value for key, value in model.items()})
    flags += settings({"inputs.tokens.shape": TOKENS, "inputs.tokens.high": 32_000})
    make = MAKE_TRANSFORMER.replace("CONFIG_", repr(model)).replace("SHAPE_", repr(TOKENS))
    return _verify(files, "a transformer of 1 GiB", CONFIGS / "tiny_transformer.toml", flags, make)


def settings(values: Mapping[str, object]) -> list[str]:
    """`--set` for each of them."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


ROWS = [verify_bytes, verify_bert, verify_model]
