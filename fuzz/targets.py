"""What is fuzzed: each target turns bytes into a file and reads it as the commands do.

Any error of ptsave's own is an answer. Everything else that comes out of a target is a finding: another
exception, a reading that differs from safetensors' own, too much time or memory.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz import containers
from ptsave.core.values.gather import contiguous
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.render import as_json
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.inspect import inspect
from tests.attacks import torch_files as tf
from tests.attacks.pickle_programs import CASES, program
from tests.attacks.pickles import dump

MAX_READ_BYTES = 1 << 20
"""Tensors of at most this many bytes together are read as well; most files of a fuzzer are tiny."""


class DifferenceError(Exception):
    """Two readers read the same bytes differently."""


@dataclass(frozen=True)
class Target:
    """One reader, and where its inputs come from."""

    name: str
    wrap: Callable[[bytes], bytes]
    """The fuzzer's bytes as the bytes of a file."""
    seeds: Callable[[], list[bytes]]
    file: str = "input"
    """Where the bytes go in the folder that is opened."""
    compare: Callable[[bytes, dict[str, tuple[str, tuple[int, ...], bytes]]], None] | None = None
    """Holds what was read against another reader of the same format."""
    check: Callable[[bytes], bool] | None = None
    """In place of a file: checks readers of the bytes against each other; returns whether ptsave says yes."""


class Bench:
    """A folder in memory, where there is such a place, that holds one target's file."""

    def __init__(self, target: Target) -> None:
        """Make the folder and what stays the same in it."""
        self.target = target
        shared = Path("/dev/shm")
        place = shared if os.access(shared, os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(prefix="ptsave-fuzz-", dir=place)
        home = Path(self.folder.name)
        if target.name == "dcp":
            (home / "__0_0.distcp").write_bytes(tf.DCP_ITEM)
        if target.name == "index":
            (home / tf.SHARD).write_bytes(tf.PLAIN_SAFETENSORS)
        self.path = home if target.file != "input" else home / "input"
        self.file = os.open(home / target.file, os.O_RDWR | os.O_CREAT)

    def run(self, data: bytes) -> bool:
        """Read `data` as the target says; returns whether it was accepted.

        Raises: whatever is a finding.
        """
        if self.target.check is not None:
            return self.target.check(data)
        content = self.target.wrap(data)
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, content, 0)
        try:
            with open_checkpoint(self.path) as checkpoint:
                as_json.text(as_json.inspection(inspect(checkpoint)))
                tensors = checkpoint.tensors
                list(safe(Subject(checkpoint)))
                if sum(entry.num_bytes for entry in tensors.values()) > MAX_READ_BYTES:
                    return True
                list(bytes_(Subject(checkpoint)))
                found = {}
                for name, entry in tensors.items():
                    storage, offset_bytes = contiguous(entry)
                    buffer = bytearray(entry.num_bytes)
                    storage.read_into(offset_bytes, memoryview(buffer))
                    found[name] = (entry.dtype.safetensors or "", entry.shape, bytes(buffer))
        except PtsaveError as error:
            if error.exit_code not in (3, 4) or not error.what or not error.hint:
                raise DifferenceError(f"an error without help: {error!r}") from error
            return False
        if self.target.compare is not None:
            self.target.compare(content, found)
        return True

    def close(self) -> None:
        """Remove the folder."""
        os.close(self.file)
        self.folder.cleanup()


def _as_safetensors_reads(content: bytes, found: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """What ptsave accepts, safetensors accepts, with the same tensors.

    Raises: DifferenceError.
    """
    from safetensors import SafetensorError, deserialize

    try:
        theirs = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        if "UnknownDtype" in str(error) or "unknown variant" in str(error):
            return
        raise DifferenceError(f"safetensors refuses what ptsave accepts: {error}") from None
    for name, info in theirs:
        if found.get(name) != (info["dtype"], tuple(info["shape"]), bytes(info["data"])):
            raise DifferenceError(f"tensor {name!r}: {found.get(name)!r:.200} and {info!r:.200}")


def _as_onnx_reads(content: bytes, found: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Where the onnx library parses what ptsave accepts, both read the same initializers.

    The library refuses some of it: ptsave looks into no message whose content it does not tell.

    Raises: DifferenceError.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto, TensorProto, numpy_helper

    try:
        theirs = ModelProto.FromString(content).graph.initializer
    except DecodeError:
        return
    for tensor in theirs:
        is_plain = tensor.name in found and tensor.data_type != TensorProto.FLOAT4E2M1
        if is_plain and tensor.data_location == TensorProto.DEFAULT:
            array = numpy_helper.to_array(tensor)
            mine = found[tensor.name]
            if mine[1:] != (array.shape, array.tobytes()):
                raise DifferenceError(f"tensor {tensor.name!r}: {mine!r:.200} and {array!r:.200}")


def _corpus(group: str, unwrap: Callable[[bytes], bytes | None]) -> list[bytes]:
    """The attacks of a group as seeds: the small ones, less what the target wraps around them."""
    from tests.attacks import ATTACKS

    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for attack in ATTACKS.values():
            if attack.group != group or attack.slow:
                continue
            home = Path(folder) / attack.name
            home.mkdir()
            path = attack.build(home)
            if os.path.isfile(path) and path.is_relative_to(folder) and path.stat().st_size <= 8192:
                data = unwrap(path.read_bytes())
                if data is not None:
                    seeds.append(data)
    return seeds


def _pickle_of(data: bytes) -> bytes | None:
    """The `data.pkl` of a torch zip made by the attacks' builders."""
    name = b"archive/data.pkl"
    if data[30:46] != name:
        return None
    size = struct.unpack_from("<I", data, 22)[0]
    return data[46 : 46 + size]


def _pickle_seeds() -> list[bytes]:
    groups = ("code_execution", "allocation", "nesting", "collisions", "bounds", "names")
    return [seed for group in groups for seed in _corpus(group, _pickle_of)]


def _header_of(data: bytes) -> bytes | None:
    (length,) = struct.unpack_from("<Q", data.ljust(8, b"\0"))
    return data[8 : 8 + length] if length < len(data) else None


def _whole(data: bytes) -> bytes:
    return data


def _dcp_seeds() -> list[bytes]:
    return [dump(tf.dcp_metadata())]


def _index_seeds() -> list[bytes]:
    from tests.attacks.folders import INDEXES

    return [text.encode("utf-8", "surrogatepass") for text in INDEXES.values() if len(text) < 4096]


def _npy_seeds() -> list[bytes]:
    from tests.attacks.numpy_lies import NPY

    return [data for data in NPY.values() if len(data) < 4096]


def _as_unpicklers_read(data: bytes) -> bool:
    from tests.attacks.pickle_readers import check

    return check(data)


def _program_seeds() -> list[bytes]:
    return [data for data in CASES.values() if len(data) < 4096] + [program(Random(i)) for i in range(500)]


_LEGACY_HEAD = dump(tf.MAGIC) + dump(1001)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("pickle", lambda data: tf.pt_raw(data), _pickle_seeds),
        Target(
            "zip",
            lambda data: b"PK\x03\x04" + data[4:],
            lambda: [
                s for group in ("zip_lies", "old_formats", "containers") for s in _corpus(group, _whole)
            ],
        ),
        Target(
            "safetensors",
            lambda data: tf.safetensors(data, tf.FOUR),
            lambda: _corpus("safetensors_lies", _header_of),
            compare=_as_safetensors_reads,
        ),
        Target(
            "legacy",
            lambda data: _LEGACY_HEAD + data,
            lambda: [
                data[len(_LEGACY_HEAD) :]
                for data in _corpus("bounds", _whole)
                if data.startswith(_LEGACY_HEAD)
            ],
        ),
        Target("differential", _whole, _program_seeds, check=_as_unpicklers_read),
        Target(
            "containers",
            lambda data: b"PK\x03\x04" + data[4:],
            containers.zip_seeds,
            compare=containers.compare_bytes,
        ),
        Target("dcp", lambda data: data, _dcp_seeds, ".metadata"),
        Target("index", lambda data: data, _index_seeds, "model.safetensors.index.json"),
        Target("onnx", _whole, lambda: _corpus("onnx_lies", _whole), compare=_as_onnx_reads),
        Target("gguf", lambda data: b"GGUF" + data[4:], lambda: _corpus("gguf_lies", _whole)),
        Target("npy", lambda data: b"\x93NUMPY" + data[6:], _npy_seeds),
    )
}

MAIN = ("pickle", "differential", "zip", "safetensors", "containers")
"""The targets that a plain run takes."""

WORDS: dict[str, tuple[bytes, ...]] = {
    "pickle": (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._utils\n_rebuild_qtensor\n",
        b"ctorch._utils\n_rebuild_sparse_tensor\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch.serialization\n_get_layout\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nfloat32\n",
        b"ctorch\nSize\n",
        b"ctorch\nDevice\n",
        b"ccollections\nOrderedDict\n",
        b"ccollections\ndefaultdict\n",
        b"cnumpy._core.multiarray\n_reconstruct\n",
        b"cnumpy._core.multiarray\nscalar\n",
        b"cnumpy\ndtype\n",
        b"ccopyreg\n_reconstructor\n",
        b"cfunctools\npartial\n",
        b"cpathlib\nPosixPath\n",
        b"c_codecs\nencode\n",
        b"ctorch.nn.modules.linear\nLinear\n",
        b"X\x07\x00\x00\x00storage",
        b"X\x0b\x00\x00\x00_parameters",
        b"X\x08\x00\x00\x00_buffers",
        b"X\x08\x00\x00\x00_modules",
        dump(tf.storage())[2:-1],
        dump(tf.tensor())[2:-1],
    ),
    "zip": (
        b"PK\x01\x02",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"PK\x06\x07",
        b"PK\x07\x08",
        b"archive/data.pkl",
        b"archive/data/0",
        b"archive/constants.pkl",
        b"\xff\xff\xff\xff",
        b"\x01\x00\x10\x00",
        b"\x08\x08",
    ),
    "safetensors": (
        b'"__metadata__"',
        b'"dtype"',
        b'"shape"',
        b'"data_offsets"',
        b'"F32"',
        b'"BF16"',
        b'"U8"',
        b'"ptsave"',
        b"\\u",
        b"-0",
        b"1e3",
        b"18446744073709551615",
    ),
}
WORDS["legacy"] = WORDS["dcp"] = WORDS["differential"] = WORDS["pickle"]
