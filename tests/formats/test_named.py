"""What is not read is named, with what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from torch.package import PackageExporter

from ptsave.errors import UnknownFormatError, UnreadableError
from ptsave.formats import open_checkpoint


def zipped(**records: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in records.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return held.getvalue()


def tarred() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        info = tarfile.TarInfo("readme.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return held.getvalue()


FILES = {
    "is empty": b"",
    "begins with zeros only": bytes(5000),
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "HTML page": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "XML page": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "TOML config": b'# a comment\n[model]\nclass = "x.Y"\n',
    "JSON text": b'{"error": "Repository not found"}',
    "begins with 'Entry not found'": b"Entry not found",
    "begins with 'Zugriff verweigert": "Zugriff verweigert: ü".encode(),
    "begins with 'Not found'": "Not found".encode("utf-16"),
    "gzip": gzip.compress(b"x"),
    "bzip2": bz2.compress(b"x"),
    "xz": lzma.compress(b"x"),
    "zstd": zstandard.compress(b"x"),
    "zlib": zlib.compress(b"x"),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(20),
    "tar archive": tarred(),
    "zip archive, not a checkpoint; it holds 'a.txt'": zipped(a_dot_txt=b"x"),
    "empty zip": zipped(),
    "Keras model": zipped(config_dot_json=b"{}", model_dot_weights_dot_h5=b""),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "HDF5 file": bytes(511) + b"x\x89HDF\r\n\x1a\n" + bytes(20),
    "TensorFlow Lite": b"\x1c\0\0\0TFL3" + bytes(20),
    "ExecuTorch": b"\x1c\0\0\0ET12" + bytes(20),
    "SavedModel's graph": b"\x08\x01\x12\x80\x10\x0a\x05" + bytes(20),
    "index of a TensorFlow": b"\xff" * 40 + bytes.fromhex("57fb808b247547db"),
    "msgpack": b"\x81\xa6params\x81\xa5Dense\xc0",
    "Python pickle": pickle.dumps({"a": 1}),
    "MATLAB": b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(100),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "ELF": b"\x7fELF\2\1\1" + bytes(20),
    "does not know this kind of file": b"\xf7\x00\x81random" + bytes(20),
}


@pytest.mark.parametrize(("what", "data"), FILES.items(), ids=FILES)
def test_files(what: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    with pytest.raises(UnknownFormatError) as error:
        open_checkpoint(path)
    assert what in error.value.what
    assert error.value.where == str(path)
    assert error.value.hint


def test_a_torch_package(tmp_path: Path) -> None:
    path = tmp_path / "package.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PackageExporter(str(path)) as exporter:
            exporter.save_pickle("model", "model.pkl", {"w": torch.ones(2)})
    with pytest.raises(UnknownFormatError, match=r"torch\.package"):
        open_checkpoint(path)


FOLDERS = {
    "the folder is empty": [],
    "TensorFlow SavedModel": ["saved_model.pb", "variables"],
    "DeepSpeed": ["zero_to_fp32.py", "latest"],
    "unpacked torch zip": ["data.pkl", "version", "data"],
    "folder, not a checkpoint": ["a.pth", "b.pth"],
    "holds no checkpoint": ["config.json"],
}


@pytest.mark.parametrize(("what", "names"), FOLDERS.items(), ids=FOLDERS)
def test_folders(what: str, names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnknownFormatError, match=what) as error:
        open_checkpoint(tmp_path)
    assert error.value.hint


def test_the_hint_names_the_folders_that_have_weights(tmp_path: Path) -> None:
    for name in ("scheduler/config.json", "unet/diffusion_pytorch_model.safetensors", "dcp/.metadata"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "model_index.json").write_bytes(b"{}")
    with pytest.raises(UnknownFormatError) as error:
        open_checkpoint(tmp_path)
    assert error.value.hint == f"'dcp', 'unet' have weights: name one folder, for example {tmp_path / 'dcp'}"


class Breaks:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_a_save_that_broke_off(tmp_path: Path) -> None:
    """torch.save writes the directory of its archive all the same."""
    path = tmp_path / "step-2.pt"
    with pytest.raises(KeyboardInterrupt):
        torch.save({"w": torch.ones(3), "x": Breaks()}, path)
    with pytest.raises(UnreadableError, match="unfinished save") as caught:
        open_checkpoint(path)
    assert "use the checkpoint before it" in caught.value.hint


def test_a_save_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "step-2.pt"
    torch.save({"w": torch.ones(3000)}, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UnreadableError, match="which a save writes last") as caught:
        open_checkpoint(path)
    assert "use the checkpoint before it" in caught.value.hint
