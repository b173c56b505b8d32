"""Every pattern of every dtype decodes to what torch itself says it is."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from ptsave.core.dtypes import BY_NAME, TABLE
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage
from ptsave.core.values.numbers import (
    MAX_REPEATED_BYTES,
    blocks,
    decode,
    raw_blocks,
    scalar,
    small_float_values,
)
from ptsave.errors import LimitError

DECODED = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
DECODED += ["float8_e8m0fnu", "int16", "int8", "uint16", "uint8"]
WIDE = ["float64", "float32", "complex32", "complex64", "complex128", "int64", "int32", "uint64", "uint32"]


def entry_of(data: bytes, dtype: str, shape: tuple[int, ...], strides=None, offset=0) -> TensorEntry:
    storage = MemoryStorage(memoryview(data))
    return TensorEntry("t", BY_NAME[dtype], shape, strides or contiguous_strides(shape), storage, offset)


def all_of(entry: TensorEntry, max_bytes: int) -> np.ndarray:
    return np.concatenate([block.copy() for block in blocks(entry, max_bytes)])


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def assert_same_floats(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit by bit, but for the payload of NaNs."""
    assert found.dtype == expected.dtype
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(bits(found)[~nan], bits(expected)[~nan])


@pytest.mark.parametrize("name", DECODED)
def test_every_pattern_of_up_to_16_bits_is_decoded_as_torch_does(name: str) -> None:
    itemsize = BY_NAME[name].itemsize
    patterns = np.arange(256**itemsize, dtype=f"<u{itemsize}")
    tensor = torch.from_numpy(patterns.copy()).view(getattr(torch, name))
    found = all_of(entry_of(patterns.tobytes(), name, patterns.shape), 1000)
    if tensor.dtype.is_floating_point:
        assert_same_floats(found.astype(np.float32), tensor.float().numpy())
    else:
        assert np.array_equal(found, tensor.numpy())


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_nan_payloads_and_signs_survive(name: str) -> None:
    patterns = np.arange(65536, dtype="<u2")
    found = decode(memoryview(patterns.tobytes()), BY_NAME[name])
    shifted = bits(found) if name == "float16" else bits(found) >> 16
    assert np.array_equal(shifted, patterns)


def test_float4_spells_two_values_a_byte_the_low_half_first() -> None:
    # Source: OCP Microscaling Formats 1.0, table 5 (E2M1).
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert small_float_values("float4_e2m1fn_x2") == magnitudes + [-m for m in magnitudes]
    found = decode(memoryview(bytes(range(256))), BY_NAME["float4_e2m1fn_x2"])
    table = magnitudes + [-m for m in magnitudes]
    expected = [table[nibble] for byte in range(256) for nibble in (byte & 15, byte >> 4)]
    assert found.tolist() == expected
    assert math.copysign(1, found[16]) == -1.0


def test_float4_agrees_with_the_order_that_torchs_onnx_exporter_unpacks() -> None:
    from torch.onnx._internal.exporter._type_casting import unpack_float4x2_as_uint8

    packed = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    codes = unpack_float4x2_as_uint8(packed.view(torch.float4_e2m1fn_x2)).reshape(-1)
    table = np.array(small_float_values("float4_e2m1fn_x2"), np.float32)
    found = decode(memoryview(packed.numpy().tobytes()), BY_NAME["float4_e2m1fn_x2"])
    assert np.array_equal(bits(found), bits(table[codes]))


@pytest.mark.parametrize("name", WIDE)
def test_wide_dtypes_are_decoded_as_torch_does(name: str) -> None:
    itemsize = BY_NAME[name].itemsize
    data = np.random.default_rng(0).integers(0, 256, 4096 * itemsize, dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that complex32 is experimental
        tensor = torch.from_numpy(data.copy()).view(getattr(torch, name))
        expected = tensor.to(torch.complex64).numpy() if name == "complex32" else tensor.numpy()
    found = all_of(entry_of(data.tobytes(), name, (4096,)), 999)
    assert found.dtype == expected.dtype
    if name.startswith(("float", "complex")):
        real = f"f{found.itemsize // 2}" if name.startswith("complex") else f"f{found.itemsize}"
        assert_same_floats(found.view(real), expected.view(real))
    else:
        assert np.array_equal(found, expected)


def test_any_byte_but_zero_is_true() -> None:
    found = decode(memoryview(bytes([0, 1, 2, 255])), BY_NAME["bool"])
    assert found.dtype == np.bool_
    assert found.tolist() == [False, True, True, True]


@pytest.mark.parametrize("dtype", [d for d in TABLE if d.kind in ("quantized", "bits")], ids=repr)
def test_quantized_and_bits_are_their_stored_integers(dtype) -> None:
    data = np.arange(256, dtype=np.uint8)
    found = decode(memoryview(data.tobytes()), dtype)
    assert found.itemsize == dtype.itemsize
    assert found.dtype.kind == ("i" if dtype.name in ("qint8", "qint32") else "u")
    assert found.tobytes() == data.tobytes()


@pytest.mark.parametrize("dtype", TABLE, ids=repr)
def test_every_dtype_of_the_table_decodes(dtype) -> None:
    found = decode(memoryview(bytes(range(16)) * dtype.itemsize), dtype)
    assert found.ndim == 1
    assert len(found) in (16, 32)


def test_blocks_are_whole_elements_of_at_most_max_bytes() -> None:
    entry = entry_of(np.arange(10, dtype="<f8").tobytes(), "float64", (2, 5))
    assert [len(block) for block in raw_blocks(entry, 20)] == [16, 16, 16, 16, 16]
    assert [len(block) for block in raw_blocks(entry, 1)] == [8] * 10
    assert all_of(entry, 30).tolist() == list(range(10))


def test_an_offset_starts_where_the_view_does() -> None:
    entry = entry_of(np.arange(10, dtype="<i4").tobytes(), "int32", (3,), offset=4)
    assert [block.tolist() for block in blocks(entry)] == [[4, 5, 6]]


def test_no_elements_give_no_blocks() -> None:
    assert list(blocks(entry_of(b"", "float32", (3, 0, 2)))) == []


def test_strided_views_are_in_row_major_order() -> None:
    tensor = torch.arange(3 * 4 * 5, dtype=torch.int32).reshape(3, 4, 5)
    for view in (tensor.permute(2, 0, 1), tensor[:, ::2, 1:], tensor[1].t(), tensor[:, :1].expand(3, 7, 5)):
        entry = entry_of(
            tensor.numpy().tobytes(), "int32", tuple(view.shape), view.stride(), view.storage_offset()
        )
        for max_bytes in (4, 24, 1000):
            found = all_of(entry, max_bytes)
            assert np.array_equal(found, view.reshape(-1).numpy())


def test_a_small_storage_repeated_without_end_is_refused() -> None:
    entry = entry_of(bytes(4), "float32", (1 << 40,), strides=(0,))
    with pytest.raises(LimitError, match=f"repeated_bytes = {MAX_REPEATED_BYTES}"):
        next(raw_blocks(entry))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("float32", 7.5),
        ("bfloat16", 3.0),
        ("int64", -(2**60)),
        ("bool", True),
        ("float16", 0.5),
        ("uint8", 255),
    ],
)
def test_scalar_reads_one_element(name: str, value: object) -> None:
    data = torch.tensor([0, value], dtype=getattr(torch, name)).view(torch.uint8).numpy().tobytes()
    assert scalar(entry_of(data, name, (), offset=1)) == value
    assert scalar(entry_of(data, name, (1, 1), offset=1)) == value
    assert scalar(entry_of(data, name, (2,))) is None


def test_scalar_of_a_dtype_without_real_values_is_none() -> None:
    assert scalar(entry_of(bytes(8), "complex64", ())) is None


def test_scalar_needs_no_numpy() -> None:
    code = "import sys, ptsave.core.values.numbers; assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
