"""One rank of many loads, each of a model with loading code of its own, sharded over all ranks by FSDP2 or by
tensor parallelism.

`python -m` of this module under torchrun, with the names of cases in a JSON file; `NUMBER.pt` is the file of
each, and `NUMBER-inside.pt` of the same model inside another one, which `tensor.toml` describes.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import ptsave
from ptsave.config.model import ConfigPlace, parse_model
from ptsave.config.toml import Config, load_config
from ptsave.core.parts.select import select_model
from ptsave.distributed.group import Group
from ptsave.distributed.joined import joined
from ptsave.distributed.load import shard_and_fill
from ptsave.distributed.plan import make_plan
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.models.build import build_model
from ptsave.models.weights.fitting import select_for
from ptsave.models.weights.own_shard import gathered
from ptsave.training.foreign import read_training
from ptsave.training.runs.sharded_read import read_parts
from ptsave.training.state import TrainingState
from tests.models.weights import test_loading_code as cases


def _contents(model: nn.Module) -> dict[str, Any]:
    found = cases.contents(model)
    return {name: gathered(value) for name, value in found.items()}


def _differs(model: nn.Module, other: nn.Module) -> str:
    try:
        cases.assert_same(_contents(model), _contents(other))
    except AssertionError as error:
        return f"differs: {error}"
    return "same"


def _load(group: Group, path: Path, case: str) -> nn.Module:
    place = ConfigPlace("", ("model",))
    spec = parse_model({"factory": f"{cases.__name__}.build", "args": {"case": case}}, place)
    spec = replace(spec, is_factory=False)
    plan = make_plan(Config(Path(), spec), group)
    with open_checkpoint(path) as checkpoint:
        model = build_model(spec, device="meta")
        selection = select_model(checkpoint)
        model, _ = shard_and_fill(group, plan, spec, checkpoint, selection, print, skeleton=model)
    return model


def _sharded(case: str) -> nn.Module:
    model = cases.build(case)
    mesh = init_device_mesh("cpu", (2,))
    for module in [*model.children()]:
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _load_split(group: Group, path: Path, case: str, style: str) -> nn.Module:
    """The linear layer of a case, split by `style` over the ranks."""
    config = load_config(Path("tensor.toml"), [f"model.args.case='{case}'", f"parallel.tensor.up='{style}'"])
    spec = replace(config.model, is_factory=False)
    with open_checkpoint(path) as checkpoint:
        model = build_model(spec, device="meta")
        selection = select_for(model, checkpoint)
        plan = make_plan(config, group)
        model, _ = shard_and_fill(group, plan, spec, checkpoint, selection, print, skeleton=model)
    weight = model.state_dict()["up.weight"]
    assert isinstance(weight, DTensor)
    assert not weight.placements[0].is_replicate()
    return model.get_submodule("up")


def _split_case(group: Group, path: Path, case: str, style: str) -> str:
    theirs = cases.build_inside(case)
    try:
        theirs.load_state_dict(torch.load(path, weights_only=False), strict=True)
    except (RuntimeError, NotImplementedError):
        theirs = nn.Module()
    try:
        ours = _load_split(group, path, case, style)
    except PtsaveError as error:
        return f"refused alone: {error}" if len(theirs.state_dict()) else "refused"
    except Exception:
        return traceback.format_exc()
    return _differs(theirs.get_submodule("up"), ours) if len(theirs.state_dict()) else "taken alone"


def _case(group: Group, path: Path, case: str, way: str) -> str:
    theirs = cases.build(case)
    try:
        theirs.load_state_dict(torch.load(path, weights_only=False), strict=True)
    except (RuntimeError, NotImplementedError):
        theirs = nn.Module()
    try:
        if way == "load":
            ours = _load(group, path, case)
        else:
            try:
                ours = _sharded(case)
            except Exception as error:  # what FSDP2 does not shard is not what is tested
                return f"cannot be sharded: {error}"
            if way == "into":
                ptsave.load(path, ours)
            else:
                state = TrainingState(model=ours)
                saved = read_training(path)
                if way == "parts":
                    saved, _ = read_parts(path, state.state_dict(), lambda root: ({"model": root}, []))
                state.load_state_dict(saved)
    except PtsaveError as error:
        return "refused" if not len(theirs.state_dict()) else f"refused alone: {error}"
    except Exception:
        return traceback.format_exc()
    return _differs(theirs, ours) if len(theirs.state_dict()) else "taken alone"


def main() -> None:
    warnings.simplefilter("ignore")
    with joined("cpu") as group:
        wanted = json.loads(Path(sys.argv[1]).read_text())
        results = {
            f"{way}: {case}": _case(group, Path(f"{number}.pt"), case, way)
            for number, case in enumerate(wanted)
            for way in ("load", "into", "resume", "parts")
        }
        results |= {
            f"{style}: {case}": _split_case(group, Path(f"{number}-inside.pt"), case, style)
            for number, case in enumerate(wanted)
            if isinstance(cases.build(case), nn.Linear)
            for style in ("colwise", "rowwise")
        }
        if group.is_first:
            Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    os._exit(0)
