"""Every way that a refusal of `convert` names works, whatever kind of tensor a format cannot hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ptsave
from ptsave.cli.main import run
from ptsave.formats import open_checkpoint
from ptsave.formats.writers import BY_NAME
from tests.support import some


class Tagged(torch.Tensor):
    """A subclass with an attribute, which a pickle keeps beside the plain tensor."""


def tagged() -> torch.Tensor:
    tensor = torch.randn(4, 4).as_subclass(Tagged)
    tensor.tag = torch.ones(2)  # type: ignore[attr-defined]
    return tensor


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)


def nested(layout: torch.layout = torch.strided) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=layout)


def quantized_module() -> nn.Module:
    model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-any-return]


def weights() -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.randn(4, 4), "fc.bias": torch.randn(4)}


def channels() -> torch.Tensor:
    return torch.quantize_per_channel(
        torch.randn(4, 4), torch.full((4,), 0.1), torch.zeros(4).long(), 0, torch.qint8
    )


HELD: dict[str, Callable[[], Any]] = {
    "quantized": lambda: weights() | {"q": quantized()},
    "quantized by channel": lambda: weights() | {"q": channels()},
    "a quantized module": quantized_module,
    "its state dict": lambda: quantized_module().state_dict(),
    "sparse": lambda: weights() | {"s": torch.eye(4).to_sparse()},
    "sparse rows": lambda: weights() | {"s": torch.eye(4).to_sparse_csr()},
    "a sparse parameter": lambda: weights() | {"s": nn.Parameter(torch.eye(4).to_sparse())},
    "conjugate": lambda: weights() | {"c": torch.randn(3, dtype=torch.complex64).conj()},
    "negative": lambda: weights() | {"c": torch.randn(3, dtype=torch.complex64).conj().imag},
    "nested": lambda: weights() | {"n": nested()},
    "jagged": lambda: weights() | {"n": nested(torch.jagged)},
    "without values": lambda: weights() | {"m": torch.empty(3, 4, device="meta")},
    "a subclass": lambda: weights() | {"t": tagged()},
    "all of them": lambda: {
        **weights(),
        "q": quantized(),
        "s": torch.eye(4).to_sparse(),
        "n": nested(),
        "m": torch.empty(2, device="meta"),
        "t": tagged(),
        "epoch": 3,
    },
    "a training": lambda: {"model": weights(), "optimizer": {"s": torch.eye(4).to_sparse()}, "epoch": 3},
    "a quantized model's training": lambda: {"model": weights() | {"q": quantized()}, "epoch": 3},
    "numbers": lambda: {"model": weights(), "epoch": 3, "device": torch.device("cpu")},
}

WAYS = re.compile(r"--dense and --extras drop|--dense|--extras \w+|--select model")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", BY_NAME)
@pytest.mark.parametrize("kind", some(HELD))
def test_every_way_that_a_hint_names_works(
    kind: str, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(HELD[kind](), tmp_path / "a.pt")
    to = ["convert", str(tmp_path / "a.pt"), str(tmp_path / "b"), "--format", format, "--overwrite"]
    for flags in ([], ["--dense"]):
        code = run([*to, *flags])
        message = capsys.readouterr().err
        if code == 0:
            continue
        assert code == 4
        ways = WAYS.findall(message.split("hint: ")[1])
        assert ways, message
        for way in ways:
            assert run([*to, *flags, *way.replace(" and", "").split()]) == 0, (message, way)
            with open_checkpoint(tmp_path / "b") as found:
                assert found.tensors
            capsys.readouterr()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["safetensors", "npz", "dcp"])
def test_the_parts_of_a_tensor_that_is_left_out_go_with_it(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(HELD["all of them"](), tmp_path / "a.pt")
    to = ["convert", str(tmp_path / "a.pt"), str(tmp_path / "b"), "--format", format, "--extras", "drop"]
    capsys.readouterr()
    assert run(to) == 0
    with ptsave.open(tmp_path / "b") as found:
        assert set(found) == {"fc.weight", "fc.bias", "t"}
    assert "tensors are left out, as parts of tensors that" in capsys.readouterr().err


class Packed:
    """Weights as a library packs them, in an object of a class that ptsave does not know."""

    def __init__(self) -> None:
        self.data = torch.ones(3, dtype=torch.int8)
        self.scale = torch.tensor(0.5)


@pytest.mark.parametrize("format", ["safetensors", "npz", "pt", "dcp"])
def test_tensors_in_an_object_that_goes_stay_in_every_format(format: str, tmp_path: Path) -> None:
    torch.save({"fc.weight": Packed(), "fc.bias": torch.ones(3)}, tmp_path / "a.pt")
    ptsave.convert(tmp_path / "a.pt", tmp_path / "b", format=format, extras="drop")
    with ptsave.open(tmp_path / "b") as found:
        assert set(found) == {"fc.weight.data", "fc.weight.scale", "fc.bias"}


@pytest.mark.parametrize(
    ("format", "flags", "why"),
    [("npz", [], "npz has no place for one"), ("safetensors", ["--no-record"], "it is left out")],
)
def test_extras_are_not_kept_where_there_is_no_record(
    format: str, flags: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(HELD["numbers"](), tmp_path / "a.pt")
    to = ["convert", str(tmp_path / "a.pt"), str(tmp_path / "b"), "--format", format, "--extras", "keep"]
    assert run([*to, *flags, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["what"] == f"--extras keep would not be used: it keeps values in the record, and {why}"
    assert run([*to[:-2], *flags]) == 4
    hint = capsys.readouterr().err.split("hint: ")[1].strip()
    assert hint == "take the weights alone with --select model, or choose --extras drop"
