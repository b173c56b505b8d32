"""Parts of one form: whatever the second of them has, it is read as if it were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.core.nodes import TensorEntry
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.dcp.metadata import parse_metadata
from ptsave.formats.torch.form import form_of
from ptsave.formats.torch.part import TorchParts
from ptsave.formats.torch.read import ZipStorages, load_pickle
from ptsave.formats.writers import BY_NAME
from ptsave.formats.zip.reader import read_directory
from ptsave.storage.files import InputFile
from ptsave.storage.local.file import LocalFile
from ptsave.storage.windows import FileStorage
from tests.support import some

FIRST = torch.arange(6.0).reshape(2, 3)
SECOND = FIRST + 10
Window = tuple[int, int]


def by_torch(folder: Path) -> tuple[Path, Window, Window]:
    path = folder / "parts"
    with path.open("wb") as file:
        torch.save(FIRST, file)
        middle = file.tell()
        torch.save(SECOND, file)
        return path, (0, middle), (middle, file.tell() - middle)


def by_ptsave(folder: Path) -> tuple[Path, Window, Window]:
    torch.save({"a": FIRST, "b": SECOND}, folder / "source.pt")
    with open_checkpoint(folder / "source.pt") as source:
        BY_NAME["dcp"].write(source, folder / "ckpt", WriteOptions())
    metadata = parse_metadata((folder / "ckpt" / ".metadata").read_bytes(), "")
    a, b = metadata.places["a", (0, 0)], metadata.places["b", (0, 0)]
    return folder / "ckpt" / a.file_name, (a.offset_bytes, a.num_bytes), (b.offset_bytes, b.num_bytes)


WRITERS = pytest.mark.parametrize("write", [by_torch, by_ptsave])


def outcome(parts: TorchParts, file: InputFile, window: Window) -> tuple[Any, ...]:
    """Everything that reading a part says."""
    try:
        loaded = parts.read(file, *window)
    except PtsaveError as error:
        return type(error), error.what
    if not isinstance(loaded.root, TensorEntry):
        return (loaded.root,)
    entry = loaded.root
    storage = entry.storage
    assert isinstance(storage, FileStorage)
    about = (entry.name, entry.dtype, entry.shape, entry.strides, entry.offset, entry.kind)
    where = (storage.file, storage.offset_bytes, storage.num_bytes, storage.crc32)
    return (*about, entry.requires_grad, *where, loaded.globals, loaded.notes)


@WRITERS
def test_a_part_of_a_known_form_is_read_as_if_it_were_alone(write: Any, tmp_path: Path) -> None:
    path, first, second = write(tmp_path)
    parts = TorchParts()
    with LocalFile(path) as file:
        parts.read(file, *first)
        assert outcome(parts, file, second) == outcome(TorchParts(), file, second)
        buffer = bytearray(SECOND.nbytes)
        parts.read(file, *second).root.storage.read_into(0, memoryview(buffer))
    assert bytes(buffer) == SECOND.numpy().tobytes()


@WRITERS
def test_the_form_of_one_part_fits_the_next(write: Any, tmp_path: Path) -> None:
    path, first, second = write(tmp_path)
    with LocalFile(path) as file:
        directory = read_directory(file, *first)
        top = next(iter(directory.entries)).partition("/")[0]
        loaded = load_pickle(
            directory, f"{top}/data.pkl", ZipStorages(directory, f"{top}/data/", big_endian=False)
        )
        form = form_of(directory, *first, loaded, f"{top}/.data/serialization_id")
        assert form is not None
        found = form.read(file, second[0])
        assert found is not None
        assert found.root.storage.crc32 == read_directory(file, *second).entries[f"{top}/data/0"].crc32


@WRITERS
def test_no_damage_hides_behind_a_known_form(write: Any, tmp_path: Path) -> None:
    path, first, second = write(tmp_path)
    whole = path.read_bytes()
    damaged = tmp_path / "damaged"
    refused = 0
    for at in some(range(second[0], sum(second))):
        change = 0xFF if at % 2 else 0x01
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
        with LocalFile(damaged) as file:
            parts = TorchParts()
            parts.read(file, *first)
            found = outcome(parts, file, second)
            assert found == outcome(TorchParts(), file, second), at - second[0]
            refused += isinstance(found[0], type)
    assert refused > len(some(range(100)))


def test_another_shape_of_as_many_bytes_has_another_form(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    windows = []
    shapes = [(2, 3), (3, 2), (6, 1), (1, 6), (2, 3), (3, 2)]
    with path.open("wb") as out:
        for shape in shapes:
            begin = out.tell()
            torch.save(torch.zeros(shape), out)
            windows.append((begin, out.tell() - begin))
    assert len({num_bytes for _, num_bytes in windows}) == 1
    parts = TorchParts()
    with LocalFile(path) as file:
        assert [parts.read(file, *window).root.shape for window in windows] == shapes


def test_a_part_beyond_the_end_is_refused_though_its_form_is_known(tmp_path: Path) -> None:
    path, first, second = by_torch(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    parts = TorchParts()
    with LocalFile(path) as file:
        parts.read(file, *first)
        with pytest.raises(PtsaveError, match="truncated"):
            parts.read(file, *second)
