"""Statistics are torch's own, in bounded memory; NaN and infinity are found wherever they hide."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME, TABLE
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import BLOCK_BYTES, MemoryStorage, Storage
from ptsave.verbs.stats import TensorStats, non_finite, stats
from tests.support import some


def entry_of(tensor: torch.Tensor) -> TensorEntry:
    flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    storage = MemoryStorage(memoryview(flat.numpy()), tensor)
    dtype = BY_NAME[str(tensor.dtype).removeprefix("torch.")]
    return TensorEntry("", dtype, tuple(tensor.shape), tensor.stride(), storage, tensor.storage_offset())


def checkpoint_of(**tensors: torch.Tensor) -> Checkpoint:
    return Checkpoint("test", Path("test"), {name: entry_of(tensor) for name, tensor in tensors.items()})


def stats_of(tensor: torch.Tensor) -> TensorStats:
    (found,) = stats(checkpoint_of(t=tensor))
    return found


def assert_as_torch(found: TensorStats, values: torch.Tensor) -> None:
    wide = values.double()
    assert found.num_elements == values.numel()
    assert found.min == values.min().item()
    assert found.max == values.max().item()
    assert found.mean == pytest.approx(
        wide.mean().item(), rel=1e-12, abs=1e-12 * (1 + wide.abs().max().item())
    )
    assert found.std == pytest.approx(wide.std().item(), rel=1e-12, abs=1e-12)
    assert found.norm == pytest.approx(wide.norm().item(), rel=1e-12)
    assert found.zeros == (values == 0).sum().item()
    assert (found.nans, found.infs) == (0, 0)


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [1000, BLOCK_BYTES])
def test_floats(dtype: torch.dtype, n: int) -> None:
    tensor = (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 3 + 1).to(dtype)
    tensor[::7] = 0
    assert_as_torch(stats_of(tensor), tensor.double() if dtype != torch.float64 else tensor)


@pytest.mark.parametrize("dtype", INTS, ids=str)
def test_integers_keep_an_exact_minimum_and_maximum(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    tensor = torch.tensor([info.min, info.max, 0, 0, 1, 2, 3], dtype=dtype)
    found = stats_of(tensor)
    assert_as_torch(found, tensor)
    assert isinstance(found.min, int)
    assert isinstance(found.max, int)


def test_uint64_and_bool() -> None:
    found = stats_of(torch.tensor([2**64 - 1, 0], dtype=torch.uint64))
    assert (found.min, found.max, found.zeros, found.mean) == (0, 2**64 - 1, 1, 2.0**63)
    found = stats_of(torch.tensor([True, False, True, True]))
    assert (found.min, found.max, found.zeros, found.mean) == (0, 1, 1, 0.75)
    assert found.std == pytest.approx(0.5)


def test_small_floats() -> None:
    bits = torch.arange(0x70, dtype=torch.uint8)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu):
        tensor = bits.view(dtype)
        assert_as_torch(stats_of(tensor), tensor.double())
    found = stats_of(torch.tensor([0x71], dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    assert (found.num_elements, found.min, found.max) == (2, 0.5, 6.0)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
def test_complex_numbers_count_by_magnitude(dtype: torch.dtype) -> None:
    found = stats_of(torch.tensor([3 + 4j, 0, 6 + 8j]).to(dtype))
    assert (found.min, found.max, found.mean, found.std) == (0.0, 10.0, 5.0, 5.0)
    assert (found.norm, found.zeros) == (pytest.approx(math.sqrt(125)), 1)
    nan, inf = math.nan, math.inf
    parts = [complex(nan, 1), complex(inf, nan), complex(1, -inf), 2]
    found = stats_of(torch.tensor(parts, dtype=torch.complex64).to(dtype))
    assert (found.nans, found.infs, found.max, found.min) == (2, 1, 2.0, 2.0)


def test_statistics_are_of_the_finite_values() -> None:
    found = stats_of(torch.tensor([1.0, math.nan, 3.0, math.inf, -math.inf, 0.0, -math.inf]))
    assert (found.nans, found.infs, found.zeros, found.num_elements) == (1, 3, 1, 7)
    assert (found.min, found.max, found.mean) == (0.0, 3.0, pytest.approx(4 / 3))
    assert found.std == pytest.approx(torch.tensor([1.0, 3.0, 0.0]).std().item())


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, math.nan]])
def test_without_finite_values_there_are_no_statistics(values: list[float]) -> None:
    found = stats_of(torch.tensor(values))
    assert (found.min, found.max, found.mean, found.std, found.norm) == (None,) * 5
    assert found.nans + found.infs == found.num_elements == len(values)


def test_one_value_has_no_deviation() -> None:
    found = stats_of(torch.tensor(2.5))
    assert (found.min, found.mean, found.std, found.norm) == (2.5, 2.5, None, 2.5)


def test_a_constant_has_none_either() -> None:
    found = stats_of(torch.full((100_000,), 0.1))
    assert found.std == 0.0
    assert found.mean == found.min == found.max


@pytest.mark.parametrize("scale", [1e300, 1.7e308, 1e-160, 5e-324])
def test_extreme_values_neither_overflow_nor_vanish(scale: float) -> None:
    n = BLOCK_BYTES // 8
    tensor = torch.tensor([scale, -scale, 0.0], dtype=torch.float64).repeat(n)
    found = stats_of(tensor)
    assert found.mean == pytest.approx(0.0, abs=scale * 1e-10)
    assert found.std == pytest.approx(scale * math.sqrt(2 / 3), rel=1e-4, abs=5e-324)


def test_a_large_mean_does_not_drown_the_deviation() -> None:
    noise = torch.randn(3 * BLOCK_BYTES // 8, generator=torch.Generator().manual_seed(1)).double()
    found = stats_of(noise + 1e8)
    assert found.std == pytest.approx((noise + 1e8).std().item(), rel=1e-9)


def test_strided_views() -> None:
    tensor = torch.randn(31, 47, 5, generator=torch.Generator().manual_seed(2))
    for view in (tensor.permute(2, 0, 1), tensor[:, ::2, 1:], tensor[3].t(), tensor[:, :1].expand(31, 9, 5)):
        assert_as_torch(stats_of(view), view.double())


def test_an_expanded_tensor_costs_no_more_than_its_storage() -> None:
    found = stats_of(torch.tensor([1.0, 0.0, 3.0]).reshape(3, 1).expand(3, 1 << 50))
    assert (found.num_elements, found.zeros, found.max) == (3 << 50, 1 << 50, 3.0)
    bad = torch.tensor(math.nan).expand(1 << 50)
    assert list(non_finite(checkpoint_of(t=bad))) == [("t", 1 << 50, 0)]


def test_names_choose_and_order_and_progress_adds_up() -> None:
    base = torch.arange(6.0)
    checkpoint = checkpoint_of(a=base, b=torch.ones(3, dtype=torch.int8), c=base.reshape(2, 3).t())
    done: list[int] = []
    assert [s.name for s in stats(checkpoint, ["c", "a"], done.append)] == ["c", "a"]
    assert sum(done) == 48
    done.clear()
    assert len(list(non_finite(checkpoint, progress=done.append))) == 2
    assert sum(done) == 51


class CountingStorage(Storage):
    """Bytes in memory that count how much of them was read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.num_bytes, self.was_read = data, len(data), 0

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        self.was_read += len(buffer)
        buffer[:] = self.data[offset_bytes : offset_bytes + len(buffer)]


def test_tied_tensors_are_read_once() -> None:
    storage = CountingStorage(np.ones(4, "<f4").tobytes())
    entry = TensorEntry("", BY_NAME["float32"], (4,), (1,), storage, 0)
    checkpoint = Checkpoint("test", Path("test"), {"a": entry, "b": entry})
    assert [(s.name, s.max) for s in stats(checkpoint)] == [("a", 1.0), ("b", 1.0)]
    assert storage.was_read == 16
    assert list(non_finite(checkpoint)) == [("a", 0, 0), ("b", 0, 0)]
    assert storage.was_read == 32


@pytest.mark.parametrize("dtype", some(d for d in TABLE if d.is_float), ids=repr)
def test_every_bad_pattern_is_found_alone_and_no_good_one_is(dtype) -> None:
    """Each pattern stands alone, last, in a tensor of zeros (ones for e8m0, which has no zero)."""
    complex_parts = 2 if dtype.kind == "complex" else 1
    width = dtype.itemsize // complex_parts
    patterns = np.arange(256 ** min(width, 2), dtype=f"<u{min(width, 2)}")
    if width > 2:
        patterns = patterns[::97].astype(f"<u{width}") << np.uint64(8 * (width - 2))
        extra = np.array([math.nan, -math.nan, math.inf, -math.inf, 5e-324, 1.7e308], "<f8")
        with np.errstate(over="ignore"):
            patterns = np.concatenate([patterns, extra.astype(f"<f{width}").view(patterns.dtype)])
    if len(patterns) > 256:
        patterns = np.concatenate([patterns[::31], patterns[0x7BF0:0x7C10], patterns[0xFF7E:0xFF83]])
    for pattern in patterns:
        words = np.full(3 * complex_parts, 0x3F if dtype.name == "float8_e8m0fnu" else 0, patterns.dtype)
        words[-1] = pattern
        data = words.tobytes()
        entry = TensorEntry("", dtype, (3,), contiguous_strides((3,)), MemoryStorage(memoryview(data)), 0)
        checkpoint = Checkpoint("test", Path("test"), {"t": entry})
        (found,) = non_finite(checkpoint)
        (expected,) = stats(checkpoint)
        assert found == ("t", expected.nans, expected.infs), hex(pattern)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e5m2, torch.complex64], ids=str)
def test_non_finite_counts_across_blocks(dtype: torch.dtype) -> None:
    tensor = torch.zeros(BLOCK_BYTES + 5)
    tensor[[0, BLOCK_BYTES // 2, BLOCK_BYTES + 4]] = torch.tensor([math.nan, math.inf, -math.inf])
    assert list(non_finite(checkpoint_of(t=tensor.to(dtype), i=torch.ones(3).long()))) == [("t", 1, 2)]


def test_memory_does_not_grow_with_the_tensor() -> None:
    storage = CountingStorage(bytes(64 * BLOCK_BYTES))
    entry = TensorEntry("", BY_NAME["bfloat16"], (32, BLOCK_BYTES), (BLOCK_BYTES, 1), storage, 0)
    checkpoint = Checkpoint("test", Path("test"), {"t": entry})
    list(stats(checkpoint))
    tracemalloc.start()
    list(stats(checkpoint))
    list(non_finite(checkpoint))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * BLOCK_BYTES
