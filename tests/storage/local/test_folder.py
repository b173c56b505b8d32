"""Folders in which files are swapped, and links that lead out of them."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from pathlib import Path

import pytest

from ptsave.errors import CorruptError, MissingFileError, UnreadableError
from ptsave.storage.local.folder import LocalFolder


def test_a_folder_knows_the_files_that_were_replaced_under_their_name(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"old")
    with LocalFolder(tmp_path) as folder, folder.open("a"), folder.open("b"):
        folder.open("c").close()
        folder.check_unchanged()
        folder.check_in_place()
        os.unlink(tmp_path / "b")  # as a careful writer removes what is superfluous
        folder.check_unchanged()
        (tmp_path / "new").write_bytes(b"new")
        os.replace(tmp_path / "new", tmp_path / "c")  # all of it was read when the folder was opened
        folder.check_unchanged()
        with pytest.raises(UnreadableError, match="was changed"):
            folder.check_in_place()
        (tmp_path / "new").write_bytes(b"new")
        os.replace(tmp_path / "new", tmp_path / "a")
        with pytest.raises(UnreadableError, match="was changed"):
            folder.check_unchanged()


def test_a_folder_that_is_swapped_is_the_one_that_was_opened(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "f").write_bytes(b"one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "f").write_bytes(b"two")
    with LocalFolder(tmp_path / "one") as folder:
        os.rename(tmp_path / "one", tmp_path / "aside")
        os.rename(tmp_path / "two", tmp_path / "one")
        with folder.open("f") as file:
            assert file.read_at(0, 3) == b"one"
        with pytest.raises(UnreadableError, match="was changed"):
            folder.check_in_place()


def test_links_inside_the_folder_and_into_the_cache_are_followed(tmp_path: Path) -> None:
    hub = tmp_path / "models--x"
    nested = hub / "snapshots" / "abc" / "unet"
    nested.mkdir(parents=True)
    (hub / "blobs").mkdir()
    (hub / "blobs" / "h").write_bytes(b"blob")
    (nested.parent / "f").symlink_to("../../blobs/h")
    (nested / "f").symlink_to("../../../blobs/h")
    (nested / "g").symlink_to("f")
    (nested / "sub").mkdir()
    (nested / "sub" / "x").write_bytes(b"inside")
    (nested / "i").symlink_to("sub/x")
    (nested / "j").symlink_to(nested / "sub" / "x")
    (nested / "out").symlink_to("../../../secret")
    (hub / "secret").write_bytes(b"secret")
    (nested / "loop").symlink_to("loop")
    with LocalFolder(nested.parent) as folder:
        assert folder.open("f").read_at(0, 4) == b"blob"
    (tmp_path / "way").symlink_to(nested)
    for path in (nested, tmp_path / "way"):
        with LocalFolder(path) as folder:
            assert folder.open("f").read_at(0, 4) == b"blob"
            assert folder.open("g").read_at(0, 4) == b"blob"
            assert folder.open("i").read_at(0, 6) == b"inside"
            assert folder.open("j").read_at(0, 6) == b"inside"
            for name in ("out", "loop"):
                with pytest.raises(CorruptError, match="symbolic link"):
                    folder.open(name)
            with pytest.raises(MissingFileError):
                folder.open("sub")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder-inside"])
def test_a_file_that_is_swapped_for_a_link_is_never_followed_out(tmp_path: Path, kind: str) -> None:
    """A thread swaps the file, or a folder on the way of an allowed link, for a link out of the folder."""
    folder, secret = tmp_path / "f", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    (secret / "x").write_bytes(b"secret")
    (folder / "real").mkdir()
    (folder / "real" / "x").write_bytes(b"inside")
    (folder / "shard").write_bytes(b"inside")
    if kind == "folder-inside":
        os.unlink(folder / "shard")
        (folder / "shard").symlink_to("real/x")
    swapped, target = (folder / "shard", secret / "x") if kind == "file" else (folder / "real", secret)
    stop = threading.Event()

    def swap() -> None:
        aside, link = folder / "aside", folder / "link"
        while not stop.is_set():
            os.symlink(target, link)
            os.rename(swapped, aside)
            os.rename(link, swapped)
            os.unlink(swapped)
            os.rename(aside, swapped)
            time.sleep(random.choice([0, 0.0001, 0.005]))  # let the other thread meet the file itself, too

    thread = threading.Thread(target=swap)
    seen = {"inside": 0, "refused": 0}
    try:
        with LocalFolder(folder) as opened:  # it lists its names once, before they move
            thread.start()
            give_up = time.monotonic() + 120
            for tries in itertools.count():
                if (tries >= 20_000 and all(seen.values())) or time.monotonic() > give_up:
                    break
                try:
                    with opened.open("shard") as file:
                        assert file.read_at(0, 6) == b"inside"
                        seen["inside"] += 1
                except UnreadableError:
                    seen["refused"] += 1
                opened._opened.clear()
    finally:
        stop.set()
        thread.join()
    assert seen["inside"]
    assert seen["refused"]
