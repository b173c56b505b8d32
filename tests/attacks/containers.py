"""The same payload at every place where a container keeps a pickle."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from . import torch_files as tf
from .pickles import (
    EVIL,
    OPEN,
    TOUCH,
    Name,
    New,
    Pers,
    dump,
)
from .registry import DESCRIBED, REFUSED, SHOWN, attack
from .zips import DEFLATED, Entry, zip_bytes


@attack(REFUSED, DESCRIBED, says="os.system", fires=True)
def bare_pickle() -> bytes:
    return dump(EVIL)


@attack(REFUSED, DESCRIBED, says="os.system", fires=True)
def bare_pickle_protocol_0() -> bytes:
    return b"cos\nsystem\n(S" + repr(TOUCH).encode() + b"\ntR."


@attack(REFUSED, fires=True)
def bare_pickle_named_safetensors() -> bytes:
    """Whose length prefix, read as safetensors, is beyond the file."""
    return dump(EVIL)


@attack(DESCRIBED, says="os.system", fires=True)
def legacy_payload() -> bytes:
    return tf.legacy(EVIL, keys=(), storages=())


@attack(DESCRIBED, says="os.system")
def legacy_payload_beside_weights() -> bytes:
    return tf.legacy({"w": tf.legacy_tensor(), "x": EVIL})


@attack(REFUSED)
def legacy_magic_is_a_call() -> bytes:
    return tf.legacy({}, (), (), magic=EVIL)


@attack(REFUSED, DESCRIBED, says="os.system")
def legacy_system_info_is_a_call() -> bytes:
    return tf.legacy({}, (), (), info=EVIL)


@attack(REFUSED, DESCRIBED, says="os.system")
def legacy_storage_keys_are_a_call() -> bytes:
    return tf.legacy({"w": tf.legacy_tensor()}, keys=EVIL)


@attack(REFUSED, SHOWN)
def legacy_payload_after_the_storages() -> bytes:
    return tf.legacy({"w": tf.legacy_tensor()}) + dump(EVIL)


@attack(DESCRIBED, REFUSED, says="os.system")
def legacy_container_source() -> bytes:
    """A persistent id of kind `module` carries source code that old torch compared and could write out."""
    module = Pers(("module", Name("torch.nn.modules.linear", "Linear"), "/etc/passwd", OPEN))
    return tf.legacy([module, EVIL], (), ())


@attack(DESCRIBED, REFUSED, says="os.system")
def torchscript_data() -> bytes:
    entries = tf.pt_entries(dump(EVIL), {})
    return zip_bytes([*entries, Entry("archive/constants.pkl", dump(()))])


@attack(DESCRIBED, REFUSED, says="os.system")
def torchscript_constants() -> bytes:
    module = New(Name("__torch__", "M"), state={"w": tf.tensor()})
    entries = tf.pt_entries(dump(module))
    return zip_bytes([*entries, Entry("archive/constants.pkl", dump((EVIL,)))])


@attack(DESCRIBED, REFUSED, says="os.system", fires=True)
def deflated_payload() -> bytes:
    return zip_bytes([Entry("archive/data.pkl", dump(EVIL), DEFLATED), Entry("archive/version", b"3\n")])


@attack(DESCRIBED, says="os.system")
def npz_object_array() -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + dump([EVIL])
    return zip_bytes([Entry("w.npy", npy)])


@attack(DESCRIBED, says="os.system", file="attack.npy")
def npy_object_array() -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + dump([EVIL])


@attack(REFUSED, DESCRIBED, says="os.system", fires=True)
def dcp_metadata_is_a_payload(folder: Path) -> Path:
    return tf.dcp(folder, EVIL)


@attack(REFUSED, DESCRIBED, says="os.system", fires=True)
def dcp_metadata_holds_a_payload(folder: Path) -> Path:
    return tf.dcp(folder, tf.dcp_metadata(planner_data=EVIL))


@attack(REFUSED, DESCRIBED, says="os.system")
def dcp_item_is_a_payload(folder: Path) -> Path:
    """A `.distcp` item is a torch zip of its own, with a pickle of its own."""
    item = tf.pt(EVIL)
    places = {tf.dcp_index(): tf.dcp_place(length=len(item))}
    return tf.dcp(folder, tf.dcp_metadata(places=places), {"__0_0.distcp": item})


@attack(REFUSED, DESCRIBED, says="os.system")
def dcp_bytes_item_is_a_payload(folder: Path) -> Path:
    """Values that are not tensors lie in a `.distcp` file as whole `torch.save` files."""
    item = tf.pt(EVIL)
    metadata = tf.dcp_metadata(
        tensors={"epoch": New(Name(tf.META, "BytesStorageMetadata"))},
        places={tf.dcp_index("epoch", None, None): tf.dcp_place(length=len(item))},
        planner_data={"epoch": ("epoch",)},
    )
    return tf.dcp(folder, metadata, {"__0_0.distcp": item})


@attack(REFUSED, DESCRIBED, says="os.system")
def bin_index_shard_is_a_payload(folder: Path) -> Path:
    shard = "pytorch_model-00001-of-00001.bin"
    home = folder / "model"
    home.mkdir()
    (home / "pytorch_model.bin.index.json").write_text(
        f'{{"metadata": {{}}, "weight_map": {{"w": "{shard}"}}}}'
    )
    (home / shard).write_bytes(tf.pt({"w": EVIL}))
    return home


@attack(REFUSED)
def zlib_compressed_pickle() -> bytes:
    """What joblib writes with `compress=`."""
    return zlib.compress(dump(EVIL))
