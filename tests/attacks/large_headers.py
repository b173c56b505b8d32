"""Headers, names and code that are long or many."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from . import torch_files as tf
from .pickles import (
    APPENDS,
    EMPTY_DICT,
    EMPTY_LIST,
    MARK,
    POP,
    PROTO2,
    REDUCE,
    SETITEMS,
    STOP,
    Name,
    New,
    Pers,
    Raw,
    Shared,
    dump,
    get,
    glob,
    integer,
    put,
)
from .registry import DESCRIBED, REFUSED, SHOWN, attack
from .zips import DEFLATED, Entry, zeros_bomb, zip_bytes


def many_tensors(count: int, entry: str) -> bytes:
    return tf.safetensors("{" + ",".join(entry % i for i in range(count)) + "}")


@attack(REFUSED, slow=True)
def safetensors_of_1_600_000_tensors() -> bytes:
    return many_tensors(1_600_000, '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}')


@attack(REFUSED, slow=True)
def safetensors_of_12_million_empty_objects() -> bytes:
    return many_tensors(8_000_000, '"%d":{}')


@attack(REFUSED, slow=True)
def safetensors_of_30_million_numbers() -> bytes:
    shape = "1," * 30_000_000 + "1"
    return tf.safetensors('{"w":{"dtype":"U8","shape":[' + shape + '],"data_offsets":[0,1]}}', b"x")


@attack(REFUSED, slow=True)
def safetensors_of_empty_lists() -> bytes:
    return tf.safetensors('{"w":[' + "[]," * 30_000_000 + "[]]}")


@attack(REFUSED, slow=True)
def torch_zip_of_1_600_000_tensors() -> bytes:
    one = dump(tf.tensor())[2:-1]
    shared = glob("torch._utils", "_rebuild_tensor_v2") + put(1) + POP
    args = dump((tf.storage(), 0, (4,), (1,), False, None))[2:-1] + put(2) + POP
    pairs = b"".join(integer(i) + get(1) + get(2) + REDUCE for i in range(1_600_000))
    return tf.pkl(PROTO2, one, POP, shared, args, EMPTY_DICT, MARK, pairs, SETITEMS, STOP)


@attack(REFUSED)
def legacy_of_a_million_keys() -> bytes:
    return tf.legacy({}, keys=[str(i) for i in range(300_000)], storages=())


@attack(REFUSED)
def legacy_numel_of_2_62() -> bytes:
    return tf.legacy({"w": tf.legacy_tensor(numel=2**62)}, storages=[(2**62, tf.FOUR)])


@attack(REFUSED, slow=True)
def dcp_of_a_million_chunks(folder: Path) -> Path:
    chunk = Shared(tf.dcp_chunk())
    raw = dump(chunk)[2:-1] + get(chunk.index[0]) * 1_000_000
    chunks = Raw(EMPTY_LIST + MARK + raw + APPENDS)
    state = {
        "properties": New(
            Name(tf.META, "TensorProperties"), state=(Name("torch", "float32"), None, False, None, False)
        ),
        "size": tf.dcp_size(4),
        "chunks": chunks,
    }
    return tf.dcp(folder, tf.dcp_metadata({"w": New(Name(tf.META, "TensorStorageMetadata"), state=state)}))


@attack(REFUSED)
def dcp_tensor_of_2_60_elements_in_one_chunk(folder: Path) -> Path:
    tensor = tf.dcp_tensor((2**60,), [tf.dcp_chunk((0,), (2**60,))])
    return tf.dcp(folder, tf.dcp_metadata({"w": tensor}))


@attack(REFUSED)
def index_of_half_a_million_shards(folder: Path) -> Path:
    names = ",".join(f'"w{i}":"model-{i:06}.safetensors"' for i in range(500_000))
    return tf.sharded(folder, '{"metadata":{},"weight_map":{' + names + "}}")


@attack(REFUSED)
def index_nested_100_000_deep(folder: Path) -> Path:
    return tf.sharded(folder, '{"weight_map":' + "[" * 100_000 + "]" * 100_000 + "}")


@attack(REFUSED)
def gzip_of_a_gib() -> bytes:
    return (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
        + zeros_bomb(1024)
        + struct.pack("<II", zlib.crc32(b""), 2**30)
    )


@attack(REFUSED)
def persistent_ids_of_many_kinds() -> bytes:
    """A thousand storage types that torch does not have."""
    return tf.pt([Pers(("storage", Name("torch", f"S{i}Storage"), "0", "cpu", 4)) for i in range(1000)])


def with_deflated_record(text: bytes) -> bytes:
    entries = tf.pt_entries(dump({"w": tf.tensor()}))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packer.compress(text) + packer.flush()
    told = {"size": len(text), "crc": zlib.crc32(text)}
    entry = Entry("archive/ptsave.json", raw=raw, method=DEFLATED, local=told, central=told)
    return zip_bytes([*entries, entry])


@attack(REFUSED)
def deflated_record_that_nests_deeply() -> bytes:
    return with_deflated_record(b'{"schema_version":1,"extras":' + b"[" * 400_000 + b"]" * 400_000 + b"}")


@attack(REFUSED, says="wide_json_bytes")
def deflated_record_of_wide_text() -> bytes:
    """Python holds it in twice the memory."""
    return with_deflated_record(b'{"schema_version":1,"extras":"' + "Ā".encode() * 25_000_000 + b'"}')


# Printing


@attack(REFUSED, SHOWN)
def one_long_name_among_many() -> bytes:
    """Columns as wide as the longest name would make a table of gigabytes."""
    names = {f"t{i}": tf.tensor(size=Shared((4,))) for i in range(3000)}
    return tf.pt({"n" * 300_000: tf.tensor(), **names})


@attack(REFUSED, SHOWN)
def one_long_data_key_among_many() -> bytes:
    return tf.pt({"n" * 300_000: 1, **{f"t{i}": i for i in range(3000)}})


@attack(REFUSED, SHOWN)
def one_long_global_among_many() -> bytes:
    names = [Name("m", "n" * 300_000), *(Name("m", f"n{i}") for i in range(3000))]
    return tf.pt(names)


@attack(REFUSED, SHOWN)
def one_shape_of_many_digits_among_many() -> bytes:
    wide = tf.tensor(size=(1,) * 60 + (0,), stride=(2**62,) * 60 + (1,))
    return tf.pt([wide, *(tf.tensor() for _ in range(3000))])


# Patterns


def scripted(code: bytes) -> bytes:
    """A TorchScript archive with that code, deflated, so that the file is small."""
    module = New(Name("__torch__", "M"), state={"w": tf.tensor(rest=(False, None))})
    made = [*tf.pt_entries(dump(module)), Entry("archive/constants.pkl", dump(()))]
    return zip_bytes([*made, Entry("archive/code/__torch__.py", code, DEFLATED)])


CLASS = b"class M(Module):\n"


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_open_lists() -> bytes:
    return scripted(CLASS + b"  __parameters__ = [\n" * 1_000_000)


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_open_strings() -> bytes:
    return scripted(CLASS + b'  __parameters__ = ["' + b'\\"' * 5_000_000 + b", ]\n")


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_blank_lines() -> bytes:
    return scripted(CLASS + b"\n \t" * 10_000_000 + b"x")


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_a_class_before_spaces() -> bytes:
    return scripted(CLASS + b"\nclass a" + b" " * 10_000_000)


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_class_lines() -> bytes:
    return scripted(b"class M(Module):\n" * 2_000_000)


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_one_long_name() -> bytes:
    return scripted(b"class " + b"M" * 30_000_000)


@attack(REFUSED)
def npy_header_of_spaces() -> bytes:
    header = b"{'descr': " + b" " * 65_000 + b"x}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
