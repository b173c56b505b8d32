"""Strided views, gathered in windows, checked against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptsave.core.nodes import TensorEntry
from ptsave.core.values import gather
from ptsave.core.values.gather import GatheredStorage, contiguous
from ptsave.storage.local.file import LocalFile
from ptsave.storage.windows import FileStorage
from tests.formats.write_cases import bits, checkpoint_of, random_tensor, views
from tests.support import examples


def read(entry: TensorEntry, block: int) -> bytes:
    storage, offset = contiguous(entry)
    out = bytearray(entry.num_bytes)
    for start in range(0, len(out), block):
        storage.read_into(offset + start, memoryview(out)[start : start + block])
    return bytes(out)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "WINDOW_BYTES", 48)
    monkeypatch.setattr(gather, "RUN_BYTES", 64)
    monkeypatch.setattr(gather, "GAP_BYTES", 8)


@given(
    data=st.data(),
    dtype=st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]),
    block=st.integers(1, 90),
    in_file=st.booleans(),
)
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("small_windows")
def test_gathered_bytes_are_those_of_contiguous(
    tmp_path: Path, data: st.DataObject, dtype: torch.dtype, block: int, in_file: bool
) -> None:
    base = random_tensor(40, dtype)
    tensor = data.draw(views(base))
    entry = checkpoint_of({"t": tensor}).tensors["t"]
    if in_file:
        (tmp_path / "raw").write_bytes(b"head" + bits(base))
        with LocalFile(tmp_path / "raw") as file:
            storage = FileStorage(file, 4, 40 * dtype.itemsize)
            entry = TensorEntry("t", entry.dtype, entry.shape, entry.strides, storage, entry.offset)
            assert read(entry, block) == bits(tensor)
    else:
        assert read(entry, block) == bits(tensor)


@pytest.mark.usefixtures("small_windows")
def test_windows_may_be_read_in_any_order() -> None:
    tensor = torch.arange(300, dtype=torch.int32).reshape(20, 15).t()
    storage = GatheredStorage(checkpoint_of({"t": tensor}).tensors["t"])
    expected = bits(tensor)
    for start in (600, 0, 1100, 4, 596):
        out = bytearray(100)
        storage.read_into(start, memoryview(out))
        assert bytes(out) == expected[start : start + 100]


def test_a_large_transposed_matrix_is_gathered_in_bounded_memory(tmp_path: Path) -> None:
    rows, columns = 3000, 2500
    matrix = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns)
    (tmp_path / "raw").write_bytes(bits(matrix))
    entry = checkpoint_of({"t": matrix.t()}).tensors["t"]
    with LocalFile(tmp_path / "raw") as file:
        storage = FileStorage(file, 0, rows * columns * 4)
        entry = TensorEntry("t", entry.dtype, entry.shape, entry.strides, storage, 0)
        assert read(entry, 256 * 1024) == bits(matrix.t())
