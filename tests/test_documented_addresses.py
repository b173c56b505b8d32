"""The commands of README and docs with an address in place of each path: they do and say the same."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.docs import PIECE
from tests.servers.stores import S3
from tests.support import Command

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *("docs/recipes.md", "docs/signatures.md", "docs/tutorial.md"),
    *(f"docs/commands/{name}.md" for name in ("convert", "inspect", "load", "save", "verify")),
]
LOCAL = ("--sign", "--signed-by")
"""Options whose path is a key's, on this machine."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the sessions begin with."""
    folder = tmp_path_factory.mktemp("docs") / "files"
    shutil.copytree(ROOT / "configs", folder / "configs")
    subprocess.run([sys.executable, ROOT / "scripts" / "docs_files.py"], cwd=folder, check=True)
    return folder


def commands(page: str) -> Iterator[str]:
    """The commands of a page, in order."""
    for piece in PIECE.finditer((ROOT / page).read_text(encoding="utf-8")):
        if piece["command"]:
            yield piece["command"]
        elif piece["console"]:
            yield from re.findall(r"^\$ (.*)$", piece["body"], re.MULTILINE)


@dataclass
class Bucket:
    """A bucket that has what is in a folder."""

    store: S3
    folder: Path

    def fill(self) -> None:
        """Have it hold what the folder holds."""
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*")}
        for name in {*self.store.names()} - files.keys():
            self.store.client.delete_object(Bucket=self.store.bucket, Key=name)
        for name, path in files.items():
            if path.is_file():
                self.store.put(name, path.read_bytes())

    def names(self) -> list[str]:
        """What is in the folder, as the bucket would list it."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


def addressed(words: list[str], bucket: Bucket) -> list[str]:
    """The command with addresses in place of paths."""
    return [
        f"{bucket.store.address}/{word}"
        if before not in LOCAL and not word.startswith("-") and (bucket.folder / word).exists()
        else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def said(text: str, address: str) -> str:
    """What a command says, less where things are and what docs/addresses.md says of addresses alone."""
    text = text.replace(f"{address}/", "").replace(address, "")
    text = re.sub(r"; checked by [^\n]*", "", text)  # a disk is read back for a file of other contents alone
    text = re.sub(r"(\"?)read by ranges: [^\"\n]* as verify does\1", "", text)
    return re.sub(r"\s+(notes\s+$)?", " ", text)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_command_does_and_says_the_same_at_an_address(
    page: str,
    files: Path,
    one_s3: S3,
    ptsave_here: Command,
    tmp_path: Path,
    clean_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    here = tmp_path / "here"
    shutil.copytree(files, here)
    bucket = Bucket(one_s3, here)
    num_there = 0
    for command in commands(page):
        words = shlex.split(command)
        if words[0] != "ptsave":
            subprocess.run(["bash", "-c", command], cwd=here, env=clean_env, stdout=subprocess.DEVNULL)
            continue
        words = words[: words.index("|")] if "|" in words else words
        bucket.fill()
        local = ptsave_here(*words[1:], code=None, cwd=here)
        if "bytes,safe,program" in words:
            continue  # onnxruntime reads local files: at an address the check is skipped, and says so
        there = addressed(words, bucket)
        remote = ptsave_here(*there[1:], code=local.returncode, cwd=here, env=one_s3.env)
        for of_local, of_remote in ((local.stdout, remote.stdout), (local.stderr, remote.stderr)):
            assert said(of_remote, one_s3.address) == said(of_local, one_s3.address), there
        assert {*bucket.names()} - {*one_s3.names()} <= {"ptsave.lock"}  # which is of this folder
        num_there += there != words
    assert num_there
