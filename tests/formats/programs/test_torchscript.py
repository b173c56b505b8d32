"""TorchScript archives, checked against `torch.jit.load(f).state_dict()`."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ptsave import convert
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import TABLE
from ptsave.core.finding import Kind
from ptsave.core.leaves import state_dict_of
from ptsave.core.nodes import TensorEntry
from ptsave.errors import CorruptError, LimitError
from ptsave.formats import open_checkpoint
from ptsave.formats.programs import script_code
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from tests.attacks import torch_files as tf
from tests.attacks.large_headers import scripted
from tests.attacks.pickles import dump
from tests.attacks.zips import Entry, zip_bytes
from tests.formats.torch.test_read import repacked
from tests.formats.torch_reading import assert_holds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2, bias=False)
        self.plain = torch.ones(3)
        self.register_buffer("table", torch.arange(2.0))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("none", None)
        self.count = 3
        self.sizes = [1, 2]
        self.names = {"a": "b"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.linear(x) + self.plain[:2], self.table)


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(Inner(), torch.nn.BatchNorm1d(2), torch.nn.ReLU())
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.again = self.first[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mul(self.again(self.first(x)), self.scale)


@pytest.fixture(params=["script", "trace"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = Outer().eval()
    made: Any = (
        torch.jit.script(model) if request.param == "script" else torch.jit.trace(model, torch.ones(3, 2))
    )
    path = tmp_path / "m.pt"
    made.save(str(path))
    return path


def test_names_order_values_and_ties(archive: Path) -> None:
    expected = torch.jit.load(str(archive)).state_dict()
    with open_checkpoint(archive) as checkpoint:
        assert checkpoint.format == "torchscript"
        state = Checkpoint("", archive, state_dict_of(checkpoint.root))
        assert_holds(state, expected)
        others = {*checkpoint.tensors} - {*expected}
        assert {name.rpartition(".")[2] for name in others if not name.startswith("CONSTANTS.")} <= {
            "plain",
            "scratch",
        }
        assert not checkpoint.accounts.left_out
        assert any("TorchScript code" in note for note in checkpoint.notes)
        assert checkpoint.num_code_files > 0
        assert not checkpoint.globals  # every class is the archive's own
        assert not any(isinstance(leaf, TensorEntry) for leaf in checkpoint.data.values())


def test_a_class_that_the_code_does_not_define_is_named(archive: Path, tmp_path: Path) -> None:
    """torch would look for it elsewhere: among the classes that C++ extensions register."""
    path = tmp_path / "without.pt"
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(path, "w") as part:
        for name in whole.namelist():
            if "/code/" not in name:
                part.writestr(name, whole.read(name))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.num_code_files == 0
        assert checkpoint.globals
        assert all(name.startswith("__torch__.") for name in checkpoint.globals)


def test_safe_warns_of_the_program(archive: Path) -> None:
    with open_checkpoint(archive) as checkpoint:
        (finding,) = safe(Subject(checkpoint))
    assert (finding.level, "program" in finding.message) == ("warn", True)


class Loading(torch.nn.Module):
    """What its code makes of its state is what torch loads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w

    @torch.jit.export
    def __getstate__(self) -> dict[str, torch.Tensor]:
        return {"w": self.w}

    @torch.jit.export
    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.w = state["w"] * 7
        self.training = False


class Packing(Loading):
    """As torch's quantized modules are: the state is no state dict, and there is none."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.w = torch.ones(2)

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, int]:  # type: ignore[override]
        return self.w, 3

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, int]) -> None:  # type: ignore[override]
        self.w = state[0]
        self.training = False


def test_tensors_that_the_code_makes_anew_are_no_tensors_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.script(Loading()).save(str(path))
    assert torch.jit.load(str(path)).state_dict()["w"].tolist() == [7, 7]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.dropped == ["what a class's own code (__setstate__) makes of its tensors"]
    torch.jit.script(Packing()).save(str(path))
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.dropped
        assert list(checkpoint.tensors) == ["0"]


WRITES = [
    "torch.save(s, FILE)",
    "ops.aten.save(s, FILE)",
    "t = torch\n    t.save(s, FILE)",
    "torch \\\n  . save(s, FILE)",
    'getattr(torch, "save")(s, FILE)',
    'getattr(torch, "s\\141" "v" """e""")(s, FILE)',
]


@pytest.mark.parametrize("call", WRITES)
def test_safe_fails_for_code_that_writes_a_file(call: str, tmp_path: Path) -> None:
    path, written = tmp_path / "m.pt", tmp_path / "written"
    torch.jit.script(Loading()).save(str(path))

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if not name.endswith("__torch__/tests/formats/programs/test_torchscript.py"):
            return name, data
        text = data.decode().replace(", 7)\n", f", 7)\n    s = torch.ones([2])\n    {call}\n")
        assert call in text
        return name, text.replace("FILE", f'"{written}"').encode()

    changed = repacked(path, change)
    torch.jit.load(str(changed))
    assert written.exists()
    with open_checkpoint(changed) as checkpoint:
        failed = [finding.where for finding in safe(Subject(checkpoint)) if finding.level == "fail"]
    assert failed == ["torch.save"]


def test_plain_attributes_are_data(tmp_path: Path) -> None:
    torch.jit.script(Outer().eval()).save(str(tmp_path / "m.pt"))
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert checkpoint.data["first.0.count"] == 3
        assert checkpoint.data["first.0.sizes"] == [1, 2]
        assert checkpoint.data["first.0.names.a"] == "b"
        assert checkpoint.data["training"] is False


def test_classes_without_a_list_of_buffers(tmp_path: Path) -> None:
    """As torch before 1.6 wrote them; torch then finds no buffers either."""
    torch.jit.script(Outer().eval()).save(str(tmp_path / "m.pt"))

    def strip(name: str, data: bytes) -> tuple[str, bytes]:
        if not name.endswith(".py"):
            return name, data
        lines = data.split(b"\n")
        return name, b"\n".join(line for line in lines if not line.startswith(b"  __buffers__"))

    path = repacked(tmp_path / "m.pt", strip)
    expected = torch.jit.load(str(path)).state_dict()
    assert "first.0.table" not in expected
    with open_checkpoint(path) as checkpoint:
        assert_holds(Checkpoint("", path, state_dict_of(checkpoint.root)), expected)
        assert "first.0.table" in checkpoint.tensors  # all tensors are listed, whatever the code says


@pytest.mark.parametrize(
    "spelled",
    [
        "  __parameters__=['scale']",
        '  __parameters__ = [  # a comment\n "scale" ,\n]',
        '  __parameters__ \t=\t[\n    "sc\\\\u0061le".strip()]',
        "  pass",
    ],
)
def test_the_code_spells_its_lists_in_another_way(spelled: str, tmp_path: Path) -> None:
    torch.jit.script(Outer().eval()).save(str(tmp_path / "m.pt"))

    def spell(name: str, data: bytes) -> tuple[str, bytes]:
        return name, data.replace(b'  __parameters__ = ["scale", ]', spelled.encode())

    path = repacked(tmp_path / "m.pt", spell)
    with open_checkpoint(tmp_path / "m.pt") as whole, open_checkpoint(path) as checkpoint:
        assert {*checkpoint.tensors} == {*whole.tensors}
        assert ("scale" in state_dict_of(checkpoint.root)) == (
            "pass" not in spelled and "strip" not in spelled
        )


def test_a_damaged_archive(archive: Path) -> None:
    path = repacked(archive, lambda name, data: (name, data[:-1] if name.endswith("data/0") else data))
    with pytest.raises(CorruptError, match="storage '0'"):
        open_checkpoint(path)


def test_a_script_model_does_not_need_torch(archive: Path) -> None:
    code = f"import sys; from ptsave.formats import open_checkpoint as o; o({str(archive)!r}).tensors; "
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Holder(torch.nn.Module):
    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Colour(Enum):
    RED = 1
    BLUE = 2


class Painter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.colour = Colour.BLUE
        self.other = Colour.BLUE
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.colour == Colour.RED or self.other == Colour.RED:
            return x
        return x + self.weight


def test_enums_are_data(tmp_path: Path) -> None:
    """torch pickles one as a call of its class with the bare value."""
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Painter()), path)
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, torch.jit.load(str(path)).state_dict())
        assert checkpoint.data["colour.state"] == 2
        assert not checkpoint.globals


def pickled(code: bytes) -> bytes:
    """A TorchScript archive whose module is pickled as `code` has it."""
    python = b"class M(Module):\n  training : bool\n"
    made = [*tf.pt_entries(code), Entry("archive/constants.pkl", dump(()))]
    return zip_bytes([*made, Entry("archive/code/__torch__.py", python)])


MODULE = b"\x80\x02c__torch__\nM\n)\x81}(X\x08\0\0\0training\x89ub."
AN_OPCODE = {
    "PROTO": b"\x80\x02",
    "POP": b"N0",
    "DUP": b"20",
    "POP_MARK": b"(1",
    "INT": b"I1\n0",
    "LONG": b"L1L\n0",
    "LONG4": b"\x8b\1\0\0\0\1",
    "FLOAT": b"F1.0\n",
    "UNICODE": b"Vx\n",
    "STRING": b"S'x'\n",
    "SHORT_BINSTRING": b"U\1x",
    "SHORT_BINUNICODE": b"\x8c\1x",
    "BINBYTES": b"B\1\0\0\0x",
    "APPEND": b"]Na",
    "EMPTY_SET": b"\x8f",
    "MEMOIZE": b"}\x94",
    "PUT": b"}p0\n",
    "FRAME": b"\x95\4\0\0\0\0\0\0\0",
    "LONG1 of one byte": b"\x8a\1\1",
}
OTHERWISE = {
    **{name: MODULE[:2] + code + MODULE[2:] for name, code in AN_OPCODE.items()},
    "protocol 3": b"\x80\x03" + MODULE[2:],
    "no protocol": MODULE[2:],
    "two objects": MODULE[:-1] + b"N.",
    "no attributes": MODULE.replace(b"}(X\x08\0\0\0training\x89u", b"N"),
    "a dictionary that is None": MODULE.replace(b"\x89", b"ccollections\nOrderedDict\n)R(NNu"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_torchscripts_unpickler_does_not_read(name: str, tmp_path: Path) -> None:
    """It knows 32 opcodes and makes an object where its state is set; Python's reads all of these."""
    path = tmp_path / "m.pt"
    path.write_bytes(pickled(MODULE))
    assert torch.jit.load(path).training is False
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.globals
    path.write_bytes(pickled(OTHERWISE[name]))
    with pytest.raises(RuntimeError):
        torch.jit.load(path)
    with pytest.raises(CorruptError):
        open_checkpoint(path)


def test_an_object_that_torchscript_takes_for_a_number(tmp_path: Path) -> None:
    """Until its state is set, it is the number of its class to torch: another value where it is recalled."""
    path = tmp_path / "m.pt"
    path.write_bytes(pickled(MODULE.replace(b"\x81}", b"\x81q\0}").replace(b"\x89", b"h\0")))
    assert type(torch.jit.load(path).training) is int
    with pytest.raises(CorruptError, match="before its state is set"):
        open_checkpoint(path)


UNKNOWN = {
    "torch.float32": b"ctorch\nfloat32\n",
    "torch._utils._rebuild_tensor": b"ctorch._utils\n_rebuild_tensor\n",
    "torch.storage.UntypedStorage": b"ctorch.storage\nUntypedStorage\n",
    "torch.jit._pickle.restore_type_tag": b"ctorch.jit._pickle\nrestore_type_tag\n]X\4\0\0\0Dict\x86R",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_names_that_torchscripts_unpickler_does_not_know(name: str, tmp_path: Path) -> None:
    """They are harmless in a file of torch.save, and no loader reads them here."""
    path = tmp_path / "m.pt"
    path.write_bytes(pickled(MODULE.replace(b"\x89", UNKNOWN[name])))
    with pytest.raises(RuntimeError):
        torch.jit.load(path)
    with open_checkpoint(path) as checkpoint:
        assert [*checkpoint.globals] == [name]


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("dtype", [torch.quint4x2, torch.quint2x4])
def test_several_elements_in_a_byte(dtype: torch.dtype, tmp_path: Path) -> None:
    """torch.jit.save writes them, and torch.jit.load asks for as many bytes as there are elements."""
    quantized = torch.quantize_per_channel(torch.ones(2, 8), torch.ones(2), torch.zeros(2), 0, dtype)
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Holder(w=quantized)), path)
    with pytest.raises(RuntimeError, match="require a storage of at least"):
        torch.jit.load(path)
    with open_checkpoint(path) as checkpoint:
        failed = [finding for finding in bytes_(Subject(checkpoint)) if finding.level == "fail"]
    assert [finding.kind for finding in failed] == [Kind.NOT_LOADED]


LACKING = {
    "attribute": "\n  w : Tensor\n  j : int\n",
    "split": "\n\n # c\n  j  \\\n : \\\n int # = 3\n  w : Tensor\n",
    "name": '\n  w : Tensor\n  __annotations__["0"] = int\n',
}
DECLARED = {
    "constant": "\n  w : Tensor\n  j : Final[int] = 2\n",
    "comment": "\n  w : Tensor\n # j : int\n",
    "argument": "\n  w : Tensor\n  def f(self: __torch__.tests.formats.programs.test_torchscript.Holder,\n"
    "  j: int,\n  k: int) -> int:\n    return j\n",
}


@pytest.mark.parametrize("name", [*LACKING, *DECLARED])
def test_an_attribute_that_its_class_declares_and_the_pickle_lacks(name: str, tmp_path: Path) -> None:
    """`obj_loader` of import.cpp asks the pickle for each, and raises without a word of which."""
    path = tmp_path / "m.pt"
    torch.jit.script(Holder(w=torch.ones(2))).save(str(path))
    spelled = (LACKING | DECLARED)[name].encode()
    path = repacked(path, lambda record, data: (record, data.replace(b"\n  w : Tensor\n", spelled)))
    with open_checkpoint(path) as checkpoint:
        failed = [finding for finding in bytes_(Subject(checkpoint)) if finding.level == "fail"]
    assert [finding.kind for finding in failed] == [Kind.NOT_LOADED] * (name in LACKING)
    if name in DECLARED:
        assert torch.jit.load(path).w.equal(torch.ones(2))
        return
    assert repr("0" if name == "name" else "j") in failed[0].message
    with pytest.raises(IndexError):
        torch.jit.load(path)


@pytest.mark.parametrize("place", ["foo", "npu", "xla"])
def test_a_storage_on_what_is_no_device_of_torchs_own(place: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.script(Holder(w=torch.ones(2))).save(str(path))
    path = repacked(
        path, lambda name, data: (name, data.replace(b"\3\0\0\0cpu", b"\3\0\0\0" + place.encode()))
    )
    with open_checkpoint(path) as checkpoint:
        failed = [finding.kind for finding in bytes_(Subject(checkpoint)) if finding.level == "fail"]
    if place == "xla":
        assert not failed
        assert torch.jit.load(path, map_location="cpu").w.equal(torch.ones(2))
        return
    assert failed == [Kind.NOT_LOADED]
    with pytest.raises(RuntimeError, match="Expected one of cpu"):
        torch.jit.load(path, map_location="cpu")


QUANTIZED = ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
ELEMENTS = [d.name for d in TABLE if d.name not in QUANTIZED and not re.fullmatch(r"u?int[1-7]", d.name)]


def test_every_dtype(tmp_path: Path) -> None:
    """TorchScript names storage classes that torch.load has not: `Float8_e4m3fnStorage`, `UInt16Storage`."""
    raw = torch.randint(0, 2, (3, 16), dtype=torch.uint8)
    path = tmp_path / "m.pt"
    buffers = {f"of_{name}": raw.clone().view(getattr(torch, name)) for name in ELEMENTS}
    torch.jit.save(torch.jit.script(Holder(**buffers)), path)
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, torch.jit.load(str(path)).state_dict())
        assert all(finding.level in ("ok", "warn") for finding in safe(Subject(checkpoint)))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_buffers(tmp_path: Path) -> None:
    """TorchScript numbers a layout, where torch.save names it; a coo tensor is never coalesced there."""
    twice = torch.sparse_coo_tensor([[0, 0, 2], [1, 1, 0]], [1.0, 2.0, 3.0], (3, 4))
    model = Holder(coo=twice, csr=torch.eye(3, dtype=torch.float64).to_sparse_csr(), dense=torch.ones(2))
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(model), path)
    with open_checkpoint(path) as checkpoint:
        assert all(finding.level in ("ok", "warn") for finding in safe(Subject(checkpoint)))
    convert(path, tmp_path / "m.safetensors", dense=True, extras="drop")
    converted = load_file(tmp_path / "m.safetensors")
    state = torch.jit.load(str(path)).state_dict()
    assert converted.keys() == state.keys()
    for name, value in state.items():
        assert converted[name].equal(value.to_dense()), name


def test_a_model_on_the_meta_device(tmp_path: Path) -> None:
    """Its records are empty: the tensors have a shape and no bytes."""
    path = tmp_path / "meta.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 4, device="meta")), path)
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.tensors
        assert checkpoint.data["weight"].name == "torch.meta"
        assert checkpoint.data["weight.size"] == (4, 3)


@pytest.mark.parametrize(
    "code",
    [
        b"".join(b"class a%d:\n" % i for i in range(3000)),
        b"class M(Module):\n  __parameters__ = [" + b"".join(b"'%x'," % i for i in range(3000)),
    ],
    ids=["classes", "parameters"],
)
def test_names_in_code_have_a_cap(code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script_code.MAX_CODE_NAMES == 250_000
    monkeypatch.setattr(script_code, "MAX_CODE_NAMES", 2500)
    (tmp_path / "a.pt").write_bytes(scripted(code))
    with pytest.raises(LimitError, match="code_names = 2500"):
        open_checkpoint(tmp_path / "a.pt")


def test_lists_in_comments_cost_one_reading(tmp_path: Path) -> None:
    """A list begins in each comment's every piece; read from each, they would cost hours."""
    code = b"class M(Module):\n  __parameters__ = [" + b"# __parameters__ = [" * 100_000 + b"\n'w']\n"
    (tmp_path / "a.pt").write_bytes(scripted(code))
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert [*checkpoint.tensors] == ["w"]
