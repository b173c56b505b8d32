"""torch.export's archives, held against the exported program."""

from __future__ import annotations

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

from ptsave.core.nodes import Opaque
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from tests.formats.torch_reading import assert_same


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
    }
    about = {"path_name": "weight_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    about |= {key: value for key, value in changes.items() if key in about}
    meta |= {key: value for key, value in changes.items() if key in meta}
    return about


def write(path: Path, config: Any, data: bytes = bytes(24), **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
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
        payload(sizes=5),
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
