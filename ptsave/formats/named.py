"""Files and folders that are not read: what each is, and what to do about it.

Recognised by content alone. Source of the signatures: the formats' own specifications, as collected in
https://en.wikipedia.org/wiki/List_of_file_signatures, and for TensorFlow `table/format.h`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ptsave.errors import CorruptError, PtsaveError, UnknownFormatError, UnreadableError
from ptsave.formats.pickle import plain
from ptsave.formats.zip.fields import UNFINISHED
from ptsave.formats.zip.reader import ZipDirectory, read_directory
from ptsave.storage.files import InputFile, InputFolder

_AGAIN = "copy or download the file again"
TORCH_RECORDS = frozenset(
    (
        ".data/serialization_id",
        ".data/version",
        "version",
        "byteorder",
        ".format_version",
        ".storage_alignment",
    )
)
"""What torch.save writes beside the pickle and the storages."""
_UNPACK = "unpack it, then name the checkpoint that was inside"
_UNPACK_FOLDER = "unpack it, then name the folder with the checkpoint's files"
_NO_MEMBER = "none of its members is a checkpoint; what is an archive itself has to be unpacked first"
_WEIGHTS = "name the file with the weights (.safetensors, .pt, .pth, .bin, .ckpt)"
_OTHER = "use its own library to save the weights as safetensors or .npz"
KINDS = "it reads torch files (.pt, .pth, .bin, .ckpt, .pt2), safetensors, ONNX, GGUF, NumPy, and folders"


class _Signature(NamedTuple):
    offset_bytes: int
    magic: bytes
    what: str
    hint: str


_SIGNATURES = (
    _Signature(
        0,
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file itself",
        "run `git lfs pull` in its folder",
    ),
    _Signature(
        0, b"/annex/objects/", "is a git-annex pointer, not the file itself", "run `git annex get` on it"
    ),
    _Signature(0, b"\x1f\x8b", "is gzip-compressed", "unpack it first: gzip -d (or tar -xzf for a .tar.gz)"),
    _Signature(0, b"\xfd7zXZ\0", "is xz-compressed", "unpack it first: xz -d"),
    _Signature(0, b"\x28\xb5\x2f\xfd", "is zstd-compressed", "unpack it first: zstd -d"),
    _Signature(0, b"BZh", "is bzip2-compressed", "unpack it first: bzip2 -d"),
    _Signature(0, b"\x04\x22\x4d\x18", "is lz4-compressed", "unpack it first: lz4 -d"),
    _Signature(0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", _UNPACK),
    _Signature(0, b"Rar!\x1a\x07", "is a RAR archive", _UNPACK),
    _Signature(257, b"ustar", "is a tar archive", _UNPACK),
    _Signature(0, b"PK\7\x08", "is one part of a split zip archive", "join the parts first (zip -s 0)"),
    _Signature(0, b"lmgg", "is a GGML model (llama.cpp before GGUF)", "use the llama.cpp of its time"),
    _Signature(0, b"fmgg", "is a GGML model (llama.cpp before GGUF)", "use the llama.cpp of its time"),
    _Signature(0, b"tjgg", "is a GGML model (llama.cpp before GGUF)", "use the llama.cpp of its time"),
    *(
        _Signature(
            offset,
            b"\x89HDF\r\n\x1a\n",
            "is an HDF5 file (Keras, NetCDF, …)",
            f"read it with h5py or Keras; {_OTHER}",
        )
        for offset in (0, 512, 1024, 2048)
    ),
    _Signature(4, b"TFL3", "is a TensorFlow Lite model", _OTHER),
    _Signature(4, b"ET12", "is an ExecuTorch program (.pte)", "name the checkpoint or .pt2 it was made from"),
    _Signature(0, b"MATLAB 5.0 MAT-file", "is a MATLAB file", f"read it with scipy.io.loadmat; {_OTHER}"),
    _Signature(
        0,
        b"\4\0\0\0\1\0\0\0\3\0\0\0V 1",
        "is a Lua Torch7 file (.t7)",
        "read it with the torchfile package, then save the tensors with torch.save",
    ),
    _Signature(0, b"\x12\1\0\0\0\0\0\0", "is an MXNet parameter file", _OTHER),
    _Signature(0, b"ptrt", "is a TensorRT engine", "name the checkpoint it was built from"),
    _Signature(0, b"ftrt", "is a TensorRT engine", "name the checkpoint it was built from"),
    _Signature(0, b"7767517\n", "is an ncnn parameter file", _OTHER),
    _Signature(0, b"PAR1", "is a Parquet table", _WEIGHTS),
    _Signature(0, b"ARROW1", "is an Arrow table", _WEIGHTS),
    _Signature(0, b"SQLite format 3\0", "is an SQLite database", _WEIGHTS),
    _Signature(0, b"%PDF", "is a PDF document", _WEIGHTS),
    _Signature(0, b"\x89PNG\r\n\x1a\n", "is a PNG image", _WEIGHTS),
    _Signature(0, b"\xff\xd8\xff", "is a JPEG image", _WEIGHTS),
    _Signature(0, b"GIF8", "is a GIF image", _WEIGHTS),
    _Signature(0, b"RIFF", "is a RIFF file (WAV, AVI, WebP)", _WEIGHTS),
    _Signature(0, b"\x7fELF", "is an ELF program or library", _WEIGHTS),
    _Signature(0, b"MZ", "is a Windows program or library", _WEIGHTS),
    _Signature(0, b"\xcf\xfa\xed\xfe", "is a macOS program or library", _WEIGHTS),
    _Signature(0, b"\xca\xfe\xba\xbe", "is a Java class or macOS program", _WEIGHTS),
    _Signature(0, b"\0asm", "is a WebAssembly module", _WEIGHTS),
)
_TENSORFLOW_TABLE_END = bytes.fromhex("57fb808b247547db")


def refusal(file: InputFile, head: bytes) -> PtsaveError:
    """Why `file`, which no format has recognised, is not read. `head`: its first HEAD_BYTES bytes."""
    where = str(file.path)
    if file.size_bytes == 0:
        return UnknownFormatError(
            "the file is empty", where, "the save or the download did not finish; repeat it"
        )
    if not head.strip(b"\0"):
        return UnknownFormatError("the file begins with zeros only", where, _AGAIN)
    for offset, magic, what, hint in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return UnknownFormatError(f"the file {what}", where, hint)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        directory = read_directory(file)
        return zip_refusal(directory) or archive_refusal("zip", where, [*directory.entries])
    if (pickled := plain.refusal(file, head)) is not None:
        return pickled
    if (text := _as_text(head)) is not None:
        return _text(text, where)
    if file.read_at(max(file.size_bytes - 8, 0), min(file.size_bytes, 8)) == _TENSORFLOW_TABLE_END:
        return UnknownFormatError("the file is the index of a TensorFlow checkpoint", where, _OTHER)
    if head[:3] == b"\x08\1\x12":
        return UnknownFormatError("the file is a TensorFlow SavedModel's graph", where, _OTHER)
    if _is_msgpack_of_names(head):
        return UnknownFormatError(
            "the file is a msgpack file (Flax)", where, f"read it with flax.serialization; {_OTHER}"
        )
    if head[:2] in (b"\x78\x01", b"\x78\x9c", b"\x78\xda"):
        return UnknownFormatError("the file is zlib-compressed (joblib writes such files)", where, _OTHER)
    return UnknownFormatError(
        "ptsave does not know this kind of file, or the file is damaged at its beginning", where, KINDS
    )


def zip_refusal(directory: ZipDirectory) -> UnreadableError | None:
    """Which of the many things that are zip archives this one is; None where it may hold anything."""
    where = str(directory.file.path)
    names = list(directory.entries)
    inner = {name.partition("/")[2] for name in names}
    if ".data/extern_modules" in inner:
        return UnknownFormatError(
            "the file is a torch.package archive: pickles that need the code packed with them",
            where,
            "open it with torch.package.PackageImporter if you trust it, and save the model's state_dict()",
        )
    if {"config.json", "model.weights.h5"} <= set(names):
        return UnknownFormatError("the file is a Keras model", where, f"read it with Keras; {_OTHER}")
    if "META-INF/MANIFEST.MF" in names:
        what = "the file is a Java archive (or a model for PyTorch on Android)"
        return UnknownFormatError(what, where, _UNPACK)
    if "word/document.xml" in names or "[Content_Types].xml" in names:
        return UnknownFormatError("the file is an Office document", where, _WEIGHTS)
    if not names:
        return UnknownFormatError("the file is an empty zip archive", where, _AGAIN)
    if all(name in TORCH_RECORDS or name.startswith("data/") for name in inner):
        return CorruptError(
            "the file is an unfinished save: torch.save stopped before it wrote data.pkl", where, UNFINISHED
        )
    return None


def archive_refusal(
    kind: str, where: str, names: Sequence[str], *, is_searched: bool = False
) -> UnknownFormatError:
    """Why an archive is not read. `names`: of its members; `is_searched`: whether each was looked at."""
    held = ", ".join(repr(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
    what = f"the file is a {kind} archive, not a checkpoint; it holds {held or 'nothing'}"
    is_folder = any(name.endswith((".index.json", ".metadata", ".distcp")) for name in names)
    hint = _UNPACK_FOLDER if is_folder else _NO_MEMBER if is_searched else _UNPACK
    return UnknownFormatError(what, where, hint)


def _as_text(head: bytes) -> str | None:
    """The beginning of a file as text, or None where it is not text."""
    for marker, encoding in (
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
        (b"\xef\xbb\xbf", "utf-8-sig"),
    ):
        if head.startswith(marker):
            return head.decode(encoding, "replace").strip()
    if any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head):
        return None
    try:
        # not final: the head may end inside a character
        return codecs.getincrementaldecoder("utf-8")().decode(head).strip()
    except UnicodeDecodeError:
        return None


def _text(text: str, where: str) -> UnknownFormatError:
    start = text[:256].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return UnknownFormatError(
            "the file is an HTML page: the download got a web page in place of the file",
            where,
            "use the file's direct link (at Hugging Face: /resolve/ in place of /blob/); log in if it asks",
        )
    if start.startswith(("<?xml", "<error")):
        return UnknownFormatError(
            "the file is an XML page, often a server's error message",
            where,
            "open it and read it; then " + _AGAIN,
        )
    if re.search(r"^\s*\[{1,2}[A-Za-z_]", text, re.MULTILINE):
        return UnknownFormatError(
            "the file is a TOML config, not a checkpoint", where, "give it with -c/--config"
        )
    if start.startswith(("{", "[")):
        return UnknownFormatError(f"the file is JSON text, not a checkpoint: {text[:60]!r}", where, _WEIGHTS)
    line = text.splitlines()[0][:60] if text else ""
    return UnknownFormatError(f"the file is a text file that begins with {line!r}", where, _WEIGHTS)


def _is_msgpack_of_names(head: bytes) -> bool:
    """Whether it begins as a msgpack map whose first key is a readable text."""
    after = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x81 <= head[0] <= 0x8F else 0)
    if not after or len(head) < after + 2:
        return False
    marker = head[after]
    if 0xA1 <= marker <= 0xBF:
        key = head[after + 1 : after + 1 + (marker & 0x1F)]
    elif marker == 0xD9:
        key = head[after + 2 : after + 2 + head[after + 1]]
    else:
        return False
    return bool(key) and all(32 <= byte < 127 for byte in key)


_FOLDER_MARKS = (
    ("saved_model.pb", "is a TensorFlow SavedModel", _OTHER),
    (
        "tf_model.h5",
        "holds TensorFlow weights only",
        "download the PyTorch or safetensors weights of the model",
    ),
    (
        "flax_model.msgpack",
        "holds Flax weights only",
        "download the PyTorch or safetensors weights of the model",
    ),
    ("zero_to_fp32.py", "is a DeepSpeed checkpoint", "run its zero_to_fp32.py, then name what it writes"),
    ("latest_checkpointed_iteration.txt", "is a Megatron checkpoint", "name the files in its iter_… folder"),
    ("_CHECKPOINT_METADATA", "is an Orbax (JAX) checkpoint", _OTHER),
    ("keras_metadata.pb", "is a Keras model", _OTHER),
    ("data.pkl", "is an unpacked torch zip", "pack it again without compression: zip -0 -r model.pt FOLDER"),
    ("Manifest.json", "is a Core ML package", _OTHER),
    (".git", "is a git repository", _WEIGHTS),
)
_FOLDER_NEEDS = (
    "a checkpoint folder has model.safetensors.index.json or pytorch_model.bin.index.json with its shards, "
    "one model.safetensors or pytorch_model.bin, or .metadata with .distcp files"
)


def is_named(folder: InputFolder) -> bool:
    """Whether the folder is known as something else than checkpoints, which `folder_refusal` names."""
    return any(mark in folder.names for mark, _, _ in _FOLDER_MARKS)


def folder_refusal(folder: InputFolder) -> PtsaveError:
    """Why `folder`, which no format has recognised, is not read."""
    where = str(folder.path)
    names = set(folder.names)
    if not names:
        return UnknownFormatError("the folder is empty", where, _FOLDER_NEEDS)
    for mark, what, hint in _FOLDER_MARKS:
        if mark in names:
            return UnknownFormatError(f"the folder {what} (it holds {mark})", where, hint)
    weights = [name for name in folder.names if name.endswith(WEIGHT_SUFFIXES)]
    if weights:
        listed = ", ".join(repr(name) for name in weights[:3]) + (", …" if len(weights) > 3 else "")
        return UnknownFormatError(
            "the path is a folder, not a checkpoint", where, f"name one file in it: {listed}"
        )
    inner = list(_with_weights(folder))
    if inner:
        listed = ", ".join(map(repr, inner)) + (" has weights" if len(inner) == 1 else " have weights")
        hint = f"{listed}: name one folder, for example {folder.path / inner[0]}"
        return UnknownFormatError("the folder holds no checkpoint itself", where, hint)
    return UnknownFormatError("the folder holds no checkpoint", where, _FOLDER_NEEDS)


def _with_weights(folder: InputFolder) -> Iterator[str]:
    """The folders in `folder`, of some at most, that have weights directly in them."""
    for name in folder.folders()[:MAX_INNER]:
        with suppress(UnreadableError), folder.inside(name) as inner:
            if any(name.endswith(WEIGHT_SUFFIXES) or name == ".metadata" for name in inner.names):
                yield name


MAX_INNER = 16
"""The most folders of a folder without a checkpoint that are looked in, to say where one is."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".pt2", ".npy", ".onnx", ".gguf")
