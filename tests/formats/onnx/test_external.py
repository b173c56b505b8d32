"""Tensors beside an ONNX model: read where they lie, and never from outside of its folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptsave.errors import CorruptError, LimitError, MissingFileError, PtsaveError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.storage.windows import FileStorage
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.checks.whole import whole

from .models import FLOAT, model, save, save_external, tensor
from .test_read import bytes_of

FOUR = np.arange(4, dtype="<f4")


def beside(name: str = "w", location: str = "m.data", **about: Any) -> Any:
    """A tensor of four floats that lies elsewhere."""
    made = TensorProto(name=name, data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **about}.items():
        made.external_data.add(key=key, value=str(value))
    return made


def written(folder: Path, *tensors: Any, data: bytes = FOUR.tobytes()) -> Path:
    """A model with these tensors in `folder`, and `data` beside it."""
    (folder / "m.data").write_bytes(data)
    return save(model(tensors), folder / "m.onnx")


def test_what_the_library_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(2, 3)).astype("f4") for name in "abc"}
    made = model([numpy_helper.from_array(v, name) for name, v in values.items()])
    for number, options in enumerate(({"location": "all.data"}, {"all_tensors_to_one_file": False})):
        folder = tmp_path / str(number)
        folder.mkdir()
        copy = onnx.ModelProto.FromString(made.SerializeToString())
        with open_checkpoint(save_external(copy, folder / "m.onnx", **options)) as checkpoint:
            assert all(isinstance(entry.storage, FileStorage) for entry in checkpoint.tensors.values())
            assert {n: bytes_of(e) for n, e in checkpoint.tensors.items()} == {
                n: v.tobytes() for n, v in values.items()
            }
            assert not checkpoint.accounts.left_out
            assert "lie" in checkpoint.notes[0]


def test_tensors_of_one_place_are_tied(tmp_path: Path) -> None:
    path = written(tmp_path, beside("a"), beside("b", offset=0, length=16))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["a"].view == checkpoint.tensors["b"].view


def test_a_file_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w").write_bytes(FOUR.tobytes())
    with open_checkpoint(save(model([beside(location="weights/w")]), tmp_path / "m.onnx")) as checkpoint:
        assert bytes_of(checkpoint.tensors["w"]) == FOUR.tobytes()


OUTSIDE = [
    "../m.data",
    "/etc/passwd",
    "a/../../m.data",
    "./m.data",
    "",
    "..",
    "C:\\m.data",
    "a\\b",
    "*/_ORT_MEM_ADDR_/*",
]


@pytest.mark.parametrize("location", OUTSIDE)
def test_a_path_that_leads_out_of_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "m.data").write_bytes(FOUR.tobytes())
    with pytest.raises(CorruptError, match="outside of the model's folder"):
        open_checkpoint(written(folder, beside(location=location)))


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (tmp_path / "other").mkdir()
    folder.mkdir()
    (tmp_path / "other" / "w").write_bytes(FOUR.tobytes())
    (folder / "link").symlink_to(tmp_path / "other" / "w")
    (folder / "sub").symlink_to(tmp_path / "other")
    with pytest.raises(CorruptError, match="symbolic link"):
        open_checkpoint(written(folder, beside(location="link")))
    with pytest.raises(CorruptError, match="symbolic link"):
        open_checkpoint(written(folder, beside(location="sub/w")))


def test_more_folders_than_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    tensors = []
    for i in range(40):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "w").write_bytes(FOUR.tobytes())
        tensors.append(beside(f"w{i}", f"{i}/w"))
    path = save(model(tensors), tmp_path / "m.onnx")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, before[1]))
    try:
        with open_checkpoint(path) as checkpoint:
            assert bytes_of(checkpoint.tensors["w39"]) == FOUR.tobytes()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


FAULTS: dict[str, tuple[type[PtsaveError], list[Any]]] = {
    "nested_folders = 100": (LimitError, [beside(location="a/" * 3000 + "w")]),
    "no such file": (MissingFileError, [beside(location="none")]),
    "the model's own file": (CorruptError, [beside(location="m.onnx")]),
    "truncated": (CorruptError, [beside(offset=4, length=16)]),
    "has 16 bytes, and 8": (CorruptError, [beside(length=8)]),
    "has 16 bytes, and 12": (CorruptError, [beside(offset=4)]),
    "not a number of bytes": (CorruptError, [beside(offset="-4")]),
    "share the bytes from 8": (
        CorruptError,
        [
            beside("a", length=16),
            TensorProto(
                name="b",
                data_type=FLOAT,
                dims=[2],
                data_location=TensorProto.EXTERNAL,
                external_data=[
                    onnx.StringStringEntryProto(key=key, value=value)
                    for key, value in {"location": "m.data", "offset": "8", "length": "8"}.items()
                ],
            ),
        ],
    ),
    "no SHA-1": (CorruptError, [beside(checksum="abc")]),
}


@pytest.mark.parametrize("says", FAULTS)
def test_what_is_wrong_is_named(says: str, tmp_path: Path) -> None:
    kind, tensors = FAULTS[says]
    with pytest.raises(kind, match=says) as caught:
        open_checkpoint(written(tmp_path, *tensors))
    assert caught.value.hint


def test_two_sets_of_values(tmp_path: Path) -> None:
    made = beside()
    made.raw_data = FOUR.tobytes()
    with pytest.raises(CorruptError, match="two sets of values"):
        open_checkpoint(written(tmp_path, made))
    made = tensor("w", FOUR)
    made.external_data.add(key="location", value="m.data")
    with pytest.raises(CorruptError, match="and in another"):
        open_checkpoint(written(tmp_path, made))


def test_the_checksum_is_checked(tmp_path: Path) -> None:
    right = hashlib.sha1(FOUR.tobytes()).hexdigest()
    for checksum, level in ((right, "ok"), ("0" * 40, "fail")):
        with open_checkpoint(written(tmp_path, beside(checksum=checksum))) as checkpoint:
            (found,) = (f for f in bytes_(Subject(checkpoint)) if f.where == "m.data")
            assert (found.level, "SHA-1" in found.message) == (level, True)


def test_bytes_of_no_tensor_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, beside(length=16), data=FOUR.tobytes() + bytes(100_000))
    with open_checkpoint(path) as checkpoint:
        (found,) = (f for f in whole(Subject(checkpoint)) if f.level == "fail")
        assert found.where == "m.data, bytes 16 to 100016"


def test_in_an_archive_there_is_no_folder(tmp_path: Path) -> None:
    alone = save(model([tensor("w")]), tmp_path / "alone.onnx")
    path = written(tmp_path, beside())
    for inner in (alone, path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(inner, inner.name)
        if inner is alone:
            with open_checkpoint(tmp_path / "a.zip") as checkpoint:
                assert checkpoint.format == "onnx"
        else:
            with pytest.raises(UnreadableError):
                open_checkpoint(tmp_path / "a.zip")


def test_a_data_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, beside())
    with open_checkpoint(path) as checkpoint:
        (tmp_path / "m.data").write_bytes(FOUR[::-1].tobytes() + b"x")
        with pytest.raises(UnreadableError):
            checkpoint.check_unchanged()


def test_at_a_plain_address(tmp_path: Path) -> None:
    """The folder is found by the model's place, from wherever it is named."""
    path = written(tmp_path, beside())
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (path, tmp_path / "m.data"):
        shutil.move(file, moved / file.name)
    with open_checkpoint(moved / "m.onnx") as checkpoint:
        assert helper.make_tensor("w", FLOAT, [4], bytes_of(checkpoint.tensors["w"]), raw=True).dims == [4]
