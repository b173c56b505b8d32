"""What docs/architecture.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted({path.name for path in (ROOT / "ptsave").iterdir() if path.is_dir() and path.name[0] != "_"})
DOTTED = sorted(set(re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)`", TEXT)))
PATHS = sorted(set(re.findall(r"`((?:tests|ptsave)/[\w/.]+|\w+/\w+\.py)`", TEXT)))


@pytest.mark.parametrize("name", DOTTED)
def test_each_station_is_a_module_or_lies_in_one(name: str) -> None:
    module = ROOT.joinpath("ptsave", *name.split("."))
    if module.with_suffix(".py").exists() or (module / "__init__.py").exists():
        return
    *_, thing = name.split(".")
    outer = module.parent
    while not (outer.with_suffix(".py").exists() or (outer / "__init__.py").exists()):
        outer = outer.parent
    file = outer.with_suffix(".py") if outer.with_suffix(".py").exists() else outer / "__init__.py"
    assert re.search(rf"\b{thing}\b", file.read_text(encoding="utf-8")), f"{name}: {file} has no {thing}"


@pytest.mark.parametrize("path", PATHS)
def test_each_path_is_there(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "ptsave" / path).exists()


def test_every_room_is_drawn() -> None:
    assert [room for room in ROOMS if f"`{room}/`" not in TEXT and room not in ("examples",)] == []
