"""torch.export's archives, checked against the exported program."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptsave.cli import main
from ptsave.core.nodes import Opaque
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from tests.attacks import torch_files as tf
from tests.attacks.pickles import dump
from tests.formats.payload import FUNCTION, NAME, PAYLOAD, is_named, ran
from tests.formats.torch_reading import assert_same

__all__ = ["ran"]


class Plain(nn.Module):
    """Two layers that share a weight, and a buffer that is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("part", torch.arange(4.0)[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.part


class WithConstants(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scratch


def export(model: nn.Module, path: Path) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (torch.randn(2, 3),))
        torch.export.save(program, path)
        return torch.export.load(path)


def test_the_state_dict(tmp_path: Path) -> None:
    program = export(Plain(), tmp_path / "m.pt2")
    with open_checkpoint(tmp_path / "m.pt2") as checkpoint:
        assert checkpoint.format == "pt2"
        assert checkpoint.tensors.keys() == program.state_dict.keys()
        for name, tensor in program.state_dict.items():
            entry = checkpoint.tensors[name]
            assert_same(entry, tensor)
            assert entry.kind == ("parameter" if isinstance(tensor, nn.Parameter) else "tensor")
            assert entry.requires_grad == tensor.requires_grad
        weights = [checkpoint.tensors[f"{layer}.weight"] for layer in ("first", "second")]
        assert weights[0].view == weights[1].view
        assert checkpoint.notes == ["holds the exported program model, which is left out"]
        assert [finding.level for check in checkpoint.checks for finding in check()] == ["ok"]


def test_constants_stand_beside_the_state_dict(tmp_path: Path) -> None:
    program = export(WithConstants(), tmp_path / "m.pt2")
    with open_checkpoint(tmp_path / "m.pt2") as checkpoint:
        state = {f"state_dict.{name}": tensor for name, tensor in program.state_dict.items()}
        constants = {f"constants.{name}": tensor for name, tensor in program.constants.items()}
        assert checkpoint.tensors.keys() == (state | constants).keys()
        for name, tensor in (state | constants).items():
            assert_same(checkpoint.tensors[name], tensor)


class OnlyConstants(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([1.0, 2.0, 3.0])


def test_constants_without_a_state_dict(tmp_path: Path) -> None:
    """An empty state dict is not in the way of a format that holds tensors only."""
    program = export(OnlyConstants(), tmp_path / "m.pt2")
    (value,) = program.constants.values()
    assert main.run(["convert", str(tmp_path / "m.pt2"), str(tmp_path / "m.safetensors"), "-q"]) == 0
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        (entry,) = checkpoint.tensors.values()
        assert_same(entry, value)


def saved(value: Any) -> bytes:
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


@pytest.mark.parametrize(
    "names",
    [
        ("serialized_exported_program.json", "serialized_state_dict.json", "none"),
        ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"),
        ("m/models/model.json", "m/data/weights/model.pt", "m/data/constants/model.pt"),
    ],
    ids=["torch 2.1", "torch 2.6", "torch 2.8"],
)
def test_layouts_of_older_torch(names: tuple[str, str, str], tmp_path: Path) -> None:
    state, constants = {"w": torch.randn(2, 3), "n": torch.tensor(4)}, {"c": torch.ones(2)}
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr(names[0], "{}")
        if names[0].startswith("m/"):
            archive.writestr("m/archive_format", "pt2")
            archive.writestr("m/version", "3")
        archive.writestr(names[1], saved(state))
        if names[2] != "none":
            archive.writestr(names[2], saved(constants))
    with open_checkpoint(tmp_path / "m.pt2") as checkpoint:
        assert checkpoint.format == "pt2"
        prefix = "" if names[2] == "none" else "state_dict."
        for name, tensor in state.items():
            assert_same(checkpoint.tensors[prefix + name], tensor)
        if prefix:
            assert_same(checkpoint.tensors["constants.c"], constants["c"])


def payload(**changes: Any) -> dict[str, Any]:
    meta = {
        "dtype": 7,
        "sizes": [{"as_int": 2}, {"as_int": 3}],
        "strides": [{"as_int": 3}, {"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "requires_grad": False,
        "layout": 7,
        "device": {"type": "cpu", "index": None},
    }
    about = {"path_name": "weight_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    about |= {key: value for key, value in changes.items() if key in about}
    meta |= {key: value for key, value in changes.items() if key in meta}
    return about


def write(path: Path, config: Any, data: bytes = bytes(24), **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/version", "3")
        archive.writestr("m/models/model.json", "{}")
        archive.writestr("m/data/weights/weight_0", data)
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": config}))
        for name, held in extra.items():
            archive.writestr(f"m/{name.replace('__', '/')}", held)
    return path


@pytest.mark.parametrize(
    "config",
    [
        payload(storage_offset={"as_int": 1}),
        payload(sizes=[{"as_int": 3}, {"as_int": 3}]),
        payload(strides=[{"as_int": 4}, {"as_int": 1}]),
        payload(strides=[{"as_int": 1}]),
        payload(sizes=[{"as_int": -2}, {"as_int": 3}]),
        payload(sizes=[{"as_int": 2.0}, {"as_int": 3}]),
        payload(sizes=[{"as_int": True}, {"as_int": 3}]),
        payload(sizes=[{"as_expr": "s0"}, {"as_int": 3}]),
        payload(sizes=[{"as_int": 2, "as_expr": "s0"}, {"as_int": 3}]),
        payload(sizes=5),
        payload(device={"type": "meta", "index": None}),
        payload(dtype=99),
        payload(dtype=[7]),
        payload(path_name="../weights/weight_0"),
        payload(path_name=3),
        payload(tensor_meta=None),
        [1],
    ],
)
def test_tables_that_lie(config: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptError):
        open_checkpoint(write(tmp_path / "m.pt2", {"w": config}))


def test_what_has_no_bytes_or_no_strides_is_shown(tmp_path: Path) -> None:
    for config, data in ((payload(), b""), (payload(layout=1), bytes(24))):
        with open_checkpoint(write(tmp_path / "m.pt2", {"w": config}, data)) as checkpoint:
            assert checkpoint.tensors == {}
            assert isinstance(checkpoint.root["w"], Opaque)


def test_an_empty_record_is_named(program: bytes, tmp_path: Path) -> None:
    """What is exported with fake weights: torch.export.load makes zeros of them, without a word."""
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    repacked(path, data__weights__weight_0=b"")
    weight = torch.export.load(path).state_dict["first.weight"]
    assert not weight.any()
    with open_checkpoint(path) as checkpoint:
        left = [one.what for one in checkpoint.accounts.left_out]
        assert [what for what in left if "'first.weight'" in what]
        assert "first.weight" not in checkpoint.tensors


@pytest.mark.parametrize(
    "about", [{"device": {"type": "meta", "index": None}}, {"sizes": [{"as_int": 0}, {"as_int": 3}]}]
)
def test_an_empty_record_of_what_has_no_values(about: dict[str, Any], tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path / "m.pt2", {"w": payload(**about)}, b"")) as checkpoint:
        assert not checkpoint.accounts.left_out


def test_marks_of_the_inputs_are_no_loss(tmp_path: Path) -> None:
    x = torch.ones(2, 3)
    torch._dynamo.mark_dynamic(x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(nn.Linear(3, 3), (x,)), tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        assert any(b"_specialize_on" in archive.read(name) for name in archive.namelist())
    with open_checkpoint(tmp_path / "m.pt2") as checkpoint:
        assert not checkpoint.accounts.left_out


def subclass() -> bytes:
    return saved(torch.ones(2))


@pytest.mark.parametrize(("data", "shown"), [(subclass, "tensor"), (lambda: b"", "nothing")])
def test_pickled_payloads_are_read_inertly(data: Callable[[], bytes], shown: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt2", {"w": payload(use_pickle=True)}, data())
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == (["w"] if shown == "tensor" else [])


def test_what_else_is_there_is_noted(tmp_path: Path) -> None:
    extra = {"data__aotinductor__model__a.so": b"\x7fELF", "extra__notes.txt": b"hello"}
    with open_checkpoint(write(tmp_path / "m.pt2", {"w": payload()}, **extra)) as checkpoint:
        assert any("compiled code" in note for note in checkpoint.notes)
        assert any("notes.txt" in note for note in checkpoint.notes)


def repacked(path: Path, **changed: bytes | None) -> Path:
    """An archive with some records replaced or added (`__` for a slash, `_DOT_` for a dot)."""
    new = {name.replace("__", "/").replace("_DOT_", "."): data for name, data in changed.items()}
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(records)).partition("/")[0]
    records |= {f"{top}/{name}": data for name, data in new.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            if data is not None:
                archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    export(WithConstants(), path)
    return path.read_bytes()


def with_constant(path: str) -> bytes:
    about = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}
    return json.dumps({"config": {"c": about}}).encode()


def of_program(path: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    with zipfile.ZipFile(path) as archive:
        text = json.loads(archive.read("m/models/model.json"))
    change(text["graph_module"]["graph"])
    return json.dumps(text).encode()


def code_of(path: Path, text: str) -> bytes:
    def change(graph: dict[str, Any]) -> None:
        graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    return of_program(path, change)


def guard_of(path: Path, text: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        program = json.loads(archive.read("m/models/model.json"))
    return json.dumps(program | {"guards_code": [text]}).encode()


def name_of(path: Path, name: str) -> bytes:
    text = json.dumps(json.loads(code_of(path, "2")))
    return text.replace('"x"', json.dumps(name)).encode()


def spec_of(path: Path, module: str) -> bytes:
    """The program with a defaultdict among its outputs, whose factory is in `module`."""
    with zipfile.ZipFile(path) as archive:
        program = json.loads(archive.read("m/models/model.json"))
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    context = {"default_factory_module": module, "default_factory_name": FUNCTION, "dict_context": ["y"]}
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    tree = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
    call["out_spec"] = json.dumps([1, tree])
    return json.dumps(program).encode()


BUFFER_CODE = f'training"),exec("import {NAME}\\nx={NAME}\\x2e{FUNCTION}()'


def renamed(path: Path, record: str, name: str) -> bytes:
    """The record with another name for the buffer that is a constant."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"m/{record}").replace(b'"scratch"', json.dumps(name).encode())


WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
CALL = f"__import__('{NAME}').{FUNCTION}()"
PLACES: dict[str, Callable[[Path], dict[str, bytes | None]]] = {
    "sample inputs": lambda path: {"data/sample_inputs/model.pt": tf.pt(PAYLOAD)},
    "legacy weights": lambda path: {"data/weights/model.pt": tf.pt(PAYLOAD)},
    "legacy constants": lambda path: {"data/constants/model.pt": tf.pt(PAYLOAD)},
    "a pickled constant": lambda path: {
        CONSTANTS: with_constant("tensor_9"),
        "data/constants/tensor_9": tf.pt(PAYLOAD),
    },
    "a pickled weight": lambda path: {
        WEIGHTS: with_constant("weight_9"),
        "data/weights/weight_9": tf.pt(PAYLOAD),
    },
    "an opaque constant": lambda path: {
        CONSTANTS: with_constant("opaque_obj_0"),
        "data/constants/opaque_obj_0": dump(PAYLOAD),
    },
    "an opaque constant said to be raw": lambda path: {
        CONSTANTS: json.dumps({"config": {"c": payload(path_name="opaque_obj_0", dtype=1)}}).encode(),
        "data/constants/opaque_obj_0": dump(PAYLOAD),
    },
    "a plain pickle as sample inputs": lambda path: {"data/sample_inputs/model.pt": dump(PAYLOAD)},
    "an expression": lambda path: {"models/model.json": code_of(path, CALL)},
    "a guard": lambda path: {"models/model.json": guard_of(path, CALL)},
    "a name": lambda path: {"models/model.json": name_of(path, f"x={CALL}")},
    "a tensor that is called metadata": lambda path: {
        "models/model.json": code_of(path, CALL).replace(b'"x"', b'"metadata"')
    },
    "sample inputs in another case": lambda path: {
        "data/sample_inputs/model.pt": None,
        "DATA/sample_inputs/MODEL.pt": tf.pt(PAYLOAD),
    },
    "the name of a buffer": lambda path: {
        "models/model.json": renamed(path, "models/model.json", BUFFER_CODE),
        CONSTANTS: renamed(path, CONSTANTS, BUFFER_CODE),
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_what_torch_export_load_runs_is_named(
    place: str, program: bytes, tmp_path: Path, ran: list[bool]
) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    changed = PLACES[place](path)
    repacked(path, **{name.replace("/", "__").replace(".", "_DOT_"): data for name, data in changed.items()})
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(path).module()(torch.ones(2, 3))
    assert ran
    assert is_named(path)


def test_a_factory_in_a_tree_of_arguments_is_named(program: bytes, tmp_path: Path, ran: list[bool]) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    repacked(path, models__model_DOT_json=spec_of(path, NAME))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.load(path).module()(torch.ones(2, 3))["missing"]
    assert ran
    assert is_named(path)


@pytest.mark.parametrize("key", ["x: [y for torch.Size.z in [w]]", "x=1", "x)", 'x"', "x\n"])
def test_a_key_that_becomes_code_is_named(key: str, program: bytes, tmp_path: Path) -> None:
    """Keyword arguments' names are those of the function that torch makes of the program."""
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    spec = {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": []}
    with zipfile.ZipFile(path) as archive:
        text = json.loads(archive.read("m/models/model.json"))
    text["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, spec])
    repacked(path, models__model_DOT_json=json.dumps(text).encode())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.globals.keys() == {key}


def test_a_factory_of_python_s_own_is_none(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    repacked(path, models__model_DOT_json=spec_of(path, "builtins").replace(FUNCTION.encode(), b"list"))
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.globals


OLD_PLACES = ("state_dict.pt", "constants.pt", "example_inputs.pt", "state_dict.json", "constants.json")


@pytest.mark.parametrize("place", OLD_PLACES)
def test_what_torch_export_load_runs_of_the_layout_before_is_named(
    place: str, tmp_path: Path, ran: list[bool]
) -> None:
    from torch._export.serde.schema import SCHEMA_VERSION

    path = tmp_path / "m.pt2"
    from torch._export.serde.serialize import serialize  # seconds of imports for one line

    made = serialize(export(WithConstants(), path))
    parts = {
        "exported_program.json": made.exported_program,
        "state_dict.pt": made.state_dict,
        "constants.pt": made.constants,
        "example_inputs.pt": made.example_inputs,
    }
    parts.pop(place.replace(".json", ".pt"))
    parts[place] = tf.pt(PAYLOAD)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        for name, data in parts.items():
            archive.writestr(f"serialized_{name}", data)
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(path)
    assert ran
    assert is_named(path)


PACKED = "__torch__.torch.classes.quantized.LinearPackedParamsBase"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what is deprecated
def test_an_object_of_a_class_in_c_is_named(
    program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    held = torch._C._pickle_save(torch.ops.quantized.linear_prepack(weight, None))
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    about = with_constant("custom_obj_0")
    repacked(path, data__constants__model_constants_config_DOT_json=about)
    repacked(path, data__constants__custom_obj_0=held)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.globals.keys() == {PACKED}


@pytest.mark.parametrize("held", [tf.pt(PAYLOAD), dump(PAYLOAD), b"", tf.pt_raw(b"N.")[:-9]])
def test_another_archive_in_its_place(held: bytes, program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    repacked(path, data__constants__model_constants_config_DOT_json=with_constant("custom_obj_0"))
    repacked(path, data__constants__custom_obj_0=held)
    assert is_named(path)


@pytest.mark.parametrize("name", ["extra/inputs.pt", "data/weights/weight_99", "data/executorch/x"])
def test_an_archive_that_no_table_names(name: str, program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    repacked(path, **{name.replace("/", "__").replace(".", "_DOT_"): tf.pt(PAYLOAD)})
    with open_checkpoint(path) as checkpoint:
        assert f"{NAME}.{FUNCTION}" in checkpoint.globals


@pytest.mark.parametrize("name", ["DATA/weights/x", "Models/x.json", "data/Sample_inputs/x"])
def test_records_that_torch_may_take_for_others(name: str, program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    with pytest.raises(CorruptError, match="may take the record"):
        open_checkpoint(repacked(path, **{name.replace("/", "__").replace(".", "_DOT_"): b"x"}))


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.ops.load_library", "_operator.attrgetter"),
        *("torch.ops.aten.__class__", "torch.ops.aten.__and__.__init__", "torch.ops.prim.__and__"),
    ],
)
def test_an_operator_that_is_none_of_torch_s(target: str, program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)

    def change(graph: dict[str, Any]) -> None:
        graph["nodes"][0]["target"] = target

    repacked(path, models__model_DOT_json=of_program(path, change))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.globals.keys() == {target}


def test_a_program_of_torch_s_own_is_only_warned_of(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, *, more: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            half = x[: x.shape[0] // 2 + 1] * more["a.b"][0]
            return half.relu() * ((half > 0) & (half < 9)), x.reshape(-1, max(1, x.shape[0] % 3)).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = torch.export.Dim("n", min=2, max=90)
        shapes = {"x": {0: size * 2}, "more": {"a.b": None}}
        args = (torch.ones(6, 3),), {"more": {"a.b": torch.ones(3)}}
        made = torch.export.export(Model(), *args, dynamic_shapes=shapes, strict=False)
        torch.export.save(made, tmp_path / "m.pt2")
    with open_checkpoint(tmp_path / "m.pt2") as checkpoint:
        assert not checkpoint.globals
        assert [finding.level for finding in safe(Subject(checkpoint))] == ["warn"]


def test_compiled_code_is_named(tmp_path: Path) -> None:
    extra = {"data__aotinductor__model__a.so": b"\x7fELF"}
    with open_checkpoint(write(tmp_path / "m.pt2", {"w": payload()}, **extra)) as checkpoint:
        assert checkpoint.globals.keys() == {"data/aotinductor/model"}


def test_two_dtypes_of_one_record(tmp_path: Path) -> None:
    """torch reads the record as the first one says, and views that."""
    config = {"a": payload(), "b": payload(dtype=4)}
    with pytest.raises(CorruptError, match="two dtypes"):
        open_checkpoint(write(tmp_path / "m.pt2", config))


@pytest.mark.parametrize("record", ["data_DOT_pkl", "constants_DOT_pkl"])
def test_an_archive_that_torch_load_reads_too(record: str, program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program)
    with pytest.raises(CorruptError, match="two checkpoints in one"):
        open_checkpoint(repacked(path, **{record: dump({})}))
