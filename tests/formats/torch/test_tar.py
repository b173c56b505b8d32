"""torch's tar format, checked against torch's own reading of files made by hand."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.errors import CorruptError, PtsaveError
from ptsave.formats import open_checkpoint
from tests.formats.torch_reading import assert_same

FLOATS = torch.arange(6.0)
LONGS = torch.tensor([7, 8])


def pickled(*values: Any) -> bytes:
    return b"".join(pickle.dumps(value, 2) for value in values)


def described(
    key: Any, storage: Any, kind: type, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> bytes:
    rank = len(shape)
    numbers = struct.pack(f"<i4x{rank}q{rank}qq", rank, *shape, *strides, offset)
    return pickled((key, storage, kind)) + numbers


STORAGES = (
    pickled(2, (11, "cpu", torch.FloatStorage))
    + struct.pack("<q6f", 6, *FLOATS.tolist())
    + pickled((12, "cpu", torch.LongStorage))
    + struct.pack("<q2q", 2, *LONGS.tolist())
    + pickled([(13, 11, 2, 3)])
)
TENSORS = (
    pickled(3)
    + described(21, 11, torch.FloatTensor, (2, 3), (3, 1), 0)
    + described(22, 12, torch.LongTensor, (2,), (1,), 0)
    + described(23, 13, torch.FloatTensor, (2,), (1,), 1)
)


class Reference:
    def __init__(self, key: Any) -> None:
        self.key = key


def root(**keys: Any) -> bytes:
    stream = io.BytesIO()

    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, value: Any) -> Any:
            return value.key if isinstance(value, Reference) else None

    Pickler(stream, 2).dump({name: Reference(key) for name, key in keys.items()})
    return stream.getvalue()


def write(path: Path, **members: bytes) -> Path:
    made = {
        "sys_info": pickled({}),
        "pickle": root(a="21", b="22", c="23"),
        "storages": STORAGES,
        "tensors": TENSORS,
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (made | members).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_the_values_are_torch_s(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth")
    expected = torch.load(path, weights_only=False)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "pt-tar"
        assert list(checkpoint.tensors) == ["a", "b", "c"]
        for name, tensor in expected.items():
            assert_same(checkpoint.tensors[name], tensor)
        assert checkpoint.tensors["a"].storage is checkpoint.tensors["c"].storage
        assert not checkpoint.globals


WRONG = {
    "a tensor that is not there": {"pickle": root(a="99")},
    "a key that is no number": {"pickle": root(a="x")},
    "a tensor past its storage": {
        "tensors": pickled(1) + described(21, 11, torch.FloatTensor, (7,), (1,), 0)
    },
    "a tensor of no storage": {"tensors": pickled(1) + described(21, 99, torch.FloatTensor, (1,), (1,), 0)},
    "a negative shape": {"tensors": pickled(1) + described(21, 11, torch.FloatTensor, (-1,), (1,), 0)},
    "a rank of a million": {
        "tensors": pickled(1, (21, 11, torch.FloatTensor)) + struct.pack("<i4x", 1_000_000)
    },
    "a negative rank": {"tensors": pickled(1, (21, 11, torch.FloatTensor)) + struct.pack("<i4x", -1)},
    "too many tensors": {"tensors": pickled(10**9)},
    "fewer tensors": {"tensors": TENSORS[:-1]},
    "a count that is no number": {"tensors": pickled("3")},
    "too few bytes": {"storages": pickled(1, (11, "cpu", torch.FloatStorage)) + struct.pack("<q", 2**40)},
    "an unknown storage class": {"storages": pickled(1, (11, "cpu", int)) + struct.pack("<q", 0)},
    "a storage on no device": {
        "storages": pickled(1, (11, None, torch.FloatStorage)) + struct.pack("<q", 0) + pickled([])
    },
    "a storage on the meta device": {
        "storages": STORAGES.replace(b"cpu", b"met").replace(b"X\3\0\0\0met", b"X\4\0\0\0meta")
    },
    "a storage twice": {"storages": pickled(2) + 2 * (pickled((11, "cpu", torch.FloatStorage)) + bytes(8))},
    "a view past the end": {
        "storages": STORAGES[: -len(pickled([(13, 11, 2, 3)]))] + pickled([(13, 11, 4, 3)])
    },
    "views that are no list": {"storages": pickled(0, 5)},
    "no pickle": {"pickle": b""},
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictions(name: str, tmp_path: Path) -> None:
    with pytest.raises(PtsaveError) as caught:
        open_checkpoint(write(tmp_path / "a.pth", **WRONG[name]))
    assert str(tmp_path) in caught.value.where
    assert caught.value.hint


def test_truncations(tmp_path: Path) -> None:
    data = write(tmp_path / "a.pth").read_bytes()
    with tarfile.open(tmp_path / "a.pth") as archive:
        end = max(member.offset_data + member.size for member in archive.getmembers())
    cut = tmp_path / "cut.pth"
    for at in range(512, end, 37):
        cut.write_bytes(data[:at])
        with pytest.raises(PtsaveError):
            open_checkpoint(cut)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write(path)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("pickle")
        archive.addfile(info, io.BytesIO())
    with pytest.raises(PtsaveError):
        open_checkpoint(path)


def test_another_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(PtsaveError, match="tar archive") as caught:
        open_checkpoint(path)
    assert not isinstance(caught.value, CorruptError)
