"""NumPy's files, checked against what NumPy reads."""

from __future__ import annotations

import contextlib
import io
import tokenize
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.storage.windows import FileStorage
from tests.attacks.pickles import dump
from tests.formats.payload import PAYLOAD, is_named, ran
from tests.formats.torch_reading import bytes_of

__all__ = ["ran"]

DTYPES = ["<f8", ">f4", "<f2", ">i8", "<i4", ">i2", "|i1", "<u8", ">u4", "<u2", "|u1", "|b1", "<c8", ">c16"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_order_and_version(dtype: str, version: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for shape in ((), (3,), (0, 5), (2, 3, 4)):
        for order in "CF":
            array = np.asarray(np.random.default_rng(0).random(shape) * 100, dtype=dtype, order=order)  # type: ignore[call-overload]
            with path.open("wb") as file:
                np.lib.format.write_array(file, array, version=version)
            with open_checkpoint(path) as checkpoint:
                entry = checkpoint.root
                assert isinstance(entry, TensorEntry)
                assert (entry.dtype.name, entry.shape) == (array.dtype.name, shape)
                assert bytes_of(entry) == array.astype(array.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Any, tmp_path: Path) -> None:
    arrays = {"w": np.arange(6.0).reshape(2, 3), "layer.0/bias": np.ones(5, np.float32), "n": np.array(7)}
    save(tmp_path / "a.npz", **arrays)
    with open_checkpoint(tmp_path / "a.npz") as checkpoint:
        assert list(checkpoint.tensors) == list(arrays)
        for name, array in arrays.items():
            assert bytes_of(checkpoint.tensors[name]) == array.tobytes()
        assert [finding.level for check in checkpoint.checks for finding in check()] == ["ok"]


def test_a_plain_record_is_a_window_into_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.arange(6.0))
    with open_checkpoint(tmp_path / "a.npz") as checkpoint:
        assert isinstance(checkpoint.tensors["w"].storage, FileStorage)


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, w=np.arange(6.0))
    data = bytearray(path.read_bytes())
    with open_checkpoint(path) as checkpoint:
        storage = checkpoint.tensors["w"].storage
        assert isinstance(storage, FileStorage)
        data[storage.offset_bytes + 3] ^= 1
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint:
        findings = [finding for check in checkpoint.checks for finding in check()]
        assert [(finding.level, finding.where) for finding in findings] == [("fail", "w.npy")]


def test_arrays_that_torch_does_not_have_are_shown(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(2), names=np.array(["x", "yz"]), when=np.array([3], "M8[s]"))
    with open_checkpoint(tmp_path / "a.npz") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        names = checkpoint.root["names"]
        assert isinstance(names, Opaque)
        assert (names.state["dtype"], names.state["shape"]) == ("<U2", (2,))
        assert checkpoint.notes


def npy(header: str, data: bytes = bytes(16)) -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"


@pytest.mark.parametrize(
    "header",
    [
        SOUND,
        "{'shape': (4,), 'descr': '<f4', 'fortran_order': False}\n",
        "  {'descr':'<f4','fortran_order':False,'shape':(4L,),}  \n",
        '{"descr": "<f4", "fortran_order": True, "shape": (2, 2)}',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1,)}",
    ],
)
def test_spellings_of_a_header(header: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(header))
    with open_checkpoint(tmp_path / "a.npy") as checkpoint:
        assert checkpoint.tensors["value"].num_elements == 4


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        SOUND.replace("(4,)", "(4)"),
        SOUND.replace("(4,)", "(-4,)"),
        SOUND.replace("(4,)", "(,)"),
        SOUND.replace("(4,)", "(2,,2)"),
        SOUND.replace("(4,)", "[4]"),
        SOUND.replace("(4,)", f"({2**63},)"),
        SOUND.replace("(4,)", "(4611686018427387904, 4, 0)"),
        SOUND.replace("(4,)", "(5,)"),
        SOUND.replace("False", "0"),
        SOUND.replace("'fortran_order': False, ", ""),
        SOUND.replace("}", "'descr': '<f4'}"),
        SOUND.replace("}", "'more': 1}"),
        SOUND + "x",
        "{" + "(" * 4900 + ")" * 4900 + "}",
    ],
)
def test_headers_that_are_refused(header: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(header))
    with pytest.raises(CorruptError):
        open_checkpoint(tmp_path / "a.npy")


FIELDS = SOUND.replace("'<f4'", "[('a', '<f4'), ('b', '<f4')]").replace("(4,)", "(2,)")


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize(
    "header",
    [
        SOUND.replace("(4,)", "(04,)"),
        SOUND.replace("(4,)", "(4L,)"),
        SOUND.replace("(4,)", "(04L,)"),
        SOUND.replace("(4,)", "(00,)"),
        *(SOUND.replace(", }", f",{space}}}") for space in "\xa0\x85\x1c\x0b\x0c\r\n\t"),
        *(space + SOUND for space in ("\xa0", "\n  ", "\t ", "\x0b")),
        *(SOUND + space for space in ("\xa0", "\x0b", "\n \n")),
        SOUND.replace("<f4", "|S\u0664"),
        SOUND.replace("<f4", "|S4"),
        SOUND.replace("<f4", "<m8[zz]"),
        SOUND.replace("<f4", "<M8[25us]"),
        SOUND.replace("<f4", "<m4"),
        SOUND.replace("<f4", "|V2147483648").replace("(4,)", "(0,)"),
        FIELDS,
        FIELDS.replace("'b'", "'a'"),
        FIELDS.replace("'b'", "('a', 'b')"),
        FIELDS.replace("'b'", "3"),
        FIELDS.replace("('b', '<f4')", "('', '|V2'), ('', '|V2')"),
    ],
)
def test_what_numpy_refuses_is_refused(header: str, version: int, tmp_path: Path) -> None:
    text = header.encode("utf-8" if version == 3 else "latin-1", "replace")
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    path = tmp_path / "a.npy"
    data = bytes(0 if "(0" in header and "(04" not in header else 16)
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Python 2 wrote it
            loaded = np.load(path)
    except (ValueError, SyntaxError, tokenize.TokenError):
        with pytest.raises(CorruptError):
            open_checkpoint(path)
    else:
        with open_checkpoint(path) as checkpoint:
            shape = (
                checkpoint.root.state["shape"] if type(checkpoint.root) is Opaque else checkpoint.root.shape
            )
        assert shape == loaded.shape


def test_more_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(SOUND).replace(b"\1\0", b"\7\0", 1))
    with pytest.raises(UnreadableError, match=r"version 7\.0"):
        open_checkpoint(path)
    path.write_bytes(npy(SOUND.replace("(4,)", f"({'1, ' * 65})")))
    with pytest.raises(LimitError, match="rank = 64"):
        open_checkpoint(path)
    path.write_bytes(b"\x93NUMPY\2\0" + (70_000).to_bytes(4, "little") + b" " * 70_000)
    with pytest.raises(LimitError, match="npy_header_bytes"):
        open_checkpoint(path)
    data = npy(SOUND)
    for num_bytes in range(8, len(data)):
        path.write_bytes(data[:num_bytes])
        with pytest.raises(CorruptError):
            open_checkpoint(path)


def array(value: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(value), **how)
    return stream.getvalue()


def archive(path: Path, *records: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, data in records:
            made.writestr(name, data)
    return path


CONFUSED = {
    "w beside w.npy": [("w.npy", array([1])), ("w.npy.npy", array([2]))],
    "an array without an ending": [("w.npy", array([1])), ("w", array([2]))],
    "bytes under an array's name": [("w.npy", array([1])), ("w", b"text")],
}


@pytest.mark.parametrize("name", CONFUSED)
def test_two_records_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", *CONFUSED[name])
    with pytest.raises(CorruptError, match="one name to numpy"):
        open_checkpoint(path)


def test_what_begins_as_an_array_is_one(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("a.npy", array([1])), ("b", array([2])), ("c.txt", b"text"))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        assert bytes_of(checkpoint.tensors["b"]) == np.load(path)["b"].tobytes()


def test_a_name_that_zipfile_spells_otherwise(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", ("é.npy", array([1])))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["é"]
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + at + 1] &= ~8  # the mark of UTF-8
    path.write_bytes(data)
    assert np.load(path).files == ["├⌐"]
    with pytest.raises(CorruptError, match="spelled otherwise"):
        open_checkpoint(path)


OBJECTS = [
    "'|O'",
    '"|O"',
    "[('a', '|O')]",
    "[('a', \"|O\")]",
    "[('b', [('a', '|O', (2,))])]",
    "[('a','O')]",
    "'O'",
]


@pytest.mark.parametrize("descr", OBJECTS)
def test_arrays_of_objects_are_judged(descr: str, tmp_path: Path, ran: list[bool]) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}", dump([PAYLOAD])))
    with contextlib.suppress(Exception):
        np.load(path, allow_pickle=True)
    assert ran
    assert is_named(path)


def test_fields_of_a_structured_array_are_counted(tmp_path: Path) -> None:
    kinds = [("a", "<f4"), ("b", [("c", "<i8", (2, 3)), ("d", "|S3")]), (("title", "e"), "<U2")]
    value = np.zeros(3, kinds)
    path = tmp_path / "a.npy"
    np.save(path, value)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.root.state["dtype"].startswith("[")
    path.write_bytes(path.read_bytes()[: -value.itemsize])
    with pytest.raises(CorruptError, match="do not fit"):
        open_checkpoint(path)


def test_a_header_that_numpy_finds_too_long(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(SOUND + " " * 10_001))
    with pytest.raises(ValueError, match="large"):
        np.load(path)
    with pytest.raises(LimitError, match="npy_header_bytes"):
        open_checkpoint(path)
