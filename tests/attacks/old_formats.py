"""Lies in TorchScript, torch.export and the tar format of torch before 0.1.10."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from . import torch_files as tf
from .pickles import EVIL, Name, New, dump
from .registry import DESCRIBED, REFUSED, SHOWN, add, attack
from .zips import DEFLATED, Entry, zeros_bomb, zip_bytes


def script(root: Any, *more: Entry, records: dict[str, bytes] | None = None) -> bytes:
    """A TorchScript archive. Source: torch/csrc/jit/docs/serialization.md."""
    made = tf.pt_entries(dump(root), records)
    return zip_bytes([*made, Entry("archive/constants.pkl", dump(())), *more])


CLASS = Name("__torch__", "M")


@attack(REFUSED, DESCRIBED, SHOWN, says="")
def torchscript_code_of_attack() -> bytes:
    """TorchScript code is a program for torch's interpreter, which reads and writes files if asked to."""
    code = b"class M(Module):\n  def forward(self):\n    torch.save(torch.from_file('/etc/passwd'), 'x')\n"
    return script(New(CLASS, state={"w": tf.tensor()}), Entry("archive/code/__torch__.py", code))


@attack(REFUSED)
def torchscript_tensor_outside() -> bytes:
    return script(New(CLASS, state={"w": tf.tensor(offset=9)}))


@attack(REFUSED)
def torchscript_constant_outside() -> bytes:
    entries = tf.pt_entries(dump(New(CLASS, state={"w": tf.tensor()})))
    return zip_bytes([*entries, Entry("archive/constants.pkl", dump((tf.tensor(offset=9),)))])


@attack(REFUSED)
def torchscript_constants_are_garbage() -> bytes:
    entries = tf.pt_entries(dump(New(CLASS, state={"w": tf.tensor()})))
    return zip_bytes([*entries, Entry("archive/constants.pkl", b"\xff\xff")])


@attack(REFUSED, SHOWN, DESCRIBED, says="")
def torchscript_module_in_itself() -> bytes:
    root = b"\x80\x02c__torch__\nM\n)\x81q\x01}X\x02\x00\x00\x00meh\x01sb."
    entries = tf.pt_entries(root)
    return zip_bytes([*entries, Entry("archive/constants.pkl", dump(()))])


@attack(REFUSED, SHOWN, DESCRIBED, says="")
def torchscript_root_is_a_number() -> bytes:
    return script(7)


@attack(REFUSED)
def torchscript_deflate_bomb_of_code() -> bytes:
    lie = {"size": 2**31, "crc": 0}
    bomb = Entry("archive/constants.pkl", raw=zeros_bomb(2048), method=DEFLATED, local=lie, central=lie)
    return zip_bytes([*tf.pt_entries(dump(New(CLASS, state={"w": tf.tensor()}))), bomb])


def pt2(files: Mapping[str, bytes]) -> bytes:
    """A `.pt2` archive. Source: torch/export/pt2_archive/constants.py."""
    made = {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
        "models/model.json": b"{}",
        "data/weights/model_weights_config.json": b'{"config":{}}',
        "version": b"3\n",
    }
    return zip_bytes([Entry(f"archive/{name}", data) for name, data in (made | dict(files)).items()])


def pt2_weight(**lies: Any) -> bytes:
    """The configuration of one pickle-free weight, with lies in its fields."""
    meta = {
        "dtype": 7,
        "sizes": [{"as_int": 4}],
        "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "layout": 7,
    }
    weight = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta}
    for key, value in lies.items():
        (meta if key in meta else weight)[key] = value
    return json.dumps({"config": {"w": weight}}).encode()


PT2_CONFIGS: dict[str, bytes] = {
    "is_garbage": b"{",
    "is_a_list": b"[]",
    "nested_deep": b"[" * 100_000 + b"]" * 100_000,
    "config_is_a_list": b'{"config":[1]}',
    "duplicate_weight": pt2_weight()[:-2] + b"," + pt2_weight()[len(b'{"config": {') :],
    "path_outside": pt2_weight(path_name="../../../x"),
    "path_missing": pt2_weight(path_name="weight_9"),
    "path_is_a_number": pt2_weight(path_name=7),
    "meta_is_text": pt2_weight(tensor_meta="x"),
    "huge_sizes": pt2_weight(sizes=[{"as_int": 2**62}]),
    "one_too_many": pt2_weight(sizes=[{"as_int": 5}]),
    "negative_size": pt2_weight(sizes=[{"as_int": -4}]),
    "true_as_size": pt2_weight(sizes=[{"as_int": True}]),
    "negative_stride": pt2_weight(strides=[{"as_int": -1}]),
    "rank_differs": pt2_weight(strides=[{"as_int": 1}, {"as_int": 1}]),
    "negative_offset": pt2_weight(storage_offset={"as_int": -1}),
    "dtype_999": pt2_weight(dtype=999),
    "dtype_is_text": pt2_weight(dtype="float32"),
    "symbolic_size": pt2_weight(sizes=[{"as_expr": {"expr_str": "__import__('os')"}}]),
}


def _pt2(config: bytes) -> Callable[[], bytes]:
    return lambda: pt2({"data/weights/model_weights_config.json": config, "data/weights/weight_0": tf.FOUR})


for _name, _data in PT2_CONFIGS.items():
    add(f"pt2_{_name}", "old_formats", _pt2(_data), REFUSED, file="attack.pt2")


@attack(REFUSED, DESCRIBED, says="os.system")
def pt2_pickled_weight() -> bytes:
    config = pt2_weight(use_pickle=True)
    return pt2({"data/weights/model_weights_config.json": config, "data/weights/weight_0": tf.pt(EVIL)})


@attack(REFUSED, says="two checkpoints in one")
def pt2_of_both_layouts() -> bytes:
    """torch.export.load takes the new one, and where that fails the old one."""
    weights = tf.pt(OrderedDict(w=tf.tensor()))
    old = {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": weights}
    with zipfile.ZipFile(io.BytesIO(pt2({}))) as new:
        entries = [Entry(name, new.read(name)) for name in new.namelist()]
    return zip_bytes([*entries, *(Entry(name, data) for name, data in old.items())])


# torch before 0.1.10


def tar(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@attack(REFUSED, DESCRIBED, says="os.system")
def tar_pickle_is_a_payload() -> bytes:
    return tar(sys_info=dump(tf.SYSTEM_INFO), pickle=dump(EVIL), storages=dump(0), tensors=dump(0))


@attack(REFUSED)
def tar_storage_count_huge() -> bytes:
    return tar(sys_info=dump(tf.SYSTEM_INFO), pickle=dump({}), storages=dump(2**40), tensors=dump(2**40))


@attack(REFUSED)
def tar_member_size_lies() -> bytes:
    data = bytearray(tar(sys_info=dump(tf.SYSTEM_INFO), pickle=dump({}), storages=dump(0), tensors=dump(0)))
    data[124:136] = b"77777777777\0"
    return bytes(data)


@attack(REFUSED, SHOWN)
def tar_symlink_member() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return out.getvalue()
