"""Pickles that torch did not write."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path

import pytest

from ptsave.errors import CorruptError, UnknownFormatError
from ptsave.formats import open_checkpoint
from tests.attacks import torch_files as tf


@pytest.mark.parametrize("protocol", range(6))
def test_named_with_what_it_would_use(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([Namespace(a=1), {"b": Path}], protocol))
    with pytest.raises(
        UnknownFormatError, match=r"is a Python pickle.*argparse\.Namespace, pathlib\.Path"
    ) as caught:
        open_checkpoint(path)
    assert "can run anything" in caught.value.hint


def test_the_danger_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    names = b"".join(b"cmodule\nname%d\n" % i for i in range(9))
    path.write_bytes(b"(" + names + b"cos\nsystem\n(S'echo'\ntRl.")
    with pytest.raises(UnknownFormatError, match=r"would use os\.system, module\.name0.* and 5 more"):
        open_checkpoint(path)


def test_plain_data_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for data in (pickle.dumps({"a": 1}, 2), pickle.dumps({"a": 1}, 4)[:-3]):
        path.write_bytes(data)
        with pytest.raises(UnknownFormatError, match=r"torch\.save did not write \("):
            open_checkpoint(path)


@pytest.mark.parametrize("end", [b"", b"R", b"RR.", b"\xff", b"Rh\x09.", b"RI+1\n."])
def test_what_a_broken_pickle_has_called(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for start in (b"\x80\x02", b"("):
        path.write_bytes(start + b"cos\nsystem\nS'id'\n\x85" + end)
        with pytest.raises(UnknownFormatError, match=r"would use os\.system") as caught:
            open_checkpoint(path)
        assert caught.value.details["globals"]["os.system"]["kind"] == "runs"


def test_what_a_broken_pickle_in_a_container_has_called(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    called = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R"
    whole = called + b"."
    empty, count = pickle.dumps([], 2), pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    for data in (
        tf.pt_raw(called),
        count + empty + called,
        count + whole + b"\xff",
        count + empty + whole + b"\xff",
    ):
        path.write_bytes(data)
        with pytest.raises(CorruptError, match=r"before that it uses os\.system") as caught:
            open_checkpoint(path)
        assert caught.value.details["globals"]["os.system"]["used_for"] == "called"


def test_text_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("import os\n", "(see below)\n", "N.\n", "class A: pass\n", "]["):
        path.write_text(text)
        with pytest.raises(UnknownFormatError, match=r"text|JSON|TOML"):
            open_checkpoint(path)


def test_pickles_that_follow_a_harmless_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    both = pickle.dumps(["a"], 4) + b"\x80\x02crequests.api\nget\nX\x01\0\0\0a\x85R."
    path.write_bytes(both)
    with pytest.raises(UnknownFormatError, match=r"would use requests\.api\.get"):
        open_checkpoint(path)
    path.write_bytes(tf.pt_raw(both))
    with pytest.raises(CorruptError, match=r"bytes follow the pickle.*it uses requests\.api\.get"):
        open_checkpoint(path)
