"""Values are completed, a destination in the way is refused early, progress ends at the file's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptsave.cli.options import check_names, dtypes, formats, one_of, typed
from ptsave.formats.writers import BY_NAME
from tests.support import Command

ROOT = Path(__file__).parents[2]


def test_values_are_completed() -> None:
    assert formats("") == list(BY_NAME)
    assert formats("safe") == ["safetensors", "safetensors-sharded"]
    assert "bfloat16" in dtypes("b")
    assert check_names("fin") == ["finite"]
    assert check_names("bytes,b") == ["bytes,behaviour"]
    assert one_of("fail", "drop")("d") == ["drop"]


@pytest.mark.parametrize(
    "word",
    [
        "https://me:SECRET@host/model.pt",
        "https://host/model.pt?X-Amz-Signature=SECRET",
        "--against=https://me:SECRET@host/model.pt?token=SECRET",
        "model.args.url='https://me:SECRET@host/a'",
        "https://me:SECRET@/",
        "postgres://me:SECRET@host/db",
    ],
)
def test_a_command_line_is_shown_without_what_gives_access(word: str) -> None:
    shown = typed(["verify", "a b.pt", word])
    assert shown.startswith("ptsave verify 'a b.pt' ")
    assert "SECRET" not in shown


def test_a_command_line_is_shown_as_it_was_typed() -> None:
    words = ["verify", "s3://bucket/key.pt", "--checks", "bytes,safe", "--report", "out.html"]
    assert typed(words) == f"ptsave {' '.join(words)}"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ptsave convert a b --format safe", ["safetensors", "safetensors-sharded"]),
        ("ptsave convert a b --dtype bf", ["bfloat16"]),
        ("ptsave verify a --checks bytes,f", ["bytes,finite"]),
        ("ptsave load a --device cp", ["cpu"]),
        ("ptsave inspect a --sort s", ["size"]),
        ("ptsave save a b --digest b", ["blake3"]),
    ],
)
def test_bash_completes_values(ptsave: Command, words: str, completed: list[str]) -> None:
    last = str(len(words.split()) - 1)
    done = ptsave(env={"_PTSAVE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": last})
    assert done.stdout.split() == completed


def test_a_destination_in_the_way_is_refused_before_torch_is_imported(
    ptsave: Command, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    """A torch that cannot be imported would be the error, if it was asked for."""
    (tmp_path / "torch.py").write_text("raise SystemError('imported')")
    (tmp_path / "net.pt").write_text("old")
    env: dict[str, Any] = {"PYTHONPATH": str(tmp_path)}
    config = ROOT / "configs" / "simple_net.toml"
    done = ptsave("save", config, tmp_path / "net.pt", code=4, env=env)
    assert "exists" in done.stderr
    assert (tmp_path / "net.pt").read_text() == "old"
