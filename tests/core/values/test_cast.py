"""Casts checked against torch's, bit by bit."""

from __future__ import annotations

import pytest
import torch

from ptsave.core.dtypes import BY_NAME
from ptsave.core.values.cast import CASTABLE, CastStorage, can_cast, cast
from tests.formats.write_cases import assert_same, checkpoint_of, random_tensor

SOURCES = {
    "float16": torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16),
    "bfloat16": torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16),
    "float32": random_tensor(70_001, torch.float32),
    "float64": random_tensor(70_001, torch.float64),
    "ordinary": torch.randn(70_001, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "subnormal": (torch.arange(70_001, dtype=torch.int32) * 29).view(torch.float32),
    **{
        name: torch.arange(256, dtype=torch.int32).to(torch.uint8).view(getattr(torch, name))
        for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    },
}


def cast_by_us(tensor: torch.Tensor, name: str, block: int) -> tuple[torch.Tensor, int]:
    """`tensor` cast in reads of `block` bytes, and how many elements overflowed."""
    (entry,) = checkpoint_of({"x": tensor}).tensors.values()
    made = cast(entry, BY_NAME[name])
    assert isinstance(made.storage, CastStorage)
    buffer = bytearray(made.num_bytes)
    for start in range(0, len(buffer), block):
        made.storage.read_into(start, memoryview(buffer)[start : start + block])
    return torch.frombuffer(buffer, dtype=getattr(torch, name)), made.storage.num_overflowed


@pytest.mark.parametrize("target", CASTABLE)
@pytest.mark.parametrize("source", SOURCES)
def test_as_torch_casts(source: str, target: str) -> None:
    tensor = SOURCES[source]
    expected = tensor.to(getattr(torch, target))
    found, num_overflowed = cast_by_us(tensor, target, 65_536)
    nan = torch.isnan(expected.double())
    assert torch.equal(torch.isnan(found.double()), nan)
    assert_same(found[~nan], expected[~nan])
    if not source.startswith("float8") and target not in (
        "bfloat16",
        str(tensor.dtype)[6:],
    ):  # torch's own NaNs of these vary
        assert_same(found, expected)
    assert num_overflowed == int((expected.double().isinf() & tensor.double().isfinite()).sum())


def test_reads_that_begin_and_end_inside_elements() -> None:
    tensor = SOURCES["float64"][:1000]
    whole, _ = cast_by_us(tensor, "float32", 10**6)
    in_pieces, _ = cast_by_us(tensor, "float32", 7)
    assert_same(in_pieces, whole)


def test_a_strided_view_is_laid_out() -> None:
    tensor = torch.randn(30, 40).t()[::3]
    found, _ = cast_by_us(tensor, "bfloat16", 64)
    assert_same(found.view(tensor.shape), tensor.bfloat16())


@pytest.mark.parametrize("name", ["int64", "bool", "complex64", "uint8", "float4_e2m1fn_x2"])
def test_only_floating_point_is_cast(name: str) -> None:
    assert not can_cast(BY_NAME[name])
