"""No weight is left behind in silence: what `whole` names, and who refuses to go on without it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp

import ptsave
from ptsave.cli import main
from ptsave.errors import LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.torch.tensors import OWN_ATTRIBUTES
from tests.formats.torch_reading import bytes_of, bytes_of_torch

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("scratch", torch.ones(3), persistent=False)


def verdict(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main.run(["verify", str(path), "--checks", "whole", "--json"])
    return code, json.loads(capsys.readouterr().out)["findings"]


def convert(*words: object) -> int:
    return main.run(["convert", *map(str, words), "--overwrite", "-q"])


def test_all_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = torch.ones(8)
    torch.save({"a": shared, "b": shared[2:4], "c": [torch.zeros(1), {"d": 3}]}, tmp_path / "a.pt")
    assert verdict(tmp_path / "a.pt", capsys)[0] == 0
    torch.save(Module(), tmp_path / "m.pt")
    code, findings = verdict(tmp_path / "m.pt", capsys)
    assert code == 0
    assert any("scratch" in finding["message"] for finding in findings)  # the module makes it again
    assert convert(tmp_path / "m.pt", tmp_path / "m.safetensors") == 0


def _attribute() -> Any:
    module = Module()
    module.anchors = [torch.ones(4)]  # type: ignore[assignment]
    return module


def _not_registered() -> Any:
    module = Module()
    module.heads = {"one": nn.Linear(3, 3)}  # type: ignore[assignment]
    return module


def _tagged(state: Any) -> Any:
    parameter = nn.Parameter(torch.ones(2))
    parameter.__dict__.update(state)
    return {"w": parameter, "v": torch.ones(1)}


def _dict_attribute() -> Any:
    state = OrderedDict(a=torch.ones(2))
    state.more = torch.ones(3)  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (_attribute, "anchors.0"),
        (_not_registered, "heads.one.weight"),
        (lambda: {"model": _attribute()}, "model.anchors.0"),
        (lambda: _tagged({"tag": torch.ones(4)}), ""),
        (_dict_attribute, ""),
        (lambda: {"a": torch.ones(2), "s": {torch.ones(3)}}, None),
    ],
)
def test_what_no_state_dict_has(made: Any, name: str | None, tmp_path: Path, capsys: Any) -> None:
    source, target = tmp_path / "a.pt", tmp_path / "b.safetensors"
    torch.save(made(), source)
    code, findings = verdict(source, capsys)
    failed = [finding["where"] for finding in findings if finding["level"] == "fail"]
    assert code == 1
    assert name is None or name in failed
    assert convert(source, target) == 4
    assert not target.exists()
    assert convert(source, target, "--extras", "drop") == 0
    capsys.readouterr()
    main.run(["inspect", str(source), "--json"])
    assert json.loads(capsys.readouterr().out)["left_out"]


def test_load_and_state_dict_refuse_too(tmp_path: Path) -> None:
    torch.save(_attribute(), tmp_path / "a.pt")
    with ptsave.open(tmp_path / "a.pt") as opened:
        with pytest.raises(LossyError, match="anchors"):
            opened.state_dict()
        assert len(opened.state_dict(extras="drop")) == 2
    with pytest.raises(LossyError, match="anchors"):
        ptsave.load(tmp_path / "a.pt", Module())
    ptsave.load(tmp_path / "a.pt", Module(), extras="drop")
    config = tmp_path / "c.toml"
    config.write_text('[model]\nclass = "torch.nn.Linear"\n[model.args]\nin_features = 2\nout_features = 2\n')
    linear = nn.Linear(2, 2)
    linear.cache = [torch.ones(3)]  # type: ignore[assignment]
    torch.save(linear, tmp_path / "l.pt")
    load = ["load", str(tmp_path / "l.pt"), "-c", str(config)]
    save = ["save", str(config), str(tmp_path / "out.pt"), "--weights", str(tmp_path / "l.pt")]
    for words in (load, save):
        assert main.run(words) == 4
        assert main.run([*words, "--extras", "drop"]) == 0


def test_a_record_that_nothing_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2), "b": torch.ones(3)}, source)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("a/data/9", b"12345678")
    code, findings = verdict(source, capsys)
    assert code == 1
    assert [finding["where"] for finding in findings] == ["a/data/9"]
    assert convert(source, tmp_path / "b.safetensors") == 4


@pytest.mark.parametrize("new", [True, False])
def test_a_storage_that_is_thrown_away(new: bool, tmp_path: Path, capsys: Any) -> None:
    """The pickle names a storage under a key that a later item takes."""

    class Twice(dict):  # type: ignore[type-arg]
        def __reduce__(self) -> Any:
            return OrderedDict, (), None, None, iter([("a", torch.ones(2)), ("a", torch.zeros(2))])

    source = tmp_path / "a.pt"
    torch.save(Twice(), source, _use_new_zipfile_serialization=new)
    assert len(torch.load(source)) == 1
    assert verdict(source, capsys)[0] == 1
    assert convert(source, tmp_path / "b.safetensors") == 4


def test_dcp_files_and_items_that_the_metadata_does_not_name(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "d"
    dcp.save({"a": torch.ones(20), "b": torch.ones(30)}, checkpoint_id=folder, no_dist=True)
    assert verdict(folder, capsys)[0] == 0
    shutil.copy(folder / "__0_0.distcp", folder / "__7_0.distcp")
    code, findings = verdict(folder, capsys)
    assert (code, findings[0]["where"]) == (1, "__7_0.distcp")
    (folder / "__7_0.distcp").rename(tmp_path / "more")
    with (folder / "__0_0.distcp").open("ab") as file:
        file.write((tmp_path / "more").read_bytes())
    code, findings = verdict(folder, capsys)
    assert (code, "__0_0.distcp, bytes" in findings[0]["where"]) == (1, True)
    assert convert(folder, tmp_path / "a.safetensors") == 4


def test_shards_that_the_index_does_not_name(tmp_path: Path, capsys: Any) -> None:
    state = {f"t{i}": torch.full((64,), float(i)) for i in range(6)}
    torch.save(state, tmp_path / "a.pt")
    folder = tmp_path / "s"
    words = ["--format", "safetensors-sharded", "--shard-size", "600B"]
    assert convert(tmp_path / "a.pt", folder, *words) == 0
    assert verdict(folder, capsys)[0] == 0
    index = folder / "model.safetensors.index.json"
    about = json.loads(index.read_text())
    about["metadata"].pop("ptsave", None)
    del about["weight_map"]["t0"]
    index.write_text(json.dumps(about))
    code, findings = verdict(folder, capsys)
    assert code == 1
    assert any(finding["where"].startswith("t0 of model-0000") for finding in findings)


def test_what_the_program_writes_is_whole(tmp_path: Path, capsys: Any) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.randn(5).half(), "c": torch.arange(4)}
    state["d"] = state["a"]
    torch.save(state, tmp_path / "a.pt")
    for name in ("safetensors", "pt", "npz", "dcp", "safetensors-sharded"):
        assert convert(tmp_path / "a.pt", tmp_path / f"to-{name}", "--format", name) == 0
        assert verdict(tmp_path / f"to-{name}", capsys)[0] == 0


# --- quantized modules --------------------------------------------------------------------------------


def quantized_modules() -> dict[str, nn.Module]:
    import torch.ao.nn.quantized as q
    import torch.ao.nn.quantized.dynamic as qd
    from torch.ao.quantization import quantize_dynamic

    eager = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    return {
        "dynamic": quantize_dynamic(eager, {nn.Linear}, dtype=torch.qint8),
        "linear": nn.Sequential(q.Linear(4, 3), q.QFunctional(), q.Quantize(0.1, 3, torch.quint8)),
        "half": qd.Linear(4, 3, dtype=torch.float16),
        "embedding": q.Embedding(10, 8),
        "conv": nn.Sequential(q.Conv1d(2, 3, 3), q.Conv2d(2, 3, 3), q.ConvTranspose1d(2, 3, 3)),
        "norm": q.BatchNorm2d(3),
    }


def values(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The plain tensors of a state dict, those of quantized ones included, as ptsave names them."""
    if isinstance(tree, torch.Tensor):
        if tree.is_quantized:
            found = {f"{prefix}.int_repr": tree.int_repr()}
            if tree.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
                found[f"{prefix}.scales"] = tree.q_per_channel_scales()
                found[f"{prefix}.zero_points"] = tree.q_per_channel_zero_points()
            return found
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, tuple) else ()
    found = {}
    for key, value in items:
        found |= values(value, f"{prefix}.{key}" if prefix else str(key))
    return found


@pytest.mark.parametrize("name", ["dynamic", "linear", "half", "embedding", "conv", "norm"])
def test_a_quantized_module_is_its_state_dict(name: str, tmp_path: Path, capsys: Any) -> None:
    module = quantized_modules()[name]
    torch.save(module, tmp_path / "m.pt")
    expected = module.state_dict()
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        wanted = values(expected)
        assert list(checkpoint.tensors) == list(wanted)
        for key, tensor in wanted.items():
            assert bytes_of(checkpoint.tensors[key]) == bytes_of_torch(tensor), key
    assert verdict(tmp_path / "m.pt", capsys)[0] == 0
    assert convert(tmp_path / "m.pt", tmp_path / "state.pt") == 0
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert list(state) == list(expected)
    for key, tensor in values(expected).items():
        assert torch.equal(values(state)[key], tensor), key
    if "conv" not in name:  # which torch cannot load into what it made
        torch.load(tmp_path / "m.pt", weights_only=False).load_state_dict(state)


def test_what_cannot_be_kept_of_a_quantized_module_is_refused(tmp_path: Path) -> None:
    import torch.ao.nn.quantized.dynamic as qd

    torch.save(qd.LSTM(4, 3), tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", tmp_path / "state.pt") == 4
    with ptsave.open(tmp_path / "m.pt") as opened:
        assert any(name.endswith("int_repr") for name in opened.tensors)


# --- TorchScript --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_quantized", [False, True])
def test_a_frozen_module(is_quantized: bool, tmp_path: Path, capsys: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    if is_quantized:
        module = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    torch.jit.freeze(torch.jit.script(module)).save(str(tmp_path / "f.pt"))
    with open_checkpoint(tmp_path / "f.pt") as checkpoint:
        found = {bytes_of(entry) for entry in checkpoint.tensors.values()}
        assert all(name.startswith("CONSTANTS.c") for name in checkpoint.tensors)
    wanted = {bytes_of_torch(tensor) for tensor in values(module.state_dict()).values() if tensor.dim()}
    assert wanted <= found
    assert verdict(tmp_path / "f.pt", capsys)[0] == 0
    assert convert(tmp_path / "f.pt", tmp_path / "g.pt") == 0
    kept = {bytes_of_torch(t) for t in values(torch.load(tmp_path / "g.pt", weights_only=True)).values()}
    assert wanted <= kept


# --- NumPy arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_weights_that_are_numpy_arrays(suffix: str, tmp_path: Path, capsys: Any) -> None:
    import numpy as np
    from safetensors.torch import load_file

    rng = np.random.default_rng(0)
    weights = {
        "large": rng.standard_normal((600, 700)).astype(np.float32),
        "fortran": np.asfortranarray(rng.standard_normal((20, 9))),
        "big": rng.standard_normal(70).astype(">f4"),
        "half": np.float16([[1, 2]]),
        "count": np.array(5),
        "complex": np.array([1 + 2j]),
    }
    whole = {"model": weights, "__author__": "x", "rng": np.random.RandomState(1).get_state()}
    source = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(whole, source)
    else:
        np.save(source, whole, allow_pickle=True)  # type: ignore[arg-type]
    with open_checkpoint(source) as checkpoint:
        names = [f"model.{name}" for name in weights]
        assert list(checkpoint.tensors) == names  # the generator's numbers are no weights
        assert any(name.startswith("rng") for name in checkpoint.data)
    only = ["--select", "model", "--drop", "complex"]
    assert convert(source, tmp_path / "b.safetensors", *only) == 0
    found = load_file(tmp_path / "b.safetensors")
    del weights["complex"]
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        assert found[name].numpy().tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes("C")
    with ptsave.open(source) as opened:
        state = opened.state_dict()
        assert torch.equal(state["half"], torch.tensor([[1.0, 2.0]]).half())
    assert verdict(source, capsys)[0] == 0


# --- what .pt can hold --------------------------------------------------------------------------------


class Marked(torch.Tensor):
    pass


def same(one: Any, other: Any) -> bool:
    """Whether two loaded tensors are the same, layout and bits that wait included."""
    if one.layout is not torch.strided:
        return one.layout is other.layout and same(one.to_dense(), other.to_dense())
    if one.is_quantized:
        return other.is_quantized and torch.equal(one, other)
    return (
        (one.is_conj(), one.is_neg(), one.dtype) == (other.is_conj(), other.is_neg(), other.dtype)
        and one.requires_grad == other.requires_grad
        and torch.equal(one, other)
    )


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(3, 4),
        lambda: nn.Parameter(torch.randn(3)),
        lambda: torch.randn(3, 2, dtype=torch.complex64).conj(),
        lambda: torch.randn(3, 2, dtype=torch.complex64).conj().imag,
        lambda: torch.randn(3, 2, dtype=torch.complex64).conj().t(),
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.eye(4).to_sparse_csc(),
        lambda: torch.eye(4).to_sparse_bsr((2, 2)),
        lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_channel(
            torch.randn(3, 2), torch.rand(3) + 0.1, torch.zeros(3), 0, torch.qint8
        ),
    ],
)
def test_from_pt_to_pt_unchanged(make: Any, is_alone: bool, tmp_path: Path, capsys: Any) -> None:
    tensor = make()
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(tensor if is_alone else {"t": tensor, "w": torch.ones(2)}, source)
    assert convert(source, target) == 0
    found = torch.load(target, weights_only=True)
    assert same(found if is_alone else found["t"], tensor)
    assert main.run(["verify", str(target), "--checks", "bytes,whole"]) == 0
    assert convert(source, target, "--extras", "drop") == 0
    assert same(*(torch.load(path) if is_alone else torch.load(path)["t"] for path in (source, target)))


def test_conjugate_views_are_resolved_where_the_format_has_no_bit(tmp_path: Path, capsys: Any) -> None:
    from safetensors.torch import load_file

    plain = torch.randn(3, 4, dtype=torch.complex64)
    state = {"z": plain, "c": plain.conj(), "i": plain.clone().conj().mul(1), "tied": plain.conj()}
    torch.save(state, tmp_path / "a.pt")
    assert main.run(["convert", str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]) == 0
    assert "resolved" in capsys.readouterr().err
    found = load_file(tmp_path / "b.safetensors")
    for name, tensor in state.items():
        assert (
            torch.equal(found[name], tensor.resolve_conj().resolve_neg()) if name in found else name == "tied"
        )
    assert convert(tmp_path / "b.safetensors", tmp_path / "c.pt") == 0
    with open_checkpoint(tmp_path / "c.pt") as one, open_checkpoint(tmp_path / "b.safetensors") as other:
        assert one.record is not None
        assert other.record is not None
        assert one.record.digests == other.record.digests
    assert convert(tmp_path / "a.pt", tmp_path / "d.pt") == 0
    with open_checkpoint(tmp_path / "d.pt") as one, open_checkpoint(tmp_path / "c.pt") as other:
        assert one.record is not None
        assert other.record is not None
        assert one.record.digests == other.record.digests  # of the values, however the bytes lie


@pytest.mark.parametrize("bits", [{"conj": False}, {"neg": False}, {"conj": True, "neg": False}])
def test_a_bit_is_set_by_its_name(bits: dict[str, bool], tmp_path: Path) -> None:
    class Spelled:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __reduce__(self) -> Any:
            function, args = self.tensor.__reduce_ex__(2)
            return function, (*args[:6], bits)

    torch.save({"t": Spelled(torch.randn(3, dtype=torch.complex64))}, tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt")["t"]
    assert (loaded.is_conj(), loaded.is_neg()) == ("conj" in bits, "neg" in bits)
    assert convert(tmp_path / "a.pt", tmp_path / "b.pt") == 0
    assert same(torch.load(tmp_path / "b.pt")["t"], loaded)
    with ptsave.open(tmp_path / "a.pt") as opened:
        assert torch.equal(opened["t"], loaded.resolve_conj().resolve_neg())


def test_a_subclass_goes_by_its_plain_bytes(tmp_path: Path, capsys: Any) -> None:
    torch.save({"t": torch.randn(3).as_subclass(Marked)}, tmp_path / "a.pt")  # type: ignore[no-untyped-call]
    for name in ("b.pt", "b.safetensors"):
        assert main.run(["convert", str(tmp_path / "a.pt"), str(tmp_path / name), "--extras", "drop"]) == 0
        assert "plain tensors" in capsys.readouterr().err
        with ptsave.open(tmp_path / name) as opened:
            assert torch.equal(opened["t"], torch.load(tmp_path / "a.pt", weights_only=False)["t"])


def test_drop_reaches_what_is_no_tensor(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "epoch": 3, "m": {"_extra_state": {"a": 1, "b": [1, 2]}}}
    torch.save(state, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "b.safetensors", "--drop", "epoch") == 4
    assert convert(tmp_path / "a.pt", tmp_path / "b.safetensors", "--drop", "epoch", "--drop", "m.*") == 0


# --- sparse quantized modules ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("is_dynamic", [False, True])
def test_a_sparse_quantized_module(engine: str, is_dynamic: bool, tmp_path: Path, capsys: Any) -> None:
    """Its packed weight lies in blocks, which are listed; torch makes a dense one of them when it loads."""
    import torch.ao.nn.sparse.quantized as sparse

    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"torch was built without {engine}")
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = engine
        layer = (sparse.dynamic if is_dynamic else sparse).Linear(8, 8, row_block_size=1, col_block_size=4)
        weight, bias = torch.eye(8), torch.arange(8.0)
        layer.set_weight_bias(torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), bias, 1, 4)
        torch.save(nn.Sequential(layer), tmp_path / "m.pt")
        torch.save(nn.Sequential(layer).state_dict(), tmp_path / "s.pt")
    finally:
        torch.backends.quantized.engine = before
    assert verdict(tmp_path / "m.pt", capsys)[0] == 0
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        found = {name.removeprefix("0.") for name in checkpoint.tensors}
        packed = [name for name in found if name.startswith("_packed_params._packed_params.")]
        assert found - {*packed} == (set() if is_dynamic else {"scale", "zero_point"})
        assert bytes_of_torch(bias) in map(bytes_of, checkpoint.tensors.values())
        assert len(packed) == 6
    assert convert(tmp_path / "m.pt", tmp_path / "state.pt") == 4
    with open_checkpoint(tmp_path / "s.pt") as checkpoint:
        listed = checkpoint.tensors["0._packed_params._packed_params.0.int_repr"]
        assert bytes_of(listed) == bytes_of_torch((weight * 10).to(torch.int8))


# --- attributes ---------------------------------------------------------------------------------------


def test_plain_attributes_of_a_parameter_are_noted(tmp_path: Path, capsys: Any) -> None:
    """They are what trainings mark parameters with; no state dict has them, and no value depends on them."""
    source = tmp_path / "a.pt"
    torch.save(_tagged({"tag": "x", "partition_dim": 0, "axes": ("in", "out")}), source)
    assert verdict(source, capsys)[0] == 0
    assert convert(source, tmp_path / "b.safetensors") == 0
    capsys.readouterr()
    assert main.run(["inspect", str(source), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert any("'tag'" in note and "'partition_dim'" in note for note in result["notes"])
    assert not result["left_out"]


@pytest.mark.parametrize(
    "state",
    [
        {"requires_grad": False},
        {"_private": 1},
        {"_is_buffer": torch.ones(2)},
        {"_dynamo_static_input_type": {"w": torch.ones(2)}},
        {"tag": {"w": torch.ones(2)}},
        {"tag": ["a", torch.ones(2)]},
        {"tag": print},
    ],
)
def test_other_attributes_of_a_parameter_are_left_out(state: Any, tmp_path: Path, capsys: Any) -> None:
    torch.save(_tagged(state), tmp_path / "a.pt")
    assert verdict(tmp_path / "a.pt", capsys)[0] == 1
    assert convert(tmp_path / "a.pt", tmp_path / "b.safetensors") == 4


def test_what_is_torchs_own_of_a_tensors_attributes() -> None:
    classes = (*torch.Tensor.__mro__, *nn.Parameter.__mro__)
    settable = {
        name for kind in classes for name, value in vars(kind).items() if hasattr(type(value), "__set__")
    }
    assert {name for name in settable if not name.startswith("_")} <= OWN_ATTRIBUTES


@pytest.mark.parametrize("num_elements", [3, 300_000])
def test_arrays_in_attributes_of_a_module(num_elements: int, tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "a.pt"
    module = Module()
    module.anchors = {"small": [np.ones(num_elements, np.float32)]}  # type: ignore[assignment]
    torch.save(module, source)
    code, findings = verdict(source, capsys)
    assert code == 1
    failed = [finding["where"] for finding in findings if finding["level"] == "fail"]
    assert failed == ["anchors.small.0"]
    assert convert(source, tmp_path / "b.safetensors") == 4
    assert convert(source, tmp_path / "b.safetensors", "--extras", "drop") == 0
    module.anchors = module.table = np.array([], np.float32)  # type: ignore[assignment]
    torch.save({"model": module, "rng": np.arange(9)}, source)
    assert verdict(source, capsys)[0] == 0


# --- archives in archives -----------------------------------------------------------------------------


def _with_a_record_more(data: bytes) -> bytes:
    """A torch zip with a storage that its pickle does not name."""
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a") as archive:
        top = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{top}/data/9", b"12345678")
    return stream.getvalue()


@pytest.mark.parametrize("item", [torch.ones(3), {"a": torch.ones(3), "n": 1}])
def test_records_inside_an_item_of_a_dcp_folder(item: Any, tmp_path: Path, capsys: Any) -> None:
    """The item is replaced by one with a storage more, and the metadata says where it ends."""
    folder = tmp_path / "d"
    stream = io.BytesIO()
    torch.save(item, stream)
    dcp.save({"w": torch.zeros(3) if isinstance(item, torch.Tensor) else "text"}, checkpoint_id=folder)
    assert verdict(folder, capsys)[0] == 0
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (index, place), *more = metadata.storage_data.items()
    assert not more
    data = _with_a_record_more(stream.getvalue())
    (folder / place.relative_path).write_bytes(data)
    metadata.storage_data[index] = replace(place, offset=0, length=len(data))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    code, findings = verdict(folder, capsys)
    assert code == 1
    assert ["record" in finding["where"] and "data/9" in finding["where"] for finding in findings] == [True]
    assert convert(folder, tmp_path / "b.safetensors") == 4


def test_records_inside_the_weights_of_an_exported_program(tmp_path: Path, capsys: Any) -> None:
    """The layout before torch 2.9: a torch zip as a record."""
    stream = io.BytesIO()
    torch.save({"w": torch.ones(3)}, stream)
    for weights, expected in ((stream.getvalue(), 0), (_with_a_record_more(stream.getvalue()), 1)):
        with zipfile.ZipFile(tmp_path / "p.pt2", "w") as archive:
            archive.writestr("serialized_exported_program.json", "{}")
            archive.writestr("serialized_state_dict.pt", weights)
            archive.writestr("serialized_constants.pt", b"")
            archive.writestr("version", "1.1")
        assert verdict(tmp_path / "p.pt2", capsys)[0] == expected


@pytest.mark.parametrize("name", ["data/weights/extra.pt", "data/executorch/model", "other/w.pt"])
def test_an_archive_in_an_exported_program_that_no_table_names(
    name: str, tmp_path: Path, capsys: Any
) -> None:
    """torch.export.load passes it over, and its tensors are in no program: they are left out."""
    torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.ones(1, 3),)), tmp_path / "p.pt2")
    stream = io.BytesIO()
    torch.save({"w": torch.ones(3)}, stream)
    assert verdict(tmp_path / "p.pt2", capsys)[0] == 0
    with zipfile.ZipFile(tmp_path / "p.pt2", "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/{name}", stream.getvalue())
    assert torch.export.load(tmp_path / "p.pt2").state_dict.keys() == {"weight", "bias"}
    code, findings = verdict(tmp_path / "p.pt2", capsys)
    assert code == 1
    assert [finding["where"].endswith(name) for finding in findings] == [True]
    assert convert(tmp_path / "p.pt2", tmp_path / "b.safetensors") == 4
    assert convert(tmp_path / "p.pt2", tmp_path / "b.safetensors", "--extras", "drop") == 0
