"""Models of transformers load as strict `load_state_dict` does, and are refused where it refuses."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ptsave
from ptsave.config.model import ConfigPlace, parse_model
from ptsave.core.parts.select import select_model
from ptsave.errors import LossyError
from ptsave.formats import open_checkpoint
from ptsave.models.build import build_model
from ptsave.models.weights.fill import build_filled

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
MAMBA = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertModel": ("BertConfig", {**SMALL, "vocab_size": 32}),
    "BertForMaskedLM": ("BertConfig", {**SMALL, "vocab_size": 32}),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "T5ForConditionalGeneration": ("T5Config", T5),
    "LlamaForCausalLM": ("LlamaConfig", {**SMALL, "vocab_size": 32, "num_key_value_heads": 1}),
    "MambaForCausalLM": ("MambaConfig", MAMBA),
    "ViTForImageClassification": ("ViTConfig", {**SMALL, "image_size": 8, "patch_size": 4}),
}
State = dict[str, Tensor]


def less(state: State) -> State:
    """Without one that is not tied: of tied names, one is enough."""
    memory = [value.data_ptr() for value in state.values()]
    gone = next(name for name, value in reversed(state.items()) if memory.count(value.data_ptr()) == 1)
    return OrderedDict((name, value) for name, value in state.items() if name != gone)


CHANGES: dict[str, Callable[[State], State]] = {
    "whole": lambda state: state,
    "one missing": less,
    "one too many": lambda state: OrderedDict(state, more=torch.ones(2)),
    "of a wrapper": lambda state: OrderedDict((f"module.{name}", value) for name, value in state.items()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_strict_load_state_dict(name: str, change: str, tmp_path: Path) -> None:
    config, arguments = MODELS[name]
    spec = parse_model(
        {
            "class": f"transformers.{name}",
            "args": {"config": {"_target_": f"transformers.{config}", **arguments}},
        },
        ConfigPlace("", ("model",)),
    )

    def build(seed: int) -> nn.Module:
        return build_model(spec, device="cpu", seed=seed)

    torch.save(CHANGES[change](build(1).state_dict()), tmp_path / "m.pt")
    theirs, ours = build(2), build(2)
    saved = torch.load(tmp_path / "m.pt", weights_only=True)
    if change == "of a wrapper":
        saved = {name.removeprefix("module."): value for name, value in saved.items()}
    is_refused = False
    try:
        theirs.load_state_dict(saved, strict=True)
    except RuntimeError:
        is_refused = True

    def built() -> nn.Module:
        with open_checkpoint(tmp_path / "m.pt") as checkpoint:
            selection = select_model(checkpoint)
            return build_filled(spec, checkpoint, selection, "cpu", warnings.warn, app_dir=None)[0]

    if is_refused:
        for load in (lambda: ptsave.load(tmp_path / "m.pt", ours), built):
            with pytest.raises(LossyError):
                load()
        assert_same(ours, build(2))
        return
    ptsave.load(tmp_path / "m.pt", ours)
    assert_same(ours, theirs)
    assert_same(built(), theirs)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Equal values, buffers outside of the state dict too, and the same ties."""
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1]), one[0]
    assert ties(ours) == ties(theirs)


def tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def ties(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]
