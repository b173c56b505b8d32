"""Pickles that torch did not write."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path

import pytest

from ptsave.errors import UnknownFormatError
from ptsave.formats import open_checkpoint


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
        with pytest.raises(UnknownFormatError, match=r"not of torch\.save \("):
            open_checkpoint(path)


def test_text_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("import os\n", "(see below)\n", "N.\n", "class A: pass\n", "]["):
        path.write_text(text)
        with pytest.raises(UnknownFormatError, match=r"text|JSON|TOML"):
            open_checkpoint(path)
