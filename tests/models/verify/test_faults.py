"""Every fault that `verify` is to tell apart, really caused: the verdict, the layer and the cause."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workshop import CONFIG, PARTS, Saved, Workshop, edit_record, flip_bit, rewrite

FILE = Path("net.safetensors")
Tensors = dict[str, Any]


@pytest.fixture
def shop(workshop: Workshop, saved: Saved) -> Workshop:
    """A workshop with the checkpoint of its model in `net.safetensors`."""
    workshop.save_once(saved)
    return workshop


def test_a_sound_model_is_a_yes_without_a_cause(shop: Workshop) -> None:
    outcome = shop.verify()
    assert outcome.is_yes
    assert outcome.cause == ""
    assert outcome.found("behaviour", "ok") == [("output", "bitwise equal")]
    assert not [f for f in outcome.document["findings"] if f["level"] not in ("ok", "warn")]
    assert not outcome.first


# --- the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("byte", "bit"), [(6, 6), (0, 0)], ids=["high", "low"])
def test_a_flipped_bit_names_its_tensor(shop: Workshop, byte: int, bit: int) -> None:
    flip_bit(FILE, "blocks.1.up.weight", byte, bit)
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause == "damaged: 1 of 20 tensors does not match its digest (blocks.1.up.weight)"
    assert [where for where, _ in outcome.found("bytes", "fail")] == ["blocks.1.up.weight"]
    assert outcome.first == (["blocks.1.up"] if bit == 6 else [])


def test_a_flipped_bit_is_found_without_the_check_of_bytes(shop: Workshop) -> None:
    flip_bit(FILE, "norm.weight")
    outcome = shop.verify("net.safetensors", "--checks", "behaviour")
    assert not outcome.is_yes
    assert outcome.cause == "damaged: 1 of 20 tensors does not match its digest (norm.weight)"
    assert outcome.first == ["norm"]


def test_a_flipped_bit_without_digests_is_put_down_to_the_layer(shop: Workshop) -> None:
    """A record whose digests are gone: what the layers compute is all that there is to go by."""
    edit_record(FILE, digests=None)
    flip_bit(FILE, "blocks.0.down.weight")
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.first == ["blocks.0.down"]
    assert outcome.cause.startswith("changed numerics: there are no digests, the same environment")
    assert outcome.cause.endswith("more than rounding explains from 'blocks.0.down' on")


def _swap(tensors: Tensors) -> None:
    one, other = "blocks.0.up.weight", "blocks.1.up.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]


def test_exchanged_tensors(shop: Workshop) -> None:
    rewrite(FILE, _swap)
    outcome = shop.verify()
    assert not outcome.is_yes
    expected = "exchanged: 'blocks.0.up.weight' and 'blocks.1.up.weight' hold each other's values"
    assert outcome.cause == expected
    assert outcome.first == ["blocks.0.up"]


def test_exchanged_tensors_in_a_file_whose_crcs_are_right(shop: Workshop) -> None:
    assert shop.run("convert", FILE, "net.pt")[0] == 0
    state = torch.load("net.pt", weights_only=True)
    _swap(state)
    torch.save(state, "swapped.pt")
    with zipfile.ZipFile("net.pt") as old, zipfile.ZipFile("swapped.pt", "a") as new:
        (record,) = [name for name in old.namelist() if name.endswith("ptsave.json")]
        new.writestr("swapped/ptsave.json", old.read(record))
    outcome = shop.verify("swapped.pt")
    assert not outcome.is_yes
    assert outcome.cause.startswith("exchanged: 'blocks.0.up.weight' and 'blocks.1.up.weight'")


def test_other_weights(shop: Workshop) -> None:
    def change(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name] + 1

    rewrite(FILE, change)
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause == "not the same weights: 20 of 20 tensors do not match their digests"


@pytest.mark.parametrize("has_digests", [True, False])
def test_a_lost_tie_in_the_file(shop: Workshop, has_digests: bool) -> None:
    def untie(tensors: Tensors) -> None:
        tensors["head.weight"] = tensors["embed.weight"] * 2

    rewrite(FILE, untie)
    if not has_digests:
        edit_record(FILE, digests=None)
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause == "lost ties: head.weight"


def test_a_tie_stored_twice_with_equal_values_is_no_fault(shop: Workshop) -> None:
    def copy(tensors: Tensors) -> None:
        tensors["head.weight"] = tensors["embed.weight"].clone()

    rewrite(FILE, copy)
    assert shop.verify().is_yes


# --- dtypes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_by_convert(shop: Workshop, dtype: str) -> None:
    assert shop.run("convert", FILE, "cast.safetensors", "--dtype", dtype)[0] == 0
    outcome = shop.verify("cast.safetensors")
    assert outcome.is_yes
    expected = f"dtype changed: 20 tensors float32 → {dtype}, outputs within {dtype} tolerance"
    assert outcome.cause == expected


def test_a_cast_by_another_tool(shop: Workshop) -> None:
    def cast(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(torch.bfloat16)

    rewrite(FILE, cast)
    outcome = shop.verify()
    assert outcome.is_yes
    assert outcome.cause == "dtype changed: 20 tensors float32 → bfloat16, outputs within bfloat16 tolerance"
    assert not outcome.found("bytes", "fail")
    assert shop.run("load", FILE, "-c", "net.toml")[0] == 0


def test_a_cast_and_damage(shop: Workshop) -> None:
    def change(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(torch.bfloat16)
        tensors["blocks.1.down.weight"][0] = 3

    rewrite(FILE, change)
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause.startswith("dtype changed: 20 tensors float32 → bfloat16, outputs outside bfloat16")
    assert outcome.first == ["blocks.1.down"]


def test_widening_changes_nothing(shop: Workshop) -> None:
    assert shop.run("convert", FILE, "wide.safetensors", "--dtype", "float64")[0] == 0
    outcome = shop.verify("wide.safetensors")
    assert outcome.is_yes
    assert outcome.cause == "dtype changed: 20 tensors float32 → float64, outputs bitwise equal"


# --- the code -------------------------------------------------------------------------------------------

BLOCK = "of nets.parts.Block differs (source digest), weights intact, outputs differ from"


@pytest.mark.parametrize(
    ("file", "old", "new", "first", "cause"),
    [
        ("parts", "nn.GELU()", "nn.ReLU()", "blocks.0.act", f"__init__ {BLOCK} 'blocks.0.act' on"),
        (
            "parts",
            "nn.GELU()",
            "nn.GELU(approximate='tanh')",
            "blocks.0.act",
            f"__init__ {BLOCK} 'blocks.0.act' on",
        ),
        ("parts", "torch.tanh(h)", "torch.sin(h)", "blocks.0", f"forward {BLOCK} 'blocks.0' on"),
        ("parts", "0.1 * self", "0.1001 * self", "blocks.0", f"forward {BLOCK} 'blocks.0' on"),
        (
            "net",
            "SCALE = 0.5",
            "SCALE = 0.5001",
            "",
            "nets.net.SCALE differs (source digest), weights intact, outputs differ",
        ),
        (
            "net",
            "eps=1e-5, dropout",
            "eps=1e-6, dropout",
            "blocks.0.norm",
            "__init__ of nets.net.Net differs (source digest), weights intact, outputs differ from "
            "'blocks.0.norm' on",
        ),
        (
            "parts",
            "x + self.drop(torch.tanh(h))",
            "x + F.dropout(torch.tanh(h), 0.1)",
            "blocks.0",
            f"forward {BLOCK} 'blocks.0' on",
        ),
        (
            "net",
            "torch.sin(torch.arange",
            "torch.cos(torch.arange",
            "",
            "__init__ of nets.net.Net differs (source digest), weights intact, positions made otherwise, "
            "outputs differ",
        ),
    ],
)
def test_changed_code_names_what_changed_and_where_it_shows(
    shop: Workshop, file: str, old: str, new: str, first: str, cause: str
) -> None:
    shop.edit(file, old, new)
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.first == [first]
    assert outcome.cause == f"class changed since save: {cause}"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("parts", "self.again(h)", "(h @ self.again.weight.T + self.again.bias)"),
        ("parts", "self.up(self.norm(x))", "(self.norm(x) @ self.up.weight.T + self.up.bias)"),
        ("parts", "0.1 * self.again(h)", "self.again(h) / 10"),
        ("parts", "x + self.drop(torch.tanh(h)) + ", "self.drop(torch.tanh(h)) + x + "),
        ("parts", "torch.tanh(h)", "(2 * torch.sigmoid(2 * h) - 1)"),
        ("net", "dropout=0.1", "dropout=0.3"),
        (
            "net",
            "for block in self.blocks:\n            x = block(x)",
            "x = self.blocks[1](self.blocks[0](x))",
        ),
    ],
)
def test_refactoring_stays_a_yes(shop: Workshop, file: str, old: str, new: str) -> None:
    shop.edit(file, old, new)
    outcome = shop.verify()
    assert outcome.is_yes, outcome.document
    assert outcome.cause.startswith("class changed since save: ")
    assert outcome.cause.endswith(("outputs bitwise equal", "outputs explained by rounding"))


def test_a_comment_is_no_change(shop: Workshop) -> None:
    shop.write_code(parts=PARTS.replace("h = self", "# the hidden values\n        h = self"))
    outcome = shop.verify()
    assert outcome.is_yes
    assert outcome.cause == ""


def test_an_epsilon_in_the_config(shop: Workshop) -> None:
    shop.write_config(CONFIG.replace("[inputs", "[model.args]\neps = 1e-4\n[inputs"))
    outcome = shop.verify()
    assert not outcome.is_yes
    expected = "config changed since save: eps None → 0.0001, weights intact, outputs differ from"
    assert outcome.cause == f"{expected} 'blocks.0.norm' on"


def test_a_tie_that_the_class_lost(shop: Workshop) -> None:
    shop.edit("net", "self.head.weight = self.embed.weight", "pass")
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause == "lost ties: head.weight"


def test_another_architecture(shop: Workshop) -> None:
    shop.edit("net", "range(2)", "range(3)")
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause.startswith("another architecture: 8 missing (blocks.2.norm.weight, ")
    assert outcome.cause.endswith(
        "; class changed since save: __init__ of nets.net.Net differs (source digest)"
    )
    assert outcome.found("behaviour", "skipped")


def test_left_in_train_mode(shop: Workshop) -> None:
    shop.edit(
        "net", "    def forward", "    def train(self, mode=True):\n        return self\n\n    def forward"
    )
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause == "left in train mode: the model"
    assert outcome.first == ["blocks.0.drop"]


def test_put_into_train_mode_by_forward(shop: Workshop) -> None:
    shop.edit(
        "parts", "    def forward(self, x):\n", "    def forward(self, x):\n        self.drop.train()\n"
    )
    outcome = shop.verify()
    assert not outcome.is_yes
    assert outcome.cause == "left in train mode: blocks.0.drop, blocks.1.drop"


@pytest.mark.parametrize("values", ["torch.empty(16, 24)", "torch.randn(16, 24)"])
def test_a_buffer_that_is_recreated_each_time(workshop: Workshop, values: str) -> None:
    """Memory as it was found, or random numbers: outside the state dict, they come back as others."""
    start = "torch.sin(torch.arange(384.0).reshape(16, 24))"
    fill = values if "randn" in values else f"{values}.uniform_()"
    workshop.edit("net", start, fill)
    workshop.save()
    outcome = workshop.verify()
    assert not outcome.is_yes
    assert outcome.cause.startswith("uninitialised buffer: positions ")
    assert outcome.first == [""]


# --- the machine ----------------------------------------------------------------------------------------


@pytest.fixture
def other_kernels() -> Iterator[None]:
    """Matrix products by another library, which adds in another order."""
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(True)


def test_other_numerics(shop: Workshop, other_kernels: None) -> None:
    outcome = shop.verify()
    assert outcome.is_yes
    if outcome.found("behaviour", "ok") == [("output", "bitwise equal")]:
        pytest.skip("this processor gets the same kernels from both libraries")
    assert outcome.cause.startswith("numerics: all digests match, mkldnn True → False, ")
    assert outcome.cause.endswith("explained by float32")


def test_another_number_of_threads(shop: Workshop) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert shop.verify().is_yes
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_another_precision_of_the_computation(shop: Workshop, precision: str) -> None:
    """The same weights in a model that computes in half precision: other numbers, as far off as that is."""
    shop.edit(
        "net", "        return self.head(self.norm(x))", "        return self.head(self.norm(x)).float()"
    )
    shop.edit("net", "self.embed.weight\n", f"self.embed.weight\n        self.to(torch.{precision})\n")
    outcome = shop.verify()
    assert outcome.is_yes, outcome.document
    assert outcome.cause.startswith("class changed since save: ")


NOISY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x) + 0.1 * torch.rand(6)
"""
NOISY_CONFIG = '[model]\nclass = "nets.net.Net"\n[inputs.x]\nshape = [3, 6]\n'


def test_a_model_that_draws_random_numbers(workshop: Workshop) -> None:
    workshop.write_code(NOISY)
    workshop.write_config(NOISY_CONFIG)
    workshop.save()
    outcome = workshop.verify()
    assert outcome.is_yes
    assert "not deterministic" in outcome.found("behaviour", "warn")[0][1]
    workshop.edit("net", "0.1 *", "0.2 *")
    assert not workshop.verify().is_yes


def test_a_model_that_no_seed_repeats(workshop: Workshop) -> None:
    workshop.write_code(
        NOISY.replace("torch.rand(6)", "torch.rand(6, generator=ENTROPY)").replace(
            "class Net", "ENTROPY = torch.Generator()\nENTROPY.seed()\n\n\nclass Net"
        )
    )
    workshop.write_config(NOISY_CONFIG)
    workshop.save()
    outcome = workshop.verify()
    assert outcome.is_yes, outcome.document
    assert any("two runs of it differ as much" in text for _, text in outcome.found("behaviour", "warn"))
    assert all("cannot be compared" in text for _, text in outcome.found("roundtrip", "skipped"))
    workshop.edit("net", "self.fc(x)", "40 * self.fc(x)")
    assert not workshop.verify().is_yes


@pytest.mark.parametrize(
    ("tolerance", "is_yes"), [("rtol = 0.5\natol = 0.5", True), ("rtol = 1e-9\natol = 0.0", False)]
)
def test_a_tolerance_of_the_users_own(shop: Workshop, tolerance: str, is_yes: bool) -> None:
    shop.edit("parts", "0.1 * self", "0.1001 * self")
    shop.write_config(f"{CONFIG}\n[verify]\n{tolerance}\n")
    assert shop.verify().is_yes is is_yes


def test_findings_say_what_is_measured(shop: Workshop) -> None:
    shop.edit("parts", "0.1 * self", "0.101 * self")
    ((where, message),) = [f for f in shop.verify().found("behaviour", "fail") if f[0] == "output"]
    assert where == "output"
    for words in ("relative off, rounding explains", "max absolute", "max relative", "ULP", "rtol 1.3e-06"):
        assert words in message


def test_growth_lists_every_call_in_order(shop: Workshop) -> None:
    shop.edit("parts", "torch.tanh(h)", "torch.sin(h)")
    growth = shop.verify().document["growth"]
    assert [call["module"] for call in growth][:3] == ["embed", "blocks.0.norm", "blocks.0.up"]
    off = {call["module"]: call["relative"] for call in growth}
    assert off["embed"] == off["blocks.0.down"] == 0
    assert off["blocks.0"] > 1e-4
    assert off["blocks.1.down"] > 0
    assert growth[-1]["module"] == ""
