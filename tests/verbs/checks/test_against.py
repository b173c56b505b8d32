"""`verify --against`: all that two files hold is compared, or named and failed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ptsave.cli.main import run
from ptsave.formats import open_checkpoint
from ptsave.verbs.diff import TensorDiff
from ptsave.verbs.stats import stats

W = {"w": torch.arange(6.0).view(2, 3)}
X = {"v": torch.ones(2, 3)}


@pytest.fixture
def verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run_verify(a: Any, b: Any, *flags: str) -> tuple[int, set[tuple[str, str]]]:
        for name, tree in (("a", a), ("b", b)):
            if not (tmp_path / f"{name}.pt").exists() or tree is not None:
                torch.save(tree, tmp_path / f"{name}.pt")
        one, other = str(tmp_path / "a.pt"), str(tmp_path / "b.pt")
        flags = ("--against", other, "--checks", "against", "--json", *flags)
        code = run(["verify", one, *flags])
        found = json.loads(capsys.readouterr().out)["findings"]
        return code, {(f["level"], f["where"]) for f in found}

    return run_verify


def test_what_lies_beside_the_models_is_compared(verdict: Any) -> None:
    code, found = verdict({"model": W, "other": X}, {"net": W, "more": X})
    assert (code, found) == (1, {("fail", "other.v"), ("fail", "more.v")})
    code, found = verdict({"model": W, "other": X}, {"net": W, "other": {"v": torch.zeros(2, 3)}})
    assert (code, found) == (1, {("fail", "other.v")})
    code, found = verdict({"model": W, "other": X}, {"net": W, "other": X})
    assert (code, found) == (0, {("ok", "")})


def test_a_chosen_model_is_compared_and_the_rest_is_named(verdict: Any) -> None:
    code, found = verdict({"model": W, "other": X}, W, "--select", "model")
    assert (code, found) == (0, {("ok", ""), ("skipped", "")})
    code, found = verdict({"model": W, "other": W}, {"model": X, "other": W}, "--select", "model")
    assert code == 1


def quantized(scale: float = 0.5, zero_point: int = 3) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        integers = torch.arange(6, dtype=torch.int8)
        return torch._make_per_tensor_quantized_tensor(integers, scale, zero_point)


def sparse(size: int) -> torch.Tensor:
    return torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (size,), check_invariants=True)


SPECIAL = {
    "scale": (quantized(), quantized(scale=0.25)),
    "zero point": (quantized(), quantized(zero_point=4)),
    "sparse size": (sparse(4), sparse(5)),
    "array": (np.arange(4), np.arange(4) + 1),
    "long array": (np.zeros(100_000), np.ones(100_000)),
    "extra state": (W["w"], W["w"]),
}


@pytest.mark.parametrize("case", SPECIAL)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_what_belongs_to_a_tensor_is_compared(verdict: Any, case: str, wrapper: str) -> None:
    one, other = SPECIAL[case]
    extra = {"n._extra_state": {"n": 1}}
    a = {**W, "q": one, **extra}
    b = {f"{wrapper}{name}": value for name, value in {**W, "q": other, **extra}.items()}
    if case == "extra state":
        b[f"{wrapper}n._extra_state"] = {"n": 2}
    code, found = verdict(a, b)
    assert code == 1
    assert all(where.startswith(("q", "n")) for level, where in found if level == "fail")
    assert verdict(a, {f"{wrapper}{name}": value for name, value in a.items()})[0] == 0


def test_a_device_is_a_setting(verdict: Any) -> None:
    """And no part of a tensor, whose absence would be a no."""
    code, found = verdict({"model": W, "config": {"device": torch.device("cpu")}}, {"model": W})
    assert code == 0
    assert ("warn", "") in found


def test_numbers_of_a_training_are_named(verdict: Any) -> None:
    code, found = verdict({"model": W, "epoch": 3}, {"model": W, "epoch": 4})
    assert (code, found) == (0, {("ok", ""), ("warn", "")})


Z = torch.tensor([1 + 2j, -3 + 0j, 4 - 5j], dtype=torch.complex64)
VIEWS = {
    "conj": (Z.conj(), Z),
    "negative": (Z.conj().imag, Z.imag),
    "negative integers": (torch._neg_view(torch.tensor([1, -5])), torch.tensor([1, -5])),
    "both": (torch._neg_view(Z.conj()), Z),
    "halves": (torch._neg_view(torch.ones(3, dtype=torch.bfloat16)), torch.ones(3, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_view_is_its_values(verdict: Any, case: str, tmp_path: Path) -> None:
    view, bare = VIEWS[case]
    assert verdict({"z": view}, {"z": bare})[0] == 1
    assert verdict({"z": view}, {"z": view.resolve_conj().resolve_neg().clone()})[0] == 0
    if not view.is_complex():
        torch.save({"z": view, "bare": bare}, tmp_path / "v.pt")
        with open_checkpoint(tmp_path / "v.pt") as checkpoint:
            z, plain = stats(checkpoint)
        assert (z.min, z.max, z.mean) == (-plain.max, -plain.min, -plain.mean)


def test_safetensors_beside_a_training(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": W["w"]}}, "param_groups": []}
    torch.save({"model": W, "optimizer": optimizer}, tmp_path / "t.pt")
    save_file(W, tmp_path / "m.safetensors")
    flags = ["--against", str(tmp_path / "m.safetensors"), "--checks", "against"]
    assert run(["verify", str(tmp_path / "t.pt"), *flags]) == 1
    assert run(["verify", str(tmp_path / "t.pt"), *flags, "--select", "model"]) == 0


def test_two_empty_files_are_compared(verdict: Any) -> None:
    assert verdict({}, {}) == (0, {("ok", "")})
    assert verdict({}, W)[0] == 1


def test_no_close_tensor_is_looked_for_among_the_others(
    verdict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand of them would take minutes."""

    def compare(one: TensorDiff, other: object) -> bool:
        raise AssertionError("compared")

    monkeypatch.setattr(TensorDiff, "__eq__", compare)
    ones = {f"w{i}": torch.ones(1) for i in range(3)}
    code, found = verdict(ones, {name: one + 1e-7 for name, one in ones.items()}, "--close")
    assert (code, found) == (0, {("ok", "")})
