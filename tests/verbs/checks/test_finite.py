"""What `finite` finds, by the fields of its findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.core.finding import Finding, Kind
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.finite import finite
from ptsave.verbs.checks.subject import Asked, Subject
from tests.servers.folders import folder
from tests.servers.serving import Server


def found(tmp_path: Path, value: object, infinite: Sequence[str] = ()) -> list[Finding]:
    torch.save(value, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        return list(finite(Subject(checkpoint, asked=Asked(("finite",), infinite=infinite))))


def test_all_are_counted(tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.arange(3)})
    assert (one.level, one.kind, one.count) == ("ok", Kind.ALL_FINITE, 2)


def test_what_is_not_finite_is_counted_by_tensor(tmp_path: Path) -> None:
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    (one,) = found(tmp_path, {"a": torch.zeros(2), "b": bad})
    assert (one.level, one.kind, one.where) == ("fail", Kind.NOT_FINITE, "b")
    assert one.facts == {"nans": 1, "infinities": 2}


@pytest.mark.parametrize(("value", "level"), [(math.inf, "ok"), (math.nan, "fail")])
def test_infinities_may_be_allowed_and_nan_never(value: float, level: str, tmp_path: Path) -> None:
    one, *_ = found(tmp_path, {"mask": torch.full((2,), value), "w": torch.zeros(1)}, ["mask"])
    kind = Kind.INFINITE_ALLOWED if level == "ok" else Kind.NOT_FINITE
    assert (one.level, one.kind, one.where) == (level, kind, "mask")


def test_integers_alone_are_skipped(tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"a": torch.arange(3)})
    assert (one.level, one.kind) == ("skipped", Kind.NO_FLOATS)


STATE = {
    "nan": torch.tensor([[1.0, math.nan, math.inf], [0.0, -math.inf, 2.0]]),
    "half": torch.full((5,), math.inf).half(),
    "complex": torch.tensor([complex(math.nan, math.inf), 1j]),
    "number": torch.tensor(math.inf),
    "long": torch.arange(4),
    "large": torch.cat([torch.zeros(300_000), torch.tensor([math.nan])]).bfloat16(),
}
STATE |= {
    "transposed": STATE["nan"].T,
    "tied": STATE["half"],
    "expanded": torch.tensor([math.nan]).expand(3),
    "part": STATE["large"][-2:],
    "conj": STATE["complex"].conj(),
}


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.npz"])
def test_what_another_check_has_counted_is_what_it_would_count(name: str, tmp_path: Path) -> None:
    """Whatever of the checkpoint has a CRC-32 or a digest, and whatever has neither."""
    torch.save(STATE, tmp_path / "source.pt")
    drop = ("large", "part") if name.endswith(".npz") else ()  # NumPy has no bfloat16
    ptsave.convert(tmp_path / "source.pt", tmp_path / name, drop=drop, contiguous=True)
    for file in ("source.pt", name):
        with open_checkpoint(tmp_path / file) as checkpoint:
            alone = Subject(checkpoint, asked=Asked(("finite",)))
            after_bytes = Subject(checkpoint, asked=Asked(("bytes", "finite")))
            assert not [one for one in bytes_(after_bytes) if one.level == "fail"]
            is_npz = file.endswith(".npz")  # its CRC-32s are of the arrays' headers too
            assert bool(after_bytes.counts) != is_npz
            assert list(finite(after_bytes)) == list(finite(alone))


def test_each_byte_is_read_once_for_both_checks(tmp_path: Path) -> None:
    torch.save({f"{i}": torch.rand(100_000) for i in range(10)}, tmp_path / "a.pt")
    with Server(folder(tmp_path)) as server:
        assert ptsave.verify(f"{server.url}/a.pt", checks="bytes,finite").is_yes
    assert server.num_bytes_out < 1.05 * (tmp_path / "a.pt").stat().st_size
