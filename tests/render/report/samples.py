"""Verdicts as verify gives them, and one that a hostile file would cause."""

from __future__ import annotations

from ptsave.core.finding import Finding, Kind, Level
from ptsave.core.verdict import Departure, Verdict

FACTS = {
    "path": "runs/bert-base/checkpoint-1200.pt",
    "format": "pt",
    "tensors": 199,
    "elements": 109_482_240,
    "bytes": 437_928_960,
    "class": "transformers.BertModel",
    "device": "cuda:0",
    "torch": "2.13.0, recorded with 2.9.1",
    "seconds": 12.34,
}


def said(check: str, level: Level, where: str, words: str) -> Finding:
    """A finding that says `words`."""
    return Finding(check, level, where, Kind.UNREADABLE, facts={"why": words})


def layers() -> list[tuple[str, str]]:
    """The calls of a small encoder, in the order in which they finish."""
    calls = [("embeddings.word_embeddings", "Embedding"), ("embeddings.LayerNorm", "LayerNorm")]
    calls.append(("embeddings", "BertEmbeddings"))
    for i in range(12):
        prefix = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            calls.append((f"{prefix}.attention.self.{name}", "Linear"))
        calls += [
            (f"{prefix}.attention.self", "BertSelfAttention"),
            (f"{prefix}.attention.output.dense", "Linear"),
            (f"{prefix}.attention.output.LayerNorm", "LayerNorm"),
            (f"{prefix}.intermediate.dense", "Linear"),
            (f"{prefix}.output.dense", "Linear"),
            (f"{prefix}.output.LayerNorm", "LayerNorm"),
            (prefix, "BertLayer"),
        ]
    return [
        *calls,
        ("encoder", "BertEncoder"),
        ("pooler.dense", "Linear"),
        ("pooler", "BertPooler"),
        ("", "BertModel"),
    ]


def growth(first: int = 44) -> tuple[Departure, ...]:
    """A difference that begins at one layer and grows."""
    return tuple(
        Departure(name, 0, kind, 0.0 if i < first else 3e-4 * 1.04 ** (i - first) * (1 + 0.6 * (i % 3)))
        for i, (name, kind) in enumerate(layers())
    )


GOOD = Verdict(
    (
        said("bytes", "ok", "", "199 tensors lie within the bounds of the file"),
        said("bytes", "ok", "", "199 tensors match their recorded xxh3_128 digest"),
        said("safe", "ok", "", "names nothing that could run"),
        said("finite", "ok", "", "199 floating-point tensors, every element finite"),
        said("keys", "skipped", "", "needs a config: -c CONFIG"),
    )
)

FIRST = layers()[44][0]
BAD = Verdict(
    (
        *GOOD.findings[:1],
        said(
            "bytes",
            "fail",
            "encoder.layer.4.attention.self.key.weight",
            "damaged: its bytes do not match the recorded xxh3_128 digest",
        ),
        *GOOD.findings[2:4],
        said("keys", "ok", "", "199 tensors fit the architecture"),
        said("keys", "warn", "embeddings.position_ids", "is a buffer that the state dict leaves out"),
        said("roundtrip", "ok", "", "pt: 199 tensors are bitwise equal"),
        said("roundtrip", "skipped", "", "outputs: there is no [inputs] in the config"),
        said(
            "behaviour",
            "fail",
            "last_hidden_state",
            "outside tolerance: max absolute 3.2e-03, max relative 0.41, 53,000 ULP (rtol 1.3e-06)",
        ),
        said(
            "behaviour",
            "fail",
            FIRST,
            "the first module whose output departs while its inputs agree (Linear, 4.2e-04)",
        ),
    ),
    "damaged: 1 of 199 tensors does not match its digest (encoder.layer.4.attention.self.key.weight)",
    growth(),
)

EVIL_NAME = "</td><script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>&amp;]]>"
EVIL = Verdict(
    (
        said(
            "bytes",
            "fail",
            EVIL_NAME,
            "\x00\x1b[31mred\x07 \u202egnp.exe \ud800 \ufffe %0A::error::x\n::stop-commands::y",
        ),
        said("bytes", "fail", EVIL_NAME, "the same name again"),
        said("safe", "fail", "posix.system" + "x" * 5000, "built 1×"),
        said("finite", "warn", "שלום.weight", "1 NaN, 0 infinite"),
    ),
    f"cause: {EVIL_NAME}\r\n::error::y",
    (
        Departure(EVIL_NAME, 0, "<b>Kind</b>", float("inf")),
        Departure("a" * 300, 1, "Linear", float("nan")),
        Departure("tiny", 0, "Linear", 5e-324),
        Departure("huge", 0, "Linear", 1e308),
    ),
)
