"""Whatever a tar archive's headers say: what is accepted, Python's tarfile and GNU tar read the same way."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptsave.errors import PtsaveError
from ptsave.formats.wrapped.tar import TarDirectory
from ptsave.storage.local.file import LocalFile
from tests.formats.wrapping import tarred
from tests.support import examples

MEMBERS = {"a.pt": b"first" * 200, "folder/b.pt": b"second", "long" * 60: b"third", "c": b""}
BASES = [
    tarred(MEMBERS, tarfile.GNU_FORMAT),
    tarred(MEMBERS, tarfile.PAX_FORMAT),
    tarred({"a.pt": b"x" * 700, "b.pt": b"y"}, tarfile.USTAR_FORMAT),
]


def by_ptsave(data: bytes, folder: Path) -> dict[str, bytes] | None:
    """Name → bytes; None where it is refused."""
    (folder / "a.tar").write_bytes(data)
    with LocalFile(folder / "a.tar") as file:
        try:
            found = TarDirectory(file)
        except PtsaveError:
            return None
        return {
            name: file.read_at(member.offset_bytes, member.num_bytes)
            for name, member in found.members.items()
        }


def by_tarfile(data: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for info in archive.getmembers():
            if info.isreg():
                member = archive.extractfile(info)
                assert member is not None
                found[info.name.removeprefix("./")] = member.read()
    return found


def by_gnu_tar(folder: Path) -> dict[str, bytes] | None:
    """What `tar` unpacks; None where it warns, or leaves out what it thinks unsafe."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    done = subprocess.run(["tar", "-xf", folder / "a.tar", "-C", out], capture_output=True)
    if done.returncode or done.stderr:
        return None
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def headers_of(data: bytes) -> list[int]:
    """Where headers lie, those before a member's own among them."""
    found, at = [], 0
    while data[at : at + 512].strip(b"\0"):
        found.append(at)
        size = tarfile.TarInfo.frombuf(data[at : at + 512], "utf-8", "surrogateescape").size
        at += 512 + -(-size // 512) * 512
    return found


FIELDS = {
    "name": (0, 100),
    "size": (124, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}
VALUES = st.one_of(
    st.sampled_from(
        [
            b"",
            b"a.pt",
            b"./a.pt",
            b"b.pt\0x",
            b"x/",
            b"5",
            b"0",
            b"\0",
            b"1",
            b"L",
            b"x",
            b"S",
            b"ustar\00000",
            b"ustar  \0",
            b"00000000005\0",
            b"\x80" + bytes(10) + b"\5",
            b"7",
        ]
    ),
    st.binary(min_size=1, max_size=12),
)


@settings(
    max_examples=examples(150),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_readers_agree(data: st.DataObject, tmp_path: Path) -> None:
    archive = bytearray(data.draw(st.sampled_from(BASES)))
    headers = headers_of(archive)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(headers))
        where, most = FIELDS[data.draw(st.sampled_from(sorted(FIELDS)))]
        value = data.draw(VALUES)[:most]
        archive[at + where : at + where + len(value)] = value
        header = bytes(archive[at : at + 148]) + b" " * 8 + bytes(archive[at + 156 : at + 512])
        archive[at + 148 : at + 156] = f"{sum(header):06o}\0 ".encode()
    if data.draw(st.booleans()):  # in what an extended header holds, or a member
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    ours = by_ptsave(bytes(archive), tmp_path)
    if ours is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert by_tarfile(bytes(archive)) == ours
    if shutil.which("tar") is not None and (unpacked := by_gnu_tar(tmp_path)) is not None:
        assert unpacked == ours


@pytest.mark.parametrize("base", range(len(BASES)))
def test_what_tarfile_writes(base: int, tmp_path: Path) -> None:
    assert by_ptsave(BASES[base], tmp_path) == by_tarfile(BASES[base])


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_gnu_tar_writes(format: str, tmp_path: Path) -> None:
    content = tmp_path / "content"
    (content / "folder").mkdir(parents=True)
    names = ["a.pt", "folder/b.pt"] if format in ("v7", "ustar") else ["a.pt", "folder/b.pt", "l" * 150]
    for name in names:
        (content / name).write_bytes(name.encode() * 300)
    (content / "link").symlink_to("a.pt")
    subprocess.run(["tar", f"--format={format}", "-cf", tmp_path / "a.tar", "-C", content, "."], check=True)
    data = (tmp_path / "a.tar").read_bytes()
    assert by_ptsave(data, tmp_path) == {name: name.encode() * 300 for name in names}
