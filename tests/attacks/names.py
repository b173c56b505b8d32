"""Names that would speak to the terminal, to rich, or to a reader of a report."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from . import torch_files as tf
from .pickles import EMPTY_TUPLE, PROTO2, REDUCE, STOP, Call, Name, New, Shared, dump, glob
from .registry import DESCRIBED, REFUSED, SHOWN, add, attack
from .zips import Entry, zip_bytes

NAMES: dict[str, str] = {
    "colour": "\x1b[31mred\x1b[0m",
    "clear_screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;pwned\x07",
    "hyperlink": "\x1b]8;;http://evil/\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cHduZWQ=\x07",
    "device_status": "\x1b[6n",
    "c1_control": "\x9b31mred",
    "bell": "\x07\x07",
    "backspaces": "safe\b\b\b\bevil",
    "carriage_return": "weight\rerror: none",
    "newline": "weight\nerror: forged (line)\nhint: forged",
    "vertical": "a\x0b\x0cb",
    "nul": "a\0b",
    "delete": "a\x7fb",
    "tab": "a\tb",
    "bidi_override": "\u202egnp.thgiew",
    "bidi_isolate": "\u2066a\u2069",
    "zero_width": "wei\u200bght\u2060\ufeff",
    "line_separator": "a\u2028b\u2029c\x85d",
    "tags": "a\U000e0041\U000e0042",
    "markup": "[red]x[/red]",
    "markup_link": "[link=http://evil/]x[/link]",
    "markup_broken": "[/nothing] [[ ]] [bold",
    "markup_emoji": ":smiley: [@click=app.bell]x[/]",
    "lone_surrogate": "a\ud800b",
    "private_use": "a\ue000\U000f0000b",
    "combining_pile": "Z" + "\u0351" * 2000,
    "only_dots": "..",
    "empty": "",
    "spaces": "   ",
    "percent": "%s %n {0} {name!r} $HOME `id` $(id)",
    "html": "</script><script>alert(1)</script>",
    "workflow_command": "::error file=x::forged\n::set-output name=a::b",
    "old_workflow_command": "##[error]forged",
    "azure_command": "##vso[task.setvariable variable=x]forged",
    "100_kb": "n" * 100_000,
}
"""None may reach stdout or stderr raw; all are legal names."""


def _pt(name: str) -> Callable[[], bytes]:
    return lambda: tf.pt(OrderedDict({name: tf.tensor(), "plain": {name: name}, "after": 1}))


def _safetensors(name: str) -> Callable[[], bytes]:
    header = {"__metadata__": {name: name, "format": "pt"}, name: tf.info()}
    return lambda: tf.safetensors(header, tf.FOUR)


def _global(name: str) -> Callable[[], bytes]:
    odd = Call(Name("module", "x"), (name,), {name: name})
    return lambda: tf.pt({name: odd, "w": tf.tensor()})


for _key, _name in NAMES.items():
    add(f"pt_name_{_key}", "names", _pt(_name), SHOWN)
    if _key == "lone_surrogate":
        add("safetensors_name_lone_surrogate", "names", _safetensors(_name), REFUSED, SHOWN)
    else:
        add(f"safetensors_name_{_key}", "names", _safetensors(_name), SHOWN, file="attack.safetensors")
    add(f"object_name_{_key}", "names", _global(_name), DESCRIBED, says="module.x")


def _named_global(name: str) -> Callable[[], bytes]:
    text = name.encode("utf-8", "surrogatepass")
    binary = b"X" + len(text).to_bytes(4, "little") + text
    return lambda: tf.pt_raw(b"\x80\x04" + binary + binary + b"\x93" + EMPTY_TUPLE + REDUCE + STOP)


for _key, _name in NAMES.items():
    _outcomes = (REFUSED, DESCRIBED)
    add(f"global_name_{_key}", "names", _named_global(_name), *_outcomes)


def _error_text(name: str) -> Callable[[], bytes]:
    """A name that has to stand in the error message."""
    return lambda: tf.safetensors({name: tf.info("\x1b[31mF32")}, tf.FOUR)


for _key, _name in NAMES.items():
    add(f"error_names_{_key}", "names", _error_text(_name), REFUSED, file="attack.safetensors")


# The path itself


def _path(name: bytes | str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / (os.fsdecode(name) if isinstance(name, bytes) else name)
        path.write_bytes(tf.PLAIN_SAFETENSORS)
        return path

    return build


def _bad_path(name: bytes | str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / (os.fsdecode(name) if isinstance(name, bytes) else name)
        path.write_bytes(b"garbage")
        return path

    return build


PATHS: dict[str, bytes | str] = {
    "escape": "\x1b[31mred\x1b[0m.safetensors",
    "newline": "a\nerror: forged (x)\nb.safetensors",
    "markup": "[red]x[].safetensors",
    "bidi": "\u202esrotnesnetefas.x",
    "not_utf_8": b"\xff\xfe.safetensors",
    "leading_spaces": "  x .safetensors",
}

for _key, _value in PATHS.items():
    add(f"path_{_key}", "names", _path(_value), SHOWN)
    add(f"path_{_key}_of_garbage", "names", _bad_path(_value), REFUSED)


@attack(SHOWN)
def zip_top_folder_of_escapes() -> bytes:
    return zip_bytes(tf.pt_entries(dump({"w": tf.tensor()}), top="\x1b[31m[red]"))


@attack(REFUSED)
def zip_entry_of_escapes_is_damaged() -> bytes:
    made = tf.pt_entries(dump({"w": tf.tensor()}), top="\x1b[31m\n[red]")
    made[0].local = {"crc": 1}
    return zip_bytes(made)


@attack(REFUSED, SHOWN)
def storage_location_of_escapes() -> bytes:
    return tf.pt({"w": tf.tensor(of=tf.storage(location="\x1b[31mcuda:0\n"))})


@attack(REFUSED)
def storage_key_of_escapes() -> bytes:
    return tf.pt({"w": tf.tensor(of=tf.storage(key="\x1b[31m0\n"))})


@attack(REFUSED)
def storage_type_of_escapes() -> bytes:
    return tf.pt({"w": tf.tensor(of=tf.storage("\x1b[31mFloatStorage"))})


@attack(REFUSED, DESCRIBED, says="mod")
def global_with_raw_bytes() -> bytes:
    """GLOBAL's text need not be UTF-8."""
    return tf.pt_raw(PROTO2 + b"cmod\xff\x1b[31m\nname\xfe\n" + EMPTY_TUPLE + REDUCE + STOP)


@attack(SHOWN)
def string_opcode_with_escapes() -> bytes:
    return tf.pt_raw(b"(dS'a\\x1b[31m\\n'\nI1\ns.")


@attack(SHOWN)
def unicode_opcode_with_escapes() -> bytes:
    return tf.pt_raw(b"(dVa\\u001b[31m\\u000a\nI1\ns.")


@attack(SHOWN)
def bytes_as_keys_and_values() -> bytes:
    return tf.pt({b"\x1b[31m": b"\xff\x1b[2J\n", "w": tf.tensor()})


@attack(SHOWN)
def many_kinds_of_keys() -> bytes:
    return tf.pt({7: tf.tensor(), 2.5: 1, None: 2, True: 3, (1, "\x1b[31m"): 4, float("nan"): 5})


@attack(SHOWN)
def keys_that_read_the_same() -> bytes:
    """1, "1" and "a.b" beside {"a": {"b": …}}: each tensor keeps a name of its own."""
    return tf.pt({1: tf.tensor(), "1": tf.tensor(), "a.b": tf.tensor(), "a": {"b": tf.tensor()}})


@attack(SHOWN)
def key_that_looks_like_a_renamed_one() -> bytes:
    return tf.pt({"a.b": tf.tensor(), "a": {"b": tf.tensor()}, "a.b~2": tf.tensor()})


@attack(SHOWN)
def metadata_of_escapes() -> bytes:
    metadata = {"note": "\x1b]0;pwned\x07\u202e[red]", "\x1b[2J": "x", "json": json.dumps({"a": "\x1b"})}
    return tf.safetensors({"__metadata__": metadata, "w": tf.info()}, tf.FOUR)


@attack(SHOWN)
def record_of_escapes() -> bytes:
    record = {
        "schema_version": 1,
        "model": {"class": "\x1b[31m[red]mod.Name\n", "args": {"\x1b": "\u202e"}},
        "environment": {"\x1b[2J": "\x1b[2J"},
        "aliases": {"\x1b[31m": "w"},
    }
    metadata = {"format": "pt", "ptsave": json.dumps(record)}
    return tf.safetensors({"__metadata__": metadata, "w": tf.info()}, tf.FOUR)


@attack(DESCRIBED, says="Module")
def module_names_of_escapes() -> bytes:
    inner = New(Name("torch.nn", "Module"), (), {"_parameters": {"\x1b[31mw\n": tf.tensor()}, "_modules": {}})
    return tf.pt(New(Name("torch.nn", "Module"), (), {"_parameters": {}, "_modules": {"[red]\x1b": inner}}))


@attack(DESCRIBED, says="__main__.M")
def module_names_that_are_not_text() -> bytes:
    state = {"_parameters": {1: tf.tensor(), None: tf.tensor()}, "_modules": {2: None}, "_buffers": [1]}
    return tf.pt(New(Name("__main__", "M"), (), state))


@attack(REFUSED)
def zip_entry_names_of_escapes() -> bytes:
    return zip_bytes([*tf.pt_entries(dump({})), *(Entry("archive/\x1b[31m\n", b"1") for _ in range(2))])


@attack(DESCRIBED, REFUSED, says="rch._utils")
def global_that_looks_like_torch() -> bytes:
    """A Cyrillic `o`: not a known shape, whatever it looks like."""
    return tf.pt_raw(PROTO2 + glob("t\u043erch._utils", "_rebuild_tensor_v2") + EMPTY_TUPLE + REDUCE + STOP)


@attack(SHOWN)
def tied_tensors_named_as_the_container_names_its_own() -> bytes:
    tied = Shared(tf.tensor())
    names = ("w", "format", "ptsave", "metadata", "ptsave.json", "value")
    return tf.pt(OrderedDict((name, tied) for name in names))
