"""Lies in .npy and .npz files."""

from __future__ import annotations

import struct
from collections.abc import Callable

from . import torch_files as tf
from .pickles import EVIL, dump
from .registry import CANARY, DESCRIBED, REFUSED, SHOWN, Outcome, add, attack
from .zips import DEFLATED, Entry, zeros_bomb, zip_bytes


def npy(
    header: str | bytes, data: bytes = tf.FOUR, version: bytes = b"\x01\x00", length: int | None = None
) -> bytes:
    """A `.npy` file around a header that may say anything.

    Source: NumPy's `numpy.lib.format` documentation.
    """
    text = header.encode("latin-1") if isinstance(header, str) else header
    size = len(text) if length is None else length
    count = struct.pack("<H", size) if version == b"\x01\x00" else struct.pack("<I", size)
    return b"\x93NUMPY" + version + count + text + data


def npy_header(descr: str = "'<f4'", order: str = "False", shape: str = "(4,)", more: str = "") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n"


NPY: dict[str, bytes] = {
    "header_is_an_expression": npy(f"__import__('os').system('touch {CANARY}')\n"),
    "header_calls_inside": npy(npy_header(shape=f"(__import__('os').system('touch {CANARY}'),)")),
    "header_is_a_comprehension": npy(npy_header(shape="tuple(9 for i in range(10**9))")),
    "header_is_arithmetic": npy(npy_header(shape="(2**2**30,)")),
    "header_is_a_long_sum": npy(npy_header(shape="(" + "1+" * 20_000 + "1,)")),
    "header_is_nested_deep": npy(npy_header(shape="(" * 20_000 + ")" * 20_000)),
    "header_is_nested_minus": npy(npy_header(shape="(" + "-" * 20_000 + "1,)")),
    "header_is_a_string_product": npy(npy_header(descr="'<f4' * 10**10")),
    "header_lambda": npy("(lambda: None)()\n"),
    "header_fstring": npy("{'descr': f'{1}', 'fortran_order': False, 'shape': ()}\n"),
    "header_duplicate_keys": npy(npy_header(more="'shape': (2, 2)")),
    "header_extra_key": npy(npy_header(more="'evil': 1")),
    "header_missing_key": npy("{'descr': '<f4', 'shape': (4,)}\n"),
    "header_is_a_list": npy("[1]\n"),
    "header_is_empty": npy(""),
    "header_length_beyond": npy(npy_header(), length=60_000),
    "header_length_4_gib": npy(npy_header(), version=b"\x02\x00", length=2**32 - 1),
    "header_with_a_nul": npy(npy_header() + "\0"),
    "header_not_utf_8": npy(npy_header().encode() + b"\xff", version=b"\x03\x00"),
    "header_null_bytes_before_dict": npy("\0\0" + npy_header()),
    "version_9": npy(npy_header(), version=b"\x09\x00"),
    "shape_larger": npy(npy_header(shape="(5,)")),
    "shape_smaller": npy(npy_header(shape="(3,)")),
    "shape_negative": npy(npy_header(shape="(-4,)")),
    "shape_true": npy(npy_header(shape="(True,)"), bytes(4)),
    "shape_float": npy(npy_header(shape="(4.0,)")),
    "shape_is_a_number": npy(npy_header(shape="4")),
    "shape_wraps": npy(npy_header(shape="(4294967296, 4294967296)"), b""),
    "shape_2_63": npy(npy_header(shape="(9223372036854775808,)")),
    "shape_of_5000_digits": npy(npy_header(shape="(" + "9" * 5000 + ",)")),
    "shape_of_text": npy(npy_header(shape="('4',)")),
    "order_is_text": npy(npy_header(order="'False'")),
    "order_is_a_number": npy(npy_header(order="0")),
    "descr_object": npy(npy_header(descr="'|O'"), dump([EVIL])),
    "descr_object_in_a_record": npy(npy_header(descr="[('a', '|O')]"), dump([EVIL])),
    "descr_void_huge": npy(npy_header(descr="'|V999999999999'")),
    "descr_unicode_huge": npy(npy_header(descr="'<U999999999999'")),
    "descr_unknown": npy(npy_header(descr="'<q9'")),
    "descr_is_a_number": npy(npy_header(descr="4")),
    "descr_native_order": npy(npy_header(descr="'=f4'")),
    "descr_number_without_an_order": npy(npy_header(descr="'|f4'")),
    "descr_date_without_an_order": npy(npy_header(descr="'|M8[s]'", shape="(2,)")),
    "descr_zero_bytes": npy(npy_header(descr="'<f0'")),
    "descr_escape": npy(npy_header(descr="'\\x1b[31m'")),
    "descr_nested_records": npy(npy_header(descr="[('a', " * 500 + "'<f4'" + ")]" * 500)),
    "data_one_short": npy(npy_header(), tf.FOUR[:-1]),
    "data_one_long": npy(npy_header(), tf.FOUR + b"x"),
}


def _npz(data: bytes) -> Callable[[], bytes]:
    return lambda: zip_bytes([Entry("w.npy", data)])


def _bytes(data: bytes) -> Callable[[], bytes]:
    return lambda: data


for _name, _data in NPY.items():
    _outcomes: tuple[Outcome, ...] = (REFUSED,)
    _says = ""
    if _name.startswith("descr_object"):
        _outcomes, _says = (DESCRIBED,), "os.system"
    elif _name == "descr_nested_records":
        _outcomes = (REFUSED, SHOWN)
    add(f"npz_{_name}", "numpy_lies", _npz(_data), *_outcomes, says=_says, file="attack.npz")
    add(f"npy_{_name}", "numpy_lies", _bytes(_data), *_outcomes, says=_says, file="attack.npy")


@attack(REFUSED)
def npz_duplicate_array() -> bytes:
    good = npy(npy_header())
    return zip_bytes([Entry("w.npy", good), Entry("w.npy", good)])


@attack(SHOWN)
def npz_names_that_differ_in_case() -> bytes:
    """No attack at all: a model may well have a `W` and a `w`."""
    good = npy(npy_header())
    return zip_bytes([Entry("W.npy", good), Entry("w.npy", good)])


@attack(REFUSED, SHOWN)
def npz_two_spellings_of_a_name() -> bytes:
    """`w` and `w.npy` are both the array `w` to NumPy."""
    good = npy(npy_header())
    return zip_bytes([Entry("w.npy", good), Entry("w", good)])


@attack(REFUSED, SHOWN)
def npz_member_is_a_bomb() -> bytes:
    lie = {"size": 256 * 2**20, "crc": 0}
    return zip_bytes([Entry("w.npy", raw=zeros_bomb(256), method=DEFLATED, local=lie, central=lie)])


@attack(REFUSED, SHOWN)
def npz_member_is_no_array() -> bytes:
    return zip_bytes([Entry("w.npy", npy(npy_header())), Entry("x.npy", b"not an array")])


@attack(SHOWN, REFUSED)
def npz_member_of_escapes() -> bytes:
    return zip_bytes([Entry("\x1b[31m[red]\n.npy", npy(npy_header()))])
