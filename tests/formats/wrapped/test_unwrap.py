"""A checkpoint in an archive, or compressed, is the one that it was."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import ptsave
from ptsave.errors import (
    AmbiguousError,
    CorruptError,
    MissingFileError,
    NoRoomError,
    UnknownFormatError,
    UnreadableError,
    WriteError,
)
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME
from ptsave.verbs.convert import convert
from ptsave.verbs.edit import Edits
from tests.attacks.samples import BUILT, Contents, contents
from tests.formats.wrapping import COMPRESSED, NAME, WRAPPERS, tarred, zipped
from tests.support import examples, some

FILES = [name for name in BUILT if name not in ("sharded", "dcp", "onnx_external")]
WRITTEN = [writer.name for writer in BY_NAME.values() if not writer.is_folder]


def read(path: Path) -> Contents:
    with open_checkpoint(path) as checkpoint:
        return contents(checkpoint)


def saved(folder: Path, name: str = "a.pt") -> Path:
    torch.save({"w": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int16)}, folder / name)
    return folder / name


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("sample", FILES)
def test_every_format_in_every_wrapper(sample: str, wrapper: str, tmp_path: Path) -> None:
    bare = BUILT[sample](tmp_path).path
    path = tmp_path / "wrapped"
    path.write_bytes(WRAPPERS[wrapper](bare.read_bytes()))
    with open_checkpoint(bare) as checkpoint, open_checkpoint(path) as inner:
        assert (inner.format, contents(inner)) == (checkpoint.format, contents(checkpoint))
        assert inner.globals == checkpoint.globals
        assert inner.wrappings
        kinds = {one.kind for one in inner.wrappings}
        assert all(kind in kinds for kind in ("gzip", "zstd", "xz", "tar", "zip") if kind in wrapper.split())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_model_whose_tensors_lie_beside_it_is_refused(wrapper: str, tmp_path: Path) -> None:
    bare = BUILT["onnx_external"](tmp_path).path
    (tmp_path / "wrapped").write_bytes(WRAPPERS[wrapper](bare.read_bytes()))
    with pytest.raises(UnreadableError, match=r"lies in another file, 'w\.data', and this one in an archive"):
        open_checkpoint(tmp_path / "wrapped")


@settings(
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.parametrize("format", WRITTEN)
def test_what_any_writer_makes(format: str, tmp_path: Path, data: st.DataObject) -> None:
    kinds = st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_])
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)
    made = data.draw(
        st.dictionaries(
            st.sampled_from("abcdef"), arrays.arrays(kinds, shapes, fill=st.nothing()), min_size=1, max_size=3
        )
    )
    wrapper = data.draw(st.sampled_from(sorted(WRAPPERS)))
    source, bare, path = tmp_path / "a.npz", tmp_path / "bare", tmp_path / "wrapped"
    np.savez(source, **made)
    with open_checkpoint(source) as checkpoint:
        convert([checkpoint], bare, BY_NAME[format], WriteOptions(overwrite=True, sync=False), Edits())
    path.write_bytes(WRAPPERS[wrapper](bare.read_bytes()))
    assert read(path) == read(bare)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("format", WRITTEN)
def test_it_is_converted_to_the_same_bytes(format: str, wrapper: str, tmp_path: Path) -> None:
    bare = saved(tmp_path)
    ptsave.convert(bare, tmp_path / f"s.{format}", format=format)
    (tmp_path / "wrapped").write_bytes(WRAPPERS[wrapper]((tmp_path / f"s.{format}").read_bytes()))
    for name in ("wrapped", f"s.{format}"):
        ptsave.convert(tmp_path / name, tmp_path / f"{name}.safetensors", format="safetensors")
    made = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("wrapped", f"s.{format}")]
    assert made[0] == made[1]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_verb(wrapper: str, tmp_path: Path) -> None:
    bare, path = saved(tmp_path), tmp_path / "wrapped"
    path.write_bytes(WRAPPERS[wrapper](bare.read_bytes()))
    assert ptsave.inspect(path).wrapped_in
    verdict = ptsave.verify(path, against=bare)
    assert verdict.is_yes, verdict.because
    with ptsave.open(path) as checkpoint:
        assert checkpoint.state_dict()["w"].tolist() == [0, 1, 2, 3, 4, 5]
        lazy = checkpoint.state_dict(lazy=True)
    assert lazy["b"].tolist() == [1, 1]
    model = torch.nn.Module()
    model.register_buffer("w", torch.zeros(6))
    model.register_buffer("b", torch.zeros(2, dtype=torch.int16))
    ptsave.load(path, model)
    assert model.w.tolist() == [0, 1, 2, 3, 4, 5]


def test_tensors_of_a_stored_member_are_its_pages(tmp_path: Path) -> None:
    """Mapped where they lie in the archive, and of each member its own."""
    members = {}
    for i in range(3):
        torch.save({"w": torch.full((5000,), float(i))}, tmp_path / "a.pt")
        members[f"{i}.pt"] = (tmp_path / "a.pt").read_bytes()
    for path, data in (("a.tar", tarred(members)), ("a.zip", zipped(members))):
        (tmp_path / path).write_bytes(data)
        for i in range(3):
            with ptsave.open(f"{tmp_path / path}::{i}.pt") as checkpoint:
                tensor = checkpoint.state_dict(lazy=True)["w"]
                assert tensor.min() == tensor.max() == i
                assert all(entry.storage.file is not None for entry in checkpoint.tensors.values())


# Which member


def test_one_candidate_among_others(tmp_path: Path) -> None:
    members = {
        "notes.txt": b"x",
        "deep/model.pt": saved(tmp_path).read_bytes(),
        "empty": b"",
        "c.json": b"{}",
    }
    for name, data in (("a.zip", zipped(members)), ("a.tar", tarred(members))):
        (tmp_path / name).write_bytes(data)
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert str(checkpoint.path) == f"{tmp_path / name}::deep/model.pt"
            assert checkpoint.wrappings[0].member == "deep/model.pt"


def test_several_candidates_are_named(tmp_path: Path) -> None:
    data = saved(tmp_path).read_bytes()
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"policy.pth": data, "policy.optimizer.pth": data}))
    with pytest.raises(AmbiguousError, match="holds 2 checkpoints") as error:
        open_checkpoint(path)
    assert error.value.hint == f"name one: {path}::policy.pth, {path}::policy.optimizer.pth"
    assert error.value.details["candidates"] == [f"{path}::policy.pth", f"{path}::policy.optimizer.pth"]
    for spelled in ("policy.pth", "./policy.pth", "policy.optimizer.pth"):
        with open_checkpoint(f"{path}::{spelled}") as checkpoint:
            assert len(checkpoint.tensors) == 2


NONE = {"holds 'a.txt'": {"a.txt": b"x"}, "holds 'a.txt', 'b.txt'": {"a.txt": b"x", "b.txt": b"y"}}


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("what", NONE)
def test_no_candidate(pack: object, what: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pack(NONE[what]))  # type: ignore[operator]
    with pytest.raises(UnknownFormatError, match=what):
        open_checkpoint(tmp_path / "a")


def test_a_member_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"policy.pth": saved(tmp_path).read_bytes()}))
    with pytest.raises(MissingFileError, match=r"no member 'policy\.pt'") as error:
        open_checkpoint(tmp_path / "a.zip::policy.pt")
    assert error.value.hint == "did you mean 'policy.pth'?"


def test_a_checkpoint_is_no_archive(tmp_path: Path) -> None:
    """Its records are not members, though it is a zip archive."""
    path = saved(tmp_path)
    for name in ("a.pt::a/data.pkl", "a.pt::a/data/0"):
        with pytest.raises(UnreadableError, match="is not an archive of files"):
            open_checkpoint(tmp_path / name)
    (tmp_path / "a.gz").write_bytes(COMPRESSED["gzip"](path.read_bytes()))
    with pytest.raises(UnreadableError, match="is not an archive of files"):
        open_checkpoint(tmp_path / "a.gz::a.pt")


def test_a_link_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.pt", "a.pt")
        for kind, name in ((tarfile.SYMTYPE, "soft.pt"), (tarfile.LNKTYPE, "hard.pt")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.pt"
            archive.addfile(link)
    assert len(read(tmp_path / "a.tar")[0]) == 2
    for name, what in (("soft.pt", "a symbolic link"), ("hard.pt", "a hard link")):
        with pytest.raises(UnreadableError, match=f"the member is {what}"):
            open_checkpoint(tmp_path / f"a.tar::{name}")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_index_names_nothing_outside(
    wrapper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in an archive has no folder around it, where its shards could be."""
    home = BUILT["sharded"](tmp_path).path
    monkeypatch.chdir(home)
    index = (home / "model.safetensors.index.json").read_bytes()
    (home / "wrapped").write_bytes(WRAPPERS[wrapper](index))
    for name in ("wrapped", f"wrapped::{NAME}"):
        with pytest.raises(UnreadableError):
            open_checkpoint(name)


def test_shards_in_an_archive(tmp_path: Path) -> None:
    home = BUILT["sharded"](tmp_path).path
    members = {path.name: path.read_bytes() for path in home.iterdir()}
    first = next(path for path in home.iterdir() if path.suffix == ".safetensors")
    members["model-00002-of-00002.safetensors"] = first.read_bytes()
    (tmp_path / "a.tar").write_bytes(tarred(members))
    with pytest.raises(AmbiguousError) as error:
        open_checkpoint(tmp_path / "a.tar")
    assert "unpack it" in error.value.hint


def test_a_path_that_is_there_is_what_it_says(tmp_path: Path) -> None:
    data = saved(tmp_path).read_bytes()
    (tmp_path / "a.zip").write_bytes(zipped({"b.pt": b"not this"}))
    (tmp_path / "a.zip::b.pt").write_bytes(data)
    with open_checkpoint(tmp_path / "a.zip::b.pt") as checkpoint:
        assert (len(checkpoint.tensors), checkpoint.wrappings) == (2, ())
    (tmp_path / "odd::name.zip").write_bytes(zipped({"in::side.pt": data}))
    assert len(read(tmp_path / "odd::name.zip")[0]) == 2
    assert len(read(tmp_path / "odd::name.zip::in::side.pt")[0]) == 2


# How deep


DEEP = {
    "gz of gz": lambda data: COMPRESSED["gzip"](COMPRESSED["gzip"](data)),
    "tar in tar": lambda data: tarred({"a.tar": tarred({"a.pt": data})}),
    "zip in zip": lambda data: zipped({"a.zip": zipped({"a.pt": data})}),
    "gz in a deflated member": lambda data: zipped({"a": COMPRESSED["gzip"](data)}, zipfile.ZIP_DEFLATED),
    "gz in tar.gz": lambda data: COMPRESSED["gzip"](tarred({"a": COMPRESSED["gzip"](data)})),
}


@pytest.mark.parametrize("deep", DEEP)
def test_one_archive_and_one_compression(deep: str, tmp_path: Path) -> None:
    (tmp_path / "deep").write_bytes(DEEP[deep](saved(tmp_path).read_bytes()))
    for name in ("deep", "deep::a", "deep::a.zip", "deep::a.tar"):
        with pytest.raises(UnreadableError):
            open_checkpoint(tmp_path / name)


# Damage


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_length(wrapper: str, tmp_path: Path) -> None:
    bare, path = BUILT["safetensors"](tmp_path).path, tmp_path / "wrapped"
    data, whole = WRAPPERS[wrapper](bare.read_bytes()), read(bare)
    for length in some(range(0, len(data), 1 + len(data) // 400)):
        path.write_bytes(data[:length])
        with suppress(UnreadableError):
            assert read(path) == whole, length  # what is gone was padding


CHECKED = [*COMPRESSED, "zip deflated", "tar.gz", "tar.zst", "zip.xz"]


@pytest.mark.parametrize("wrapper", CHECKED)
def test_every_flipped_bit(wrapper: str, tmp_path: Path) -> None:
    """Of safetensors, which has no checksum itself: what is around it has one."""
    bare, path = BUILT["safetensors"](tmp_path).path, tmp_path / "wrapped"
    data, whole = bytearray(WRAPPERS[wrapper](bare.read_bytes())), read(bare)
    num_found = 0
    for at in some(range(len(data))):
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        data[at] ^= 1 << at % 8
        try:
            assert read(path) == whole, at
        except UnreadableError:
            num_found += 1
    assert num_found > len(some(range(50)))


STORED = ["zip", "zip wide", "zip into a pipe"]


@pytest.mark.parametrize("wrapper", STORED)
def test_a_damaged_stored_member(wrapper: str, tmp_path: Path) -> None:
    bare, path = BUILT["safetensors"](tmp_path).path, tmp_path / "wrapped"
    data = bytearray(WRAPPERS[wrapper](bare.read_bytes()))
    path.write_bytes(data)
    assert ptsave.verify(path, checks=["bytes"]).is_yes
    last = bytes(data).index(bare.read_bytes()) + bare.stat().st_size - 1
    data[last] ^= 1
    path.write_bytes(data)
    verdict = ptsave.verify(path, checks=["bytes"])
    assert not verdict.is_yes
    with pytest.raises(CorruptError, match="CRC-32"):
        ptsave.convert(path, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


# What is left


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux lists them")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nothing_stays_open_and_nothing_is_left(wrapper: str, tmp_path: Path) -> None:
    path = tmp_path / "wrapped"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        for data in (saved(tmp_path).read_bytes(), b"hello", saved(tmp_path).read_bytes()[:-30]):
            path.write_bytes(WRAPPERS[wrapper](data))
            before = open_descriptors()
            try:
                with open_checkpoint(path) as checkpoint:
                    contents(checkpoint)
                    assert list(temporary.iterdir()) == []
            except UnreadableError:
                pass
            assert open_descriptors() == before
            assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux lists them")
def test_a_candidate_is_closed_where_the_next_member_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.pt", saved(tmp_path).read_bytes())
        archive.writestr("b.pt", saved(tmp_path).read_bytes())
    data = bytearray(path.read_bytes())
    at = data.find(b"b.pt") + 40
    data[at : at + 40] = bytes(byte ^ 0xFF for byte in data[at : at + 40])
    path.write_bytes(data)
    before = open_descriptors()
    with pytest.raises(CorruptError, match="deflated member is damaged") as kept:
        open_checkpoint(path)
    assert open_descriptors() == before, kept


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs a device that is full")
    path = tmp_path / "a.gz"
    path.write_bytes(COMPRESSED["gzip"](saved(tmp_path).read_bytes()))
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 (closed as the temporary file is)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(NoRoomError, match="the disk is full") as error:
        open_checkpoint(path)
    assert "TMPDIR" in error.value.hint


def test_no_folder_to_unpack_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(COMPRESSED["gzip"](saved(tmp_path).read_bytes()))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(WriteError, match="the folder is gone") as error:
        open_checkpoint(path)
    assert error.value.where == f"{path}, unpacked into {tmp_path / 'nowhere'}"
    assert "TMPDIR" in error.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["gzip", "zstd", "xz", "tar", "zip", "zip deflated", "tar.gz"])
def test_memory_does_not_grow_with_the_file(wrapper: str, tmp_path: Path) -> None:
    """32 MiB of numbers that do not compress."""
    torch.save({f"w{i}": torch.randn(1024, 1024) for i in range(8)}, tmp_path / "a.pt")
    (tmp_path / "wrapped").write_bytes(WRAPPERS[wrapper]((tmp_path / "a.pt").read_bytes()))
    peaks = []
    for name in ("a.pt", "wrapped"):
        command = [sys.executable, "-c", PEAK, "convert", name, f"{name}.safetensors"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        peaks.append(int(done.stderr.split()[-1]))
    assert (tmp_path / "a.pt.safetensors").read_bytes() == (tmp_path / "wrapped.safetensors").read_bytes()
    assert peaks[1] < peaks[0] + 24 * 1024, peaks


PEAK = """
import resource, sys
from ptsave.cli.main import run
code = run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""
