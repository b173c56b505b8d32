"""What the tests of exports share: a checkpoint and a config of one of `tests.export.models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Command

Prepare = Callable[..., tuple[Path, Path]]


@pytest.fixture
def prepare(ptsave_here: Command, tmp_path: Path) -> Prepare:
    """Write a config of the class `name` with fresh weights of it; returns the checkpoint and the config."""

    def write(name: str, inputs: str, **args: Any) -> tuple[Path, Path]:
        target = name if "." in name else f"tests.export.models.{name}"
        table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in args.items())
        config = tmp_path / "model.toml"
        config.write_text(f'[model]\nclass = "{target}"\n[model.args]\n{table}{inputs}\n')
        checkpoint = tmp_path / "model.safetensors"
        ptsave_here("save", config, checkpoint, "--overwrite", "--no-behaviour")
        return checkpoint, config

    return write
