"""What a pickle writes into a container after it was handed over, checked against torch and NumPy."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.core.nodes import Opaque
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from tests.attacks import torch_files as tf
from tests.attacks.pickles import BUILD, Call, Name, Raw, Shared, dump, get, text


class Tagged(torch.Tensor):
    """A subclass with attributes of its own."""


TAGGED = Name(__name__, "Tagged")
FROM_TYPE = Name("torch._tensor", "_rebuild_from_type_v2")
PLAIN_ARGS: tuple[Any, ...] = (tf.storage(), 0, (4,), (1,), False, OrderedDict())


def later(target: Shared, key: str, value: Any) -> Raw:
    """`target[key] = value`, which leaves the dictionary on the stack."""
    return Raw(get(1) + text(key) + dump(value)[2:-1] + b"s")


def appended(value: Any) -> Raw:
    return Raw(get(1) + dump(value)[2:-1] + b"a")


def load(root: Any, path: Path) -> Any:
    """What torch loads; the tests compare what ptsave shows with it."""
    path.write_bytes(tf.pt(root))
    return torch.load(path, weights_only=False)


def shown(path: Path) -> Any:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.root, list(checkpoint.tensors), checkpoint.dropped


def is_refused(path: Path) -> bool:
    """Whether ptsave does not read the file, or says that it names what is not known."""
    try:
        with open_checkpoint(path) as checkpoint:
            return bool(checkpoint.globals)
    except PtsaveError:
        return True


@pytest.mark.parametrize("is_pair", [False, True], ids=["dictionary", "slots"])
def test_the_state_of_a_subclass(is_pair: bool, tmp_path: Path) -> None:
    state = Shared({"first": tf.tensor()})
    given = (None, state) if is_pair else state
    root = [Call(FROM_TYPE, (tf.REBUILD, TAGGED, PLAIN_ARGS, given)), later(state, "second", tf.tensor())]
    loaded = load(root, tmp_path / "m.pt")
    assert type(loaded[0]) is Tagged
    assert hasattr(loaded[0], "first")
    assert not hasattr(loaded[0], "second")
    _, tensors, _ = shown(tmp_path / "m.pt")
    assert "0.first" in tensors
    assert "0.second" not in tensors


@pytest.mark.parametrize("function", ["_rebuild_parameter_with_state", "from type"])
def test_the_state_of_a_parameter(function: str, tmp_path: Path) -> None:
    """What is written later is no attribute, so nothing was dropped."""
    state = Shared({})
    if function == "from type":
        made = Call(FROM_TYPE, (tf.REBUILD, Name("torch", "Tensor"), PLAIN_ARGS, state))
    else:
        made = Call(Name("torch._utils", function), (tf.tensor(), True, OrderedDict(), state))
    loaded = load([made, later(state, "data", tf.tensor(size=(2,)))], tmp_path / "m.pt")
    assert loaded[0].shape == (4,)
    root, _, dropped = shown(tmp_path / "m.pt")
    assert root[0].shape == (4,)
    assert not dropped


def test_the_state_of_an_object_in_protocol_0(tmp_path: Path) -> None:
    """`copyreg._reconstructor(cls, dict, state)` makes a copy of the state."""
    state = Shared({"first": tf.tensor()})
    made = Call(Name("copyreg", "_reconstructor"), (Name(__name__, "Table"), Name("builtins", "dict"), state))
    loaded = load([made, later(state, "second", tf.tensor())], tmp_path / "m.pt")
    assert loaded[0].keys() == {"first"}
    _, tensors, _ = shown(tmp_path / "m.pt")
    assert not [name for name in tensors if name.startswith("0.") and name.endswith("second")]


class Table(dict):  # type: ignore[type-arg]
    """A dictionary of a class of its own."""


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what is deprecated
def test_the_scales_of_a_quantized_tensor(tmp_path: Path) -> None:
    scales, zero_points = Shared([1.0, 2.0]), [0, 0]
    quantizer = (Name("torch", "per_channel_affine"), scales, zero_points, 0)
    storage = tf.storage("QInt8Storage", numel=2)
    made = Call(
        Name("torch._utils", "_rebuild_qtensor"), (storage, 0, (2,), (1,), quantizer, False, OrderedDict())
    )
    path = tmp_path / "m.pt"
    path.write_bytes(tf.pt([made, appended(3.0)], {"0": b"\1\2"}))
    loaded = torch.load(path, weights_only=False)
    assert loaded[0].q_per_channel_scales().tolist() == [1.0, 2.0]
    root, _, _ = shown(path)
    assert isinstance(root[0], Opaque)
    assert root[0].state["scales"] == [1.0, 2.0]


@pytest.mark.parametrize("function", ["meta", "sparse", "wrapper"])
def test_a_size_that_is_a_list(function: str, tmp_path: Path) -> None:
    """torch takes it for what it is at that moment; torch itself writes none."""
    size = Shared([2])
    float32 = Name("torch", "float32")
    layout = Call(
        Name("torch.serialization", "_get_layout"),
        ("torch.sparse_coo" if function == "sparse" else "torch.strided",),
    )
    if function == "meta":
        made = Call(Name("torch._utils", "_rebuild_meta_tensor_no_storage"), (float32, size, (1,), False))
    elif function == "sparse":
        indices = tf.tensor(size=(1, 1), stride=(1, 1), of=tf.storage("LongStorage", "1", 1))
        made = Call(
            Name("torch._utils", "_rebuild_sparse_tensor"), (layout, (indices, tf.tensor(size=(1,)), size))
        )
    else:
        made = Call(
            Name("torch._utils", "_rebuild_wrapper_subclass"),
            (Name("torch", "Tensor"), float32, size, (1,), 0, layout, "cpu", False),
        )
    path = tmp_path / "m.pt"
    path.write_bytes(tf.pt([made, appended(3)], {"0": tf.FOUR, "1": bytes(8)}))
    if function != "wrapper":
        assert torch.load(path, weights_only=False)[0].shape == (2,)
    assert is_refused(path)


DTYPE = Call(Name("numpy", "dtype"), ("f4", False, True))
BIG_ENDIAN = (3, ">", None, None, None, -1, -1, 0)


@pytest.mark.parametrize("function", ["_frombuffer", "_reconstruct", "scalar"])
def test_a_dtype_that_changes(function: str, tmp_path: Path) -> None:
    """An array has its dtype by reference, whose byte order a state sets in place."""
    dtype = Shared(DTYPE)
    if function == "_frombuffer":
        made = Call(Name("numpy._core.numeric", "_frombuffer"), (tf.FOUR, dtype, (4,), "C"))
    elif function == "scalar":
        made = Call(Name("numpy._core.multiarray", "scalar"), (dtype, tf.FOUR[4:8]))
    else:
        made = Call(
            Name("numpy._core.multiarray", "_reconstruct"),
            (Name("numpy", "ndarray"), (0,), b"b"),
            (1, (4,), dtype, False, tf.FOUR),
        )
    changed = Raw(get(1) + dump(BIG_ENDIAN)[2:-1] + BUILD)
    loaded = load([made, changed], tmp_path / "m.pt")
    if function != "scalar":
        assert loaded[0].tolist() != [0, 1, 2, 3]
    assert is_refused(tmp_path / "m.pt")


def test_an_array_that_is_filled_after_a_tensor_was_made_of_it(tmp_path: Path) -> None:
    dtype = Call(DTYPE.function, DTYPE.args, (3, "<", None, None, None, -1, -1, 0))
    array = Shared(
        Call(Name("numpy._core.multiarray", "_reconstruct"), (Name("numpy", "ndarray"), (0,), b"b"))
    )
    first = Call(
        Name("torch._utils", "_rebuild_device_tensor_from_numpy"),
        (array, Name("torch", "float32"), "cpu", False),
    )
    filled = Raw(get(1) + dump((1, (4,), dtype, False, tf.FOUR))[2:-1] + BUILD)
    path = tmp_path / "m.pt"
    path.write_bytes(tf.pt([first, filled]))
    assert is_refused(path)


def test_a_graph_module_keeps_its_tables(tmp_path: Path) -> None:
    table = Shared({})
    body = {"_parameters": table, "_buffers": {}, "_modules": {}, "_code": ""}
    made = Call(Name("torch.fx.graph_module", "reduce_graph_module"), (body, ""))
    path = tmp_path / "m.pt"
    path.write_bytes(tf.pt([made, later(table, "w", tf.tensor())]))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["1.w"]


def test_a_tensor_is_given_its_values_once(tmp_path: Path) -> None:
    """Before torch 0.4; who has used it has other values than who uses it afterwards."""
    empty = Call(Name("torch._utils", "_rebuild_tensor"), (tf.storage(), 0, (4,), (1,)))
    values = (tf.storage(key="1", numel=4), 0, (4,), (1,))
    changed = Raw(get(1) + dump(values)[2:-1] + BUILD)
    path = tmp_path / "m.pt"
    path.write_bytes(tf.pt([Shared(empty), changed], {"0": tf.FOUR, "1": tf.FOUR[::-1]}))
    loaded = torch.load(path, weights_only=False)
    assert loaded[0].tolist() == loaded[1].tolist()
    assert is_refused(path)


def test_what_is_set_on_a_dictionary_last(tmp_path: Path) -> None:
    """A `_metadata` that is replaced by something else is none."""
    table = OrderedDict[str, Any](w=tf.tensor())
    code = dump(table)[2:-1]
    for value in ({"": {"version": 2}}, None):
        code += dump({"_metadata": value})[2:-1] + BUILD
    loaded = load(Raw(code), tmp_path / "m.pt")
    assert loaded._metadata is None
    root, _, dropped = shown(tmp_path / "m.pt")
    assert getattr(root, "_metadata", None) is None
    assert dropped
