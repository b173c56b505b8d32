"""Sparse and quantized tensors as strided ones: torch's `to_dense()` and `dequantize()`, bit by bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsave.cli.main import run
from ptsave.core.dtypes import BY_NAME
from ptsave.core.finding import Kind
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.core.values.gather import contiguous
from ptsave.errors import LimitError, LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.kinds import runs, scattered
from ptsave.formats.kinds.dense import Densifier, can_be_dense
from ptsave.formats.kinds.sparse import why_not_made
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.subject import Subject
from tests.support import examples, some

Make = Callable[[], torch.Tensor]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to do away with quantized tensors
        yield


def dense(tensor: Any, path: Path, step: int = 1 << 20) -> bytes:
    """The bytes of the strided tensor that ptsave makes of a saved one, read `step` at a time."""
    torch.save({"t": tensor}, path)
    with open_checkpoint(path) as checkpoint:
        entry = Densifier().dense(checkpoint.root["t"])
        assert entry.shape == tuple(tensor.shape)
        return read(entry, step)


def read(entry: TensorEntry, step: int) -> bytes:
    storage, offset = contiguous(entry)
    buffer = bytearray(entry.num_bytes)
    for start in range(0, len(buffer), step):
        storage.read_into(offset + start, memoryview(buffer)[start : start + step])
    return bytes(buffer)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(*shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else 100, shape).to(dtype)


SUMMED = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
LAYOUTS: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "coo": lambda d: torch.sparse_coo_tensor(
        torch.randint(0, 40, (2, 300)), numbers(d, 300), (40, 40)
    ).coalesce(),
    "coo, summed": lambda d: torch.sparse_coo_tensor(torch.randint(0, 9, (2, 300)), numbers(d, 300), (9, 9)),
    "coo, hybrid": lambda d: torch.sparse_coo_tensor(
        torch.randint(0, 9, (1, 50)), numbers(d, 50, 3, 2), (9, 3, 2)
    ),
    "coo, without dimensions": lambda d: numbers(d, 1)[0].to_sparse(),
    "coo, empty": lambda d: torch.sparse_coo_tensor(torch.zeros(2, 0).long(), numbers(d, 0), (3, 4)),
    "coo, of no elements": lambda d: torch.sparse_coo_tensor(
        torch.zeros(1, 0).long(), numbers(d, 0, 0), (3, 0)
    ),
    "csr": lambda d: numbers(d, 20, 30).to_sparse_csr(),
    "csr, batches": lambda d: torch.stack([numbers(d, 5, 6)] * 3).to_sparse_csr(),
    "csr, hybrid": lambda d: torch.ones(4, 5, 3).to(d).to_sparse_csr(dense_dim=1),
    "csr, 32 bits": lambda d: torch.sparse_csr_tensor(
        torch.tensor([0, 1, 1, 3]).int(), torch.tensor([2, 0, 1]).int(), numbers(d, 3), (3, 3)
    ),
    "csc": lambda d: numbers(d, 20, 30).to_sparse_csc(),
    "csc, batches": lambda d: torch.stack([numbers(d, 5, 6)] * 3).to_sparse_csc(),
    "bsr": lambda d: numbers(d, 12, 20).to_sparse_bsr((3, 4)),
    "bsr, batches": lambda d: torch.stack([numbers(d, 6, 6)] * 2).to_sparse_bsr((3, 2)),
    "bsc": lambda d: numbers(d, 12, 20).to_sparse_bsc((3, 4)),
    "bsc, batches": lambda d: torch.stack([numbers(d, 6, 6)] * 2).to_sparse_bsc((2, 3)),
}


@pytest.mark.parametrize("layout", some(LAYOUTS))
@pytest.mark.parametrize("is_small", [False, True])
def test_sparse(layout: str, is_small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_small:  # many windows, many pieces
        monkeypatch.setattr(scattered, "WINDOW_BYTES", 512)
        monkeypatch.setattr(scattered, "PIECE_RUNS", 31)
        monkeypatch.setattr(runs, "PIECE_POINTERS", 31)
    for dtype in SUMMED:
        torch.manual_seed(3)
        tensor = LAYOUTS[layout](dtype)
        for step in (1 << 20, 24):
            assert dense(tensor, tmp_path / "a.pt", step) == bytes_of(tensor.to_dense()), dtype


@pytest.mark.parametrize("layout", ["coo, hybrid", "bsr", "csr, hybrid"])
def test_long_runs(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scattered, "LONG_RUN_BYTES", 0)
    for window in (8, 64, 1 << 20):
        monkeypatch.setattr(scattered, "WINDOW_BYTES", window)
        for dtype in SUMMED:
            tensor = LAYOUTS[layout](dtype)
            assert dense(tensor, tmp_path / "a.pt") == bytes_of(tensor.to_dense()), dtype


UNSUMMED = (
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex32),
)


@pytest.mark.parametrize("dtype", UNSUMMED)
def test_dtypes_that_torch_does_not_make_dense(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.arange(1, 4).to(dtype)
    tensor = torch.sparse_coo_tensor(torch.tensor([[4, 0, 2]]), values, (5,))
    wanted = torch.zeros(5, dtype=torch.uint8).repeat_interleave(dtype.itemsize).view(dtype)
    wanted.view(torch.uint8).view(5, -1)[[4, 0, 2]] = values.view(torch.uint8).view(3, -1)
    assert dense(tensor, tmp_path / "a.pt") == bytes_of(wanted)
    if dtype.itemsize == 1:  # nobody can say what their sum is
        twice = torch.sparse_coo_tensor(torch.tensor([[4, 0, 4]]), values, (5,))
        with pytest.raises(LossyError, match="cannot be added"):
            dense(twice, tmp_path / "a.pt")


def test_numbers_that_are_none(tmp_path: Path) -> None:
    values = torch.tensor([0x7FA00001, 0x7F800000, -0x80000000, 0x7FC12345]).int().view(torch.float32)
    for tensor in (
        torch.sparse_coo_tensor(torch.tensor([[0, 3, 4, 6]]), values, (8,)),
        torch.sparse_coo_tensor(torch.tensor([[0, 3, 4, 6]]), values, (8,), is_coalesced=True),
        torch.sparse_csr_tensor(torch.tensor([0, 4]), torch.tensor([0, 3, 4, 6]), values, (1, 8)),
        torch.sparse_bsr_tensor(torch.tensor([0, 1]), torch.tensor([0]), values.view(1, 2, 2), (2, 2)),
    ):
        assert dense(tensor, tmp_path / "a.pt") == bytes_of(tensor.to_dense())


def test_strided_parts_and_waiting_bits(tmp_path: Path) -> None:
    indices, values = torch.randint(0, 5, (300, 2)).t(), torch.randn(300)
    at_once = torch.randperm(25)[:20]  # torch sums values that are not contiguous in an order of its own
    for tensor in (
        torch.sparse_coo_tensor(indices[:, ::2], values[:150], (5, 5)),
        torch.sparse_coo_tensor(torch.stack([at_once // 5, at_once % 5]), values[:40:2], (5, 5)),
        torch.sparse_coo_tensor(indices, torch.randn(300, dtype=torch.complex64).conj(), (5, 5)),
    ):
        assert dense(tensor, tmp_path / "a.pt") == bytes_of(tensor.to_dense())


@given(st.data())
@settings(max_examples=examples(50))
def test_any_coordinates(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    num_dims, num = data.draw(st.integers(0, len(size))), data.draw(st.integers(0, 12))
    rows = [
        data.draw(st.lists(st.integers(0, length - 1), min_size=num, max_size=num))
        for length in size[:num_dims]
    ]
    indices = torch.tensor(rows, dtype=torch.int64).reshape(num_dims, num)
    tensor = torch.sparse_coo_tensor(indices, torch.randn(num, *size[num_dims:]), size)
    path = tmp_path_factory.getbasetemp() / "coordinates.pt"
    assert dense(tensor, path) == bytes_of(tensor.to_dense())


# --- quantized ----------------------------------------------------------------------------------------

INTEGERS = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}


def integers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    whole = torch.iinfo(INTEGERS[dtype])
    return torch.randint(whole.min, whole.max + 1, shape).to(INTEGERS[dtype])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_quantized(dtype: torch.dtype, tmp_path: Path) -> None:
    for scale, zero_point in ((0.1, 3), (1e-40, 0), (3.3e10, 127), (0.037, 7)):
        made: Any = torch._make_per_tensor_quantized_tensor(integers(dtype, 21, 34), scale, zero_point)
        for tensor in (made, made.t(), made[3:5], made[:, ::3], made[:0], made[1, 2]):
            assert dense(tensor, tmp_path / "a.pt", 12) == bytes_of(tensor.dequantize())


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quantized_by_channel(dtype: torch.dtype, axis: int, tmp_path: Path) -> None:
    whole = integers(dtype, 3, 50, 7)
    scales = torch.rand(whole.shape[axis], dtype=torch.float64) + 0.01
    points = torch.randint(0, 9, scales.shape)
    tensor = torch._make_per_channel_quantized_tensor(whole, scales, points, axis)
    for step in (1 << 20, 20):
        assert dense(tensor, tmp_path / "a.pt", step) == bytes_of(tensor.dequantize())
    if dtype is not torch.qint32:
        points = torch.rand(scales.shape) * 5
        tensor = torch._make_per_channel_quantized_tensor(whole, scales.float(), points, axis)
        assert dense(tensor, tmp_path / "a.pt") == bytes_of(tensor.dequantize())


@pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2, torch.quint2x4])
@pytest.mark.parametrize("columns", [8, 7])
def test_rows_of_an_embedding(dtype: torch.dtype, columns: int, tmp_path: Path) -> None:
    scales, points = torch.rand(5) + 0.1, torch.rand(5) * 3
    tensor = torch.quantize_per_channel(torch.randn(5, columns), scales, points, 0, dtype)
    for step in (1 << 20, 8):
        assert dense(tensor, tmp_path / "a.pt", step) == bytes_of(tensor.dequantize())


# --- what is refused ----------------------------------------------------------------------------------


class Made:
    """Pickles as torch's own call with other parts."""

    def __init__(self, function: Any, args: Any) -> None:
        self.made = function, args

    def __reduce__(self) -> Any:
        return self.made


def sparse(layout: torch.layout, *parts: Any) -> Any:
    return Made(torch._utils._rebuild_sparse_tensor, (layout, parts))


ones, long = torch.ones, torch.tensor
DAMAGED = {
    "an index beyond": sparse(torch.sparse_coo, long([[0, 5]]), ones(2), torch.Size([5])),
    "an index below": sparse(torch.sparse_coo, long([[0, -1]]), ones(2), torch.Size([5])),
    "other numbers of both": sparse(torch.sparse_coo, long([[0, 1]]), ones(3), torch.Size([5])),
    "dense dimensions of another size": sparse(torch.sparse_coo, long([[0]]), ones(1, 3), torch.Size([5, 2])),
    "indices that are no integers": sparse(torch.sparse_coo, ones(1, 2), ones(2), torch.Size([5])),
    "indices of one dimension": sparse(torch.sparse_coo, long([0]), ones(1), torch.Size([5])),
    "not coalesced": sparse(torch.sparse_coo, long([[1, 1]]), ones(2), torch.Size([5]), True),
    "not in order": sparse(torch.sparse_coo, long([[1, 0]]), ones(2), torch.Size([5]), True),
    "csr, does not begin at 0": sparse(
        torch.sparse_csr, long([1, 1, 2]), long([0, 1]), ones(2), torch.Size([2, 2])
    ),
    "csr, falls": sparse(torch.sparse_csr, long([0, 2, 1, 2]), long([0, 1]), ones(2), torch.Size([3, 2])),
    "csr, ends early": sparse(torch.sparse_csr, long([0, 1, 1]), long([0, 1]), ones(2), torch.Size([2, 2])),
    "csr, twice": sparse(torch.sparse_csr, long([0, 2, 2]), long([1, 1]), ones(2), torch.Size([2, 2])),
    "csr, an index beyond": sparse(
        torch.sparse_csr, long([0, 1, 2]), long([0, 2]), ones(2), torch.Size([2, 2])
    ),
    "csr, of other rows": sparse(torch.sparse_csr, long([0, 2]), long([0, 1]), ones(2), torch.Size([2, 2])),
    "csr, of two dtypes": sparse(
        torch.sparse_csr, long([0, 1, 2]).int(), long([0, 1]), ones(2), torch.Size([2, 2])
    ),
    "csr, of one dimension": sparse(torch.sparse_csr, long([0, 1]), long([0]), ones(1), torch.Size([2])),
    "bsr, of blocks that do not fit": sparse(
        torch.sparse_bsr, long([0, 1]), long([0]), ones(1, 2, 2), torch.Size([3, 2])
    ),
    "bsr, of no rows": sparse(torch.sparse_bsr, long([0, 1]), long([0]), ones(1, 0, 2), torch.Size([2, 2])),
    "bsr, of rows": sparse(torch.sparse_bsr, long([0, 1]), long([0]), ones(1, 2), torch.Size([2, 2])),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(case: str, tmp_path: Path) -> None:
    torch.save({"t": DAMAGED[case]}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint, pytest.raises(LossyError, match="is damaged"):
        read(Densifier().dense(checkpoint.root["t"]), 1 << 20)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("case", DAMAGED)
def test_verify_says_of_damage_what_torch_does(case: str, is_zip: bool, tmp_path: Path) -> None:
    """torch looks at no index while it loads; the legacy loader converts those that are not int64 unread."""
    path = tmp_path / "a.pt"
    torch.save({"t": DAMAGED[case]}, path, _use_new_zipfile_serialization=is_zip)
    with open_checkpoint(path) as checkpoint:
        failed = [found.kind for found in bytes_(Subject(checkpoint)) if found.level == "fail"]
    is_made = case == "indices that are no integers"
    for weights_only in (True, False):
        try:
            torch.load(path, weights_only=weights_only)
        except RuntimeError:
            assert failed == [Kind.NOT_LOADED]
        else:
            assert failed == [Kind.NOT_LOADED] * is_made


def entry(tensor: torch.Tensor) -> TensorEntry:
    dtype = BY_NAME[str(tensor.dtype).removeprefix("torch.")]
    return TensorEntry("", dtype, tuple(tensor.shape), tensor.stride(), MemoryStorage(memoryview(b"")), 0)


@pytest.mark.parametrize("indices", [(), (0,), (1,), (2,), (0, 2), (1, 0), (1, 2), (2, 2), (3, 1), (1, 2, 2)])
def test_shapes_that_torch_makes_a_sparse_tensor_of(indices: tuple[int, ...]) -> None:
    for values in ((), (0,), (1,), (2,), (0, 2), (2, 0), (2, 3), (1, 2, 3)):
        for size in ((), (2,), (0,), (2, 3), (3, 2), (2, 0), (2, 2, 3)):
            parts = torch.zeros(indices, dtype=torch.int64), ones(values)
            try:
                torch.sparse_coo_tensor(*parts, size, check_invariants=False)
                is_made = True
            except (IndexError, RuntimeError):
                is_made = False
            state = {"indices": entry(parts[0]), "values": entry(parts[1]), "size": size}
            assert (not why_not_made(Opaque("torch.sparse_coo", state=state))) == is_made, (values, size)


def test_a_negative_size_makes_no_sparse_tensor(tmp_path: Path) -> None:
    damaged = sparse(torch.sparse_coo, long([[1]]), ones(1), torch.Size([-5]))
    torch.save({"t": damaged, "w": ones(2)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert not can_be_dense(checkpoint.root["t"])
    assert run(["convert", str(tmp_path / "a.pt"), str(tmp_path / "b.npz"), "--dense"]) == 4


@pytest.mark.parametrize("size", [2**28 + 1, 2**62, 2**63 - 1])
def test_a_size_costs_nothing(size: int, tmp_path: Path) -> None:
    torch.save({"t": sparse(torch.sparse_coo, long([[1]]), ones(1), torch.Size([size]))}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint, pytest.raises(LimitError, match="dense_bytes"):
        Densifier().dense(checkpoint.root["t"])


def test_sizes_add_up(tmp_path: Path) -> None:
    one = sparse(torch.sparse_coo, long([[1]]), ones(1), torch.Size([2**27]))
    other = sparse(torch.sparse_coo, long([[1]]), ones(1), torch.Size([2**27 + 1]))
    torch.save({"t": one, "u": other}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        densifier = Densifier()
        assert densifier.dense(checkpoint.root["t"]) is densifier.dense(checkpoint.root["t"])
        with pytest.raises(LimitError, match="dense_bytes"):
            densifier.dense(checkpoint.root["u"])
