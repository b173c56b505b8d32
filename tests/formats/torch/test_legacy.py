"""torch's legacy format, checked against torch's own reading."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.core.finding import Kind
from ptsave.errors import CorruptError, PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.formats.torch.legacy import MAGIC_NUMBER, PROTOCOL_VERSION
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.subject import Subject
from tests.attacks import torch_files as tf
from tests.formats.torch_reading import assert_holds, assert_same, packaged


def save(path: Path, tree: Any, protocol: int = 2) -> Any:
    torch.save(tree, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    return torch.load(path, weights_only=False)


def sample() -> dict[str, Any]:
    base = torch.arange(12.0).reshape(3, 4)
    return {
        "model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(),
        "base": base,
        "view": base[1:, ::2],
        "half": torch.ones(3, dtype=torch.float16),
        "long": torch.tensor(7),
        "empty": torch.empty(0, dtype=torch.bool),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "epoch": 3,
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    expected = sample()
    torch.save(expected, tmp_path / "a.pth", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        assert checkpoint.format == "pt-legacy"
        assert_holds(checkpoint, expected)
        assert checkpoint.data == {"epoch": 3}
        assert not checkpoint.globals
        assert [finding for check in checkpoint.checks for finding in check()] == []


def test_files_of_packages() -> None:
    paths = packaged("lpips", ".pth")
    assert len(paths) >= 3
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            assert_holds(checkpoint, torch.load(path, map_location="cpu", weights_only=True))


@pytest.mark.slow
def test_a_long_pickle_is_read_in_pieces(tmp_path: Path) -> None:
    tree = {f"layer.{i}.{'x' * (i % 300)}": torch.full((1,), i) for i in range(3000)}
    expected = save(tmp_path / "a.pth", tree)
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        assert_holds(checkpoint, expected)


@pytest.mark.filterwarnings("ignore::torch.serialization.SourceChangeWarning")
def test_source_code_is_noted_and_not_run(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    save(tmp_path / "a.pth", model)
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        assert list(checkpoint.tensors) == ["weight", "bias"]
        assert any("source code" in note for note in checkpoint.notes)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.made = (function, args)

    def __reduce__(self) -> Any:
        return self.made


class Id:
    """Pickles as a persistent id."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


def handmade(
    path: Path,
    root: Any,
    keys: Any,
    storages: bytes,
    magic: Any = MAGIC_NUMBER,
    version: Any = PROTOCOL_VERSION,
) -> Path:
    """A legacy file with anything in it."""
    stream = io.BytesIO()

    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, value: Any) -> Any:
            return value.parts if isinstance(value, Id) else None

    for value in (magic, version, {"little_endian": True}):
        pickle.dump(value, stream, 2)
    Pickler(stream, 2).dump(root)
    pickle.dump(keys, stream, 2)
    path.write_bytes(stream.getvalue() + storages)
    return path


def tensor_of(storage: Id, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    return Call(torch._utils._rebuild_tensor, storage, offset, size, stride)


FOUR = struct.pack("<q4f", 4, 0, 1, 2, 3)


def stored(view: Any = None, key: Any = "7", count: Any = 4) -> Id:
    return Id("storage", torch.FloatStorage, key, "cpu", count, view)


def test_views_of_storages(tmp_path: Path) -> None:
    tree = {
        "all": tensor_of(stored(), 0, (4,), (1,)),
        "part": tensor_of(stored(("8", 1, 3)), 1, (2,), (1,)),
        "same": tensor_of(stored(("8", 1, 3)), 0, (3,), (1,)),
        "square": tensor_of(stored(), 0, (2, 2), (2, 1)),
    }
    path = handmade(tmp_path / "a.pth", tree, ["7"], FOUR)
    with open_checkpoint(path) as checkpoint:
        values = {name: (entry.offset, entry.shape) for name, entry in checkpoint.tensors.items()}
        assert values == {"all": (0, (4,)), "part": (2, (2,)), "same": (1, (3,)), "square": (0, (2, 2))}
        assert len({id(entry.storage) for entry in checkpoint.tensors.values()}) == 1
        for name, tensor in torch.load(path).items():
            assert_same(checkpoint.tensors[name], tensor)


def test_trailing_bytes_are_a_warning(tmp_path: Path) -> None:
    path = handmade(tmp_path / "a.pth", {"t": tensor_of(stored(), 0, (4,), (1,))}, ["7"], FOUR + b"more")
    with open_checkpoint(path) as checkpoint:
        (finding,) = [finding for check in checkpoint.checks for finding in check()]
        assert (finding.level, finding.message) == ("warn", "4 bytes follow the last storage")


ALL = tensor_of(stored(), 0, (4,), (1,))
WRONG: dict[str, tuple[Any, ...]] = {
    "version": (ALL, ["7"], FOUR, MAGIC_NUMBER, 1002),
    "another key": (ALL, ["8"], FOUR),
    "a key twice": (ALL, ["7", "7"], FOUR + FOUR),
    "no keys": (ALL, [], FOUR),
    "keys that are no list": (ALL, "7", FOUR),
    "a key that is no key": (ALL, [1.5], FOUR),
    "another count": (ALL, ["7"], struct.pack("<q5f", 5, 0, 1, 2, 3, 4)),
    "a negative count": (ALL, ["7"], struct.pack("<q4f", -4, 0, 1, 2, 3)),
    "too few bytes": (ALL, ["7"], FOUR[:-1]),
    "no count": (ALL, ["7"], FOUR[:7]),
    "a view past the end": (tensor_of(stored(("8", 2, 3)), 0, (1,), (1,)), ["7"], FOUR),
    "a view before the beginning": (tensor_of(stored(("8", -1, 3)), 0, (1,), (1,)), ["7"], FOUR),
    "a malformed view": (tensor_of(stored("8"), 0, (1,), (1,)), ["7"], FOUR),
    "a tensor past its view": (tensor_of(stored(("8", 1, 2)), 0, (3,), (1,)), ["7"], FOUR),
    "a view in two ways": (
        [tensor_of(stored(("8", 1, 2)), 0, (1,), (1,)), tensor_of(stored(("8", 0, 2)), 0, (1,), (1,))],
        ["7"],
        FOUR,
    ),
    "a storage in two ways": ([ALL, tensor_of(stored(count=3), 0, (1,), (1,))], ["7"], FOUR),
    "an impossible count": (tensor_of(stored(count=2**62), 0, (1,), (1,)), ["7"], FOUR),
    "a count that is no number": (tensor_of(stored(count="4"), 0, (1,), (1,)), ["7"], FOUR),
    "an id of four, without a view": (
        tensor_of(Id("storage", torch.FloatStorage, "7", "cpu", 4), 0, (4,), (1,)),
        ["7"],
        FOUR,
    ),
    "an unknown id": (Id("tensor", 1), [], b""),
    "an empty id": (Id(), [], b""),
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictions(name: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptError) as caught:
        open_checkpoint(handmade(tmp_path / "a.pth", *WRONG[name]))
    assert str(tmp_path) in caught.value.where
    assert caught.value.hint


def test_every_truncation(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", {"w": torch.ones(3), "b": 1})
    data = (tmp_path / "a.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    for end in range(len(data)):
        cut.write_bytes(data[:end])
        with pytest.raises(PtsaveError):
            open_checkpoint(cut)


def test_old_parameters_and_tensors(tmp_path: Path) -> None:
    """As torch before 0.4 wrote them: made first, filled by BUILD."""
    state = b"\x80\x02}q\x00(X\x01\0\0\0p"
    tensor = (
        b"ctorch\nFloatTensor\n)\x81q\x01(("
        b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x007X\x03\0\0\0cpuK\x04NtQ"
        b"K\x01K\x02\x85K\x01\x85tb"
    )
    parameter = b"ctorch.nn.parameter\nParameter\n" + tensor + b"\x85\x81q\x02\x88\x89N\x87b"
    body = state + parameter + b"X\x01\0\0\0tq\x03h\x01u."
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC_NUMBER, PROTOCOL_VERSION, {}))
    path = tmp_path / "a.pth"
    path.write_bytes(head + body + pickle.dumps(["7"], 2) + FOUR)
    with open_checkpoint(path) as checkpoint:
        parameter_entry, tensor_entry = checkpoint.tensors["p"], checkpoint.tensors["t"]
        assert (parameter_entry.kind, parameter_entry.requires_grad) == ("parameter", True)
        assert (tensor_entry.shape, tensor_entry.offset) == ((2,), 1)
        assert parameter_entry.storage is tensor_entry.storage
        assert not checkpoint.globals


OTHER = struct.pack("<4f", 9, 9, 9, 9)
COLLISIONS = {
    "a view's key is another storage's": (
        [tf.legacy_tensor(key="1"), tf.legacy_tensor(size=(2,), view=("1", 0, 2))],
        ("1", "0"),
    ),
    "a storage's key is a view's": (
        [tf.legacy_tensor(size=(2,), view=("1", 0, 2)), tf.legacy_tensor(key="1")],
        ("0", "1"),
    ),
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_keys_of_storages_and_views_are_one_namespace(name: str, tmp_path: Path) -> None:
    root, keys = COLLISIONS[name]
    path = tmp_path / "a.pth"
    path.write_bytes(tf.legacy(root, keys, [(4, tf.FOUR), (4, OTHER)]))
    with pytest.raises(CorruptError, match="is of a storage and of a view"):
        open_checkpoint(path)


@pytest.mark.parametrize("other", [0, b"0", "00"])
def test_keys_of_other_types_are_other_storages(other: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    root = {"a": tf.legacy_tensor(), "b": tf.legacy_tensor(key=other)}
    path.write_bytes(tf.legacy(root, ("0", other), [(4, tf.FOUR), (4, OTHER)]))
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, torch.load(path, weights_only=False))


@pytest.mark.parametrize("value", [torch.ones(3).untyped_storage(), torch.ones(3, dtype=torch.float8_e5m2)])
def test_untyped_storages_are_read_and_get_no_yes(value: Any, tmp_path: Path) -> None:
    """torch.save writes them in this format, and torch.load does not read them."""
    path = tmp_path / "m.pt"
    torch.save({"w": value}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(AttributeError, match="dtype"):
        torch.load(path, weights_only=False)
    with open_checkpoint(path) as checkpoint:
        failed = [finding.kind for finding in bytes_(Subject(checkpoint)) if finding.level == "fail"]
        assert len(checkpoint.tensors) == 1
    assert failed == [Kind.NOT_LOADED]
