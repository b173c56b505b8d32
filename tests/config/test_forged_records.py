"""Records that were written to talk `verify` into something: bad input like any other, and never a yes."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from ptsave.config.recorded import told_by
from ptsave.config.toml import load_config
from ptsave.formats import open_checkpoint
from tests.workshop import CONFIG, Saved, Workshop, edit_record, rewrite

FILE = Path("net.safetensors")
Document = dict[str, Any]
Forge = Callable[[Document], None]


def record() -> Document:
    with safetensors.safe_open(FILE, "pt") as file:
        document: Document = json.loads(file.metadata()["ptsave"])
    return document


def forge(change: Forge) -> None:
    behaviour = record()["behaviour"]
    change(behaviour)
    edit_record(FILE, behaviour=behaviour)


def pack(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def each(**fields: Any) -> Forge:
    """Set fields of every sample, or take them out where they are None."""

    def change(behaviour: Document) -> None:
        for sample in behaviour["tensors"]:
            sample.update(fields)
            for key in [key for key, value in fields.items() if value is None]:
                sample.pop(key, None)

    return change


def put(*path: str | int, value: Any) -> Forge:
    """Set one value."""

    def change(behaviour: Document) -> None:
        node: Any = behaviour
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


MISFITS: dict[str, Forge] = {
    "no sketch": each(sketch=""),
    "no sketch and no values": each(sketch="", values=None),
    "a sketch of 3": each(sketch=pack(0, 0, 0)),
    "a sketch of 32": each(sketch=pack(*[0.0] * 32)),
    "a sketch of NaN": each(sketch=pack(*[float("nan")] * 16)),
    "an infinite sketch": each(sketch=pack(*[float("inf")] * 16)),
    "a sketch that is too long": each(sketch=pack(*[1e30] * 16)),
    "a sketch that is no base64": each(sketch="%%%"),
    "a sketch that is a number": each(sketch=3),
    "an infinite norm": each(norm=float("inf")),
    "a norm of NaN": each(norm=float("nan")),
    "a huge norm": each(norm=10**400),
    "a negative norm": each(norm=-1.0),
    "a norm of text": each(norm="1"),
    "another norm than the values have": each(norm=0.0),
    "an infinite size": each(shape=[float("inf")]),
    "a huge size": each(shape=[10**400, 2]),
    "a negative size": each(shape=[-1]),
    "sizes whose product is huge": each(shape=[2**40] * 60),
    "1000 dimensions": each(shape=[1] * 1000),
    "no shape": each(shape=None),
    "a dtype without numbers": each(dtype="bits8"),
    "a quantized dtype": each(dtype="qint8"),
    "an unknown dtype": each(dtype="float99"),
    "a dtype that is a list": each(dtype=["float32"]),
    "a short digest": each(digest="00"),
    "an infinite count of NaN": each(odd=float("inf")),
    "more NaN than elements": each(odd=10**30),
    "an infinite call number": put("calls", 0, "number", value=float("inf")),
    "a huge call number": put("calls", 0, "number", value=10**400),
    "a kind that is not there": put("calls", 0, "kind", value=10**9),
    "a tensor that is not there": put("outputs", "output", value=10**9),
    "a tensor before the first": put("outputs", "output", value=-1),
    "a tensor of truth": put("outputs", "output", value=True),
    "an infinite count of dtypes": put("dtypes", "float32", value=float("inf")),
    "a dtype nobody knows": put("dtypes", "float99", value=1),
    "calls that are a table": put("calls", value={}),
    "tensors that are a number": put("tensors", value=3),
    "training that is text": put("training", value="blocks"),
    "an environment of lists": put("environment", "torch", value=[[[]]]),
    "inputs that are a list": put("inputs", value=[]),
    "inputs of a negative size": put("inputs", "named", "tokens", "shape", value=[-1]),
    "inputs of a huge size": put("inputs", "named", "tokens", "shape", value=[10**400]),
    "inputs that import": put("inputs", "named", "tokens", value={"value": {"_import_": "os.system"}}),
    "another determinism": put("determinism", value="always"),
    "another version": put("schema_version", value=[1]),
}


@pytest.fixture
def shop(workshop: Workshop, saved: Saved) -> Workshop:
    workshop.save_once(saved)
    return workshop


@pytest.mark.parametrize("what", MISFITS)
def test_every_number_of_a_record_is_bounded(shop: Workshop, what: str) -> None:
    forge(MISFITS[what])
    with open_checkpoint(FILE) as checkpoint:
        told = told_by(checkpoint)
    assert told.behaviour is None
    assert list(told.faults) == ["behaviour"]
    assert len(str(told.faults["behaviour"])) < 400


@pytest.mark.parametrize("what", ["no sketch and no values", "an infinite call number"])
def test_a_record_that_does_not_fit_is_a_finding(shop: Workshop, what: str) -> None:
    forge(MISFITS[what])
    outcome = shop.verify("net.safetensors", "--checks", "behaviour,bytes")
    assert not outcome.is_yes
    assert [where for where, _ in outcome.found("behaviour", "fail")] == ["record"]
    assert [where for where, _ in outcome.found("bytes", "fail")] == ["record"]


def test_a_record_that_does_not_fit_leaves_the_weights_readable(shop: Workshop) -> None:
    forge(MISFITS["a huge norm"])
    code, out, _ = shop.run("inspect", FILE)
    assert code == 0
    assert "the record does not fit" in out
    assert shop.run("load", FILE, "-c", "net.toml")[0] == 0
    assert shop.run("convert", FILE, "net.pt")[0] == 0
    assert shop.run("verify", FILE, "--json")[0] == 1


def _other_weights(tensors: dict[str, Any]) -> None:
    tensors["norm.weight"] = tensors["norm.weight"] * 1.05


def _figures_of_today(behaviour: Document) -> None:
    """Digests that today's tensors have, with figures of other ones: they are not what noise is told from."""
    other = torch.randn(16).tolist()
    for sample in behaviour["tensors"]:
        sample["sketch"] = pack(*(value * sample["norm"] for value in other))


CLAIMS: dict[str, Forge] = {
    "nothing": lambda behaviour: None,
    "no calls": lambda behaviour: behaviour.update(calls=[], has_all_calls=False),
    "random": put("determinism", value="none"),
    "other figures": _figures_of_today,
    "elsewhere": lambda b: b["environment"].update(torch="1.0", machine="vax", device_name="x", threads=99),
    "in bfloat16": put("dtypes", value={"bfloat16": 20}),
    "of nothing": put("dtypes", value={}),
    "all in training": put("training", value=["", "blocks", "norm", "head"]),
    "zeros for a norm": each(norm=1e-30, values=None, sketch=pack(*[0.0] * 16)),
}


@pytest.mark.parametrize(
    "what",
    ["other figures", *(pytest.param(w, marks=pytest.mark.slow) for w in CLAIMS if w != "other figures")],
)
def test_no_claim_of_a_record_excuses_other_weights(shop: Workshop, what: str) -> None:
    rewrite(FILE, _other_weights)
    edit_record(FILE, digests=None)
    forge(CLAIMS[what])
    assert not shop.verify().is_yes


def _floats_in_bfloat16(behaviour: Document) -> None:
    for sample in behaviour["tensors"]:
        sample["dtype"] = sample["dtype"].replace("float32", "bfloat16")


EXCUSES: dict[str, tuple[Forge, str]] = {
    "another torch": (put("environment", "torch", value="1.0"), "another environment (torch 1.0 → "),
    "another Python": (put("environment", "python", value="2.7"), "another environment (python 2.7 → "),
    "an environment that says less": (
        lambda b: b["environment"].pop("threads"),
        "another environment (threads unknown)",
    ),
    "TF32": (lambda b: b["environment"].update(device="cuda:0", tf32=True), "; TF32"),
    "weights in bfloat16": (put("dtypes", value={"bfloat16": 20}), "weights in bfloat16 when it was"),
    "tensors in bfloat16": (_floats_in_bfloat16, "bfloat16 inside the model, where float32 is now"),
    "nothing of the inside": (put("knows_inside", value=False), "dtypes that code computes in"),
}


@pytest.mark.parametrize(
    "what", ["an environment that says less", *(pytest.param(w, marks=pytest.mark.slow) for w in EXCUSES)]
)
def test_a_yes_that_rests_on_the_record_s_word_says_so_and_is_no_strict_one(
    shop: Workshop, what: str
) -> None:
    change, words = EXCUSES[what]
    shop.edit("parts", "return x + self.drop(torch.tanh(h))", "return (x * 3) / 3 + self.drop(torch.tanh(h))")
    forge(change)
    outcome = shop.verify("net.safetensors", "--checks", "behaviour", "--strict")
    assert not outcome.is_yes
    assert not outcome.found("behaviour", "fail")
    (message,) = [text for _, text in outcome.found("behaviour", "warn") if "record's word" in text]
    assert words in message


def test_dtypes_that_excuse_digests_are_named_and_no_strict_yes(shop: Workshop) -> None:
    rewrite(FILE, _other_weights)
    assert not shop.verify("net.safetensors", "--checks", "bytes", config=None).is_yes
    forge(put("dtypes", value={"bfloat16": 20}))
    outcome = shop.verify("net.safetensors", "--checks", "bytes", "--strict", config=None)
    assert not outcome.is_yes
    ((_, message),) = outcome.found("bytes", "warn")
    assert "on the record's word alone" in message
    code, _, err = shop.run("load", FILE, "-c", "net.toml")
    assert code == 0
    assert "not checked against the recorded digest: the record says that the dtype was another" in err


@pytest.mark.parametrize("what", ["some", "none", "rot13"])
def test_digests_that_cover_a_part_are_no_strict_yes(shop: Workshop, what: str) -> None:
    digests = record()["digests"]
    num = {"some": len(digests["tensors"]) - 2, "none": 0, "rot13": 0}[what]
    digests["tensors"] = dict(list(digests["tensors"].items())[:num])
    digests["algorithm"] = "rot13" if what == "rot13" else digests["algorithm"]
    num_bare = len(list_of(FILE)) - num
    edit_record(FILE, digests=digests)
    outcome = shop.verify("net.safetensors", "--checks", "bytes", "--strict", config=None)
    assert not outcome.is_yes
    ((_, message),) = outcome.found("bytes", "warn")
    if what == "rot13":
        assert "unknown algorithm 'rot13'" in message
    else:
        assert message.startswith(f"{num_bare} tensors (such as ")
        assert "have no digest in the record" in message


def list_of(file: Path) -> list[str]:
    with open_checkpoint(file) as checkpoint:
        return list(checkpoint.tensors)


def test_today_s_digests_with_forged_figures_do_not_widen_the_noise(shop: Workshop) -> None:
    """The forged record lists today's real digests under calls, with wild sketches, beside the old output."""
    old = record()["behaviour"]
    rewrite(FILE, _other_weights)
    edit_record(FILE, digests=None)
    assert shop.run("verify", FILE, "-c", "net.toml", "--record", "--checks", "keys")[0] == 0
    new = record()["behaviour"]
    _figures_of_today(new)
    start = len(old["tensors"])
    old["tensors"] += new["tensors"]
    first = old["calls"][0]
    first["outputs"] = {str(i): start + i for i in range(len(new["tensors"]))}
    edit_record(FILE, behaviour=old)
    assert not shop.verify().is_yes


@pytest.mark.parametrize("inputs", [{"shape": [0, 12], "dtype": "int64", "high": 50}])
def test_inputs_that_compare_nothing_are_no_comparison(shop: Workshop, inputs: Document) -> None:
    shop.write_config(CONFIG.replace("[2, 12]", "[0, 12]"))
    shop.save("net.safetensors", "--overwrite")
    rewrite(FILE, _other_weights)
    edit_record(FILE, digests=None)
    outcome = shop.verify()
    assert not outcome.found("behaviour", "ok")
    assert outcome.found("behaviour", "skipped")[0][1].startswith("nothing was compared")


# --- what the record says of inputs ---------------------------------------------------------------------


@pytest.mark.parametrize("key", ["file", "named"])
def test_a_record_names_no_files(shop: Workshop, key: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(FILE.read_bytes())
    value: Any = str(secret) if key == "file" else {"tokens": {"file": str(secret), "key": "x"}}
    inputs = {key: value}
    forge(put("inputs", value=inputs))
    edit_record(FILE, inputs=inputs)
    outcome = shop.verify()
    assert outcome.is_yes
    ((_, message),) = outcome.found("behaviour", "skipped")
    assert "no file that a record names is opened" in message
    assert "embed" not in json.dumps(outcome.found("behaviour", "skipped"))
    code, _, err = shop.run("load", FILE, "--trust-recorded", "--outputs", "y.npz")
    assert code == 2
    assert "there is nothing to run the model on" in err


def test_large_inputs_of_a_file_are_known_by_their_digests(workshop: Workshop) -> None:
    workshop.write_code(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = nn.Linear(1000, 2)\n\n"
        "    def forward(self, x):\n        return self.fc(x)\n"
    )
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(30, 1000)).astype("float32"))
    workshop.write_config('[model]\nclass = "nets.net.Net"\n[inputs]\nfile = "x.npz"\n')
    workshop.save()
    assert "x.npz" not in json.dumps(record())
    outcome = workshop.verify()
    assert outcome.found("behaviour", "ok") == [("output", "bitwise equal")], outcome.document
    code, out, _ = workshop.run("verify", FILE, "--trust-recorded", "--json")
    assert code == 0
    assert "inputs of files" in out
    np.savez("x.npz", x=np.zeros((30, 1000), "float32"))
    ((_, message),) = workshop.verify().found("behaviour", "skipped")
    assert message == "the config's inputs are not those that it was recorded with"


@pytest.mark.parametrize(
    "inputs",
    [
        {"named": {"tokens": {"shape": [10**5, 10**4], "dtype": "int64"}}},
        {"positional": [{"shape": [10**6], "dtype": "int64"}] * 1000},
        {"positional": [{"list": [{"shape": [10**6], "dtype": "int64"}] * 1000}]},
    ],
    ids=["one", "thousand", "list"],
)
def test_inputs_of_a_record_are_bounded_before_they_are_made(shop: Workshop, inputs: Document) -> None:
    forge(put("inputs", value=inputs))
    outcome = shop.verify()
    ((where, message),) = outcome.found("behaviour", "skipped")
    assert where == "record"
    assert "MAX_RECORDED_INPUTS = 4194304" in message


OUTER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 2)

    def forward(self, x):
        try:
            wide = torch.outer(x, x)
        except Exception:  # what the model catches is no way out
            wide = x
        return self.fc(wide.sum().reshape(1))
"""


@pytest.mark.parametrize("checks", ["behaviour", "roundtrip"])
def test_what_a_model_computes_of_recorded_inputs_is_bounded(workshop: Workshop, checks: str) -> None:
    """200,000 numbers, of which the model makes 160 GB."""
    workshop.write_code(OUTER)
    workshop.write_config('[model]\nclass = "nets.net.Net"\n[inputs.x]\nshape = [4]\n')
    workshop.save()
    wide = {"named": {"x": {"shape": [200_000], "dtype": "float32"}}}
    forge(put("inputs", value=wide))
    edit_record(FILE, inputs=wide)
    arguments = [] if checks == "behaviour" else ["--trust-recorded"]
    config = "net.toml" if checks == "behaviour" else None
    outcome = workshop.verify("net.safetensors", "--checks", checks, *arguments, config=config)
    ((_, message),) = outcome.found(checks, "skipped")
    assert "MAX_ACTIVATION_BYTES = 2147483664 (found 160000800000)" in message
    if checks == "roundtrip":
        code, _, err = workshop.run("load", FILE, "--trust-recorded", "--outputs", "y.npz")
        assert code == 3
        assert "MAX_ACTIVATION_BYTES" in err


def test_the_cap_on_inputs_grows_with_the_config_s_own(shop: Workshop) -> None:
    forge(put("inputs", "named", "tokens", "shape", value=[2**20, 12]))
    assert "MAX_RECORDED_INPUTS" in json.dumps(shop.verify().document)
    shop.write_config(CONFIG.replace("[2, 12]", f"[{2**20}, 12]"))
    with open_checkpoint(FILE) as checkpoint:
        assert not told_by(checkpoint, load_config(Path("net.toml")).inputs).faults
