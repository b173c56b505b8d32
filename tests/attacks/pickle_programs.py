"""Pickle programs for a differential test: written by hand, generated, and real ones with bytes changed."""

from __future__ import annotations

import pickle
import struct
from collections import Counter, OrderedDict, defaultdict
from random import Random
from typing import Any

from . import torch_files as tf
from .pickles import dump

NAMES = (
    *(("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "eval")),
    *(("__builtin__", "set"), ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "bytearray")),
    *(("collections", "OrderedDict"), ("collections", "Counter"), ("collections", "defaultdict")),
    *(("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor"), ("copyreg", "__newobj__")),
    *(("__builtin__", "object"), ("builtins", "object"), ("_codecs", "encode"), ("builtins", "complex")),
    *(("UserDict", "UserDict"), ("commands", "getoutput"), ("itertools", "izip"), ("builtins", "range")),
    *(("torch", "FloatStorage"), ("torch", "Size"), ("torch", "float32"), ("torch", "device")),
    *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("builtins", "list")),
    *(("torch", "_utils._rebuild_tensor_v2"), ("collections", "OrderedDict.fromkeys"), ("builtins", "slice")),
)
_TEXT_NUMBERS = (
    *(b"0", b"1", b"00", b"01", b"+1", b"-0", b" 1", b"1 ", b"\t1", b"1L", b"-5L", b"1LL", b"1_0", b"0x10"),
    *(b"010", b"-1", b"12345678901234567890", b"1\0", b"", b"L", b"\xd9\xa1", b"1.5", b"-7", b"8", b"\x0b1"),
)
_TEXT_FLOATS = (
    *(b"1.5", b"-0.0", b"1e5", b"1e999", b"inf", b"-inf", b"nan", b"NaN", b"infinity", b" 1.5", b"1.5 "),
    *(b"1_0.5", b"0x1p3", b"1.", b".5", b".", b"", b"1e", b"1,5", b"+1.5", b"1\0", b"1e-999", b"-1e999"),
)
_STRINGS = (
    *(
        b"'a'",
        b'"a"',
        b"'a\"",
        b"a",
        b"'",
        b"''",
        b" 'a'",
        b"'a' ",
        b"'a'b'",
        b"'\\n\\t\\\\'",
        b"'\\x41'",
        b"'\\x4'",
    ),
    *(
        b"'\\101'",
        b"'\\400'",
        b"'\\7'",
        b"'\\q'",
        b"'a\\'",
        b"'\\''",
        b"'\xc3\xa9'",
        b"'\xff'",
        b"'\\xff'",
        b"'\\08'",
    ),
)
_UNICODES = (
    b"a",
    b"",
    b"\\u0041",
    b"\\u004",
    b"\\U0001F600",
    b"\\ud800",
    b"\\\\",
    b"\xe9",
    b"\\x41",
    b"a\rb",
    b"\0",
)


def frame(num_bytes: int) -> bytes:
    """FRAME."""
    return b"\x95" + struct.pack("<Q", num_bytes)


def _sized(op: bytes, form: str, data: bytes) -> bytes:
    return op + struct.pack(form, len(data)) + data


def _opcode(random: Random) -> bytes:
    pick = random.choice
    short = bytes(pick(b"ab\n.\x80\xc3") for _ in range(random.randrange(5)))
    text = pick(("a", "b", "", "é", "\ud800", "os", "system", "_metadata")).encode("utf-8", "surrogatepass")
    module, name = pick(NAMES)
    index = random.randrange(4)
    return pick(
        (
            *(
                b"(",
                b"0",
                b"1",
                b"2",
                b"N",
                b")",
                b"]",
                b"}",
                b"\x8f",
                b"t",
                b"\x85",
                b"\x86",
                b"\x87",
                b"l",
                b"d",
            ),
            *(
                b"R",
                b"b",
                b"\x81",
                b"\x92",
                b"o",
                b"s",
                b"u",
                b"a",
                b"e",
                b"\x90",
                b"\x91",
                b"\x93",
                b"Q",
                b"\x94",
            ),
            *(b"\x88", b"\x89", b"\x97", b"\x98", b"."),
            *(b"I" + pick(_TEXT_NUMBERS) + b"\n", b"L" + pick(_TEXT_NUMBERS) + b"\n"),
            *(
                b"F" + pick(_TEXT_FLOATS) + b"\n",
                b"S" + pick(_STRINGS) + b"\n",
                b"V" + pick(_UNICODES) + b"\n",
            ),
            *(b"p%d\n" % index, b"g%d\n" % index, b"q%c" % index, b"h%c" % index),
            *(b"p" + pick(_TEXT_NUMBERS) + b"\n", b"g" + pick(_TEXT_NUMBERS) + b"\n"),
            *(b"r" + struct.pack("<I", index), b"j" + struct.pack("<I", index)),
            b"r" + struct.pack("<I", pick((5, 300, 2**31, 2**32 - 1)))
            if not random.randrange(9)
            else b"\x94",
            *(
                b"K%c" % index,
                b"M\x01\x02",
                b"J\xff\xff\xff\xff",
                b"G" + struct.pack(">d", pick((0.0, -0.0, 1.5))),
            ),
            *(b"\x8a\x00", b"\x8a\x02\xff\x00", b"\x8b\x01\0\0\0\x05", b"\x8b\xff\xff\xff\xff"),
            *(_sized(b"X", "<I", text), _sized(b"\x8c", "<B", text), _sized(b"\x8d", "<Q", text)),
            *(_sized(b"C", "<B", short), _sized(b"B", "<I", short), _sized(b"\x8e", "<Q", short)),
            *(_sized(b"U", "<B", short), _sized(b"T", "<i", short), _sized(b"\x96", "<Q", short)),
            *(b"T\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8),
            *(
                f"c{module}\n{name}\n".encode(),
                f"(i{module}\n{name}\n".encode(),
                f"i{module}\n{name}\n".encode(),
            ),
            b"\x8c%c%b\x8c%c%b\x93" % (len(module), module.encode(), len(name), name.encode()),
            *(b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\0\0\0", b"\x84\xff\xff\xff\xff", b"P1\n", b"P\xe9\n"),
            b"\x80%c" % random.randrange(7),
            frame(pick((0, 1, 2, 3, 9, 2**63, 2**64 - 1))),
            *(dump(tf.storage())[2:-1], dump(tf.tensor())[2:-1]),
        )
    )


def generated(random: Random) -> bytes:
    """Opcodes in any order, more or less framed."""
    codes = [_opcode(random) for _ in range(random.randrange(1, 14))]
    if random.randrange(3) == 0:
        codes.append(_ending(random))
    body = b"".join(codes) + b"."
    start = b"\x80%c" % random.randrange(6) if random.randrange(4) else b""
    if random.randrange(3) == 0:
        body = frame(max(0, len(body) + random.choice((0, 0, 0, -1, 1, -3)))) + body
    if random.randrange(40) == 0:  # the C reader looks ahead into a file's first 128 KiB
        start += _sized(b"B", "<I", bytes(140_000)) + b"0"
    return start + body


def _ending(random: Random) -> bytes:
    """Objects that are changed after they were used."""
    return random.choice(
        (
            b"]q\x00)\x81",
            b"ccollections\nOrderedDict\n)Rq\x05}q\x06X\x09\x00\x00\x00_metadata}q\x07sbh\x07K\x01K\x02sh\x06K\x03K\x04s",
            b"}q\x05(K\x01K\x0a\x88K\x0bG\x3f\xf0\0\0\0\0\0\0K\x0cu",
            b"}q\x05((K\x01K\x02tK\x0a(\x88K\x02tK\x0bu",
            b"]q\x05K\x01ah\x05\x85q\x06h\x05K\x02a\x86",
            b"]q\x05(K\x01K\x02e0cbuiltins\nset\nh\x05\x85Rh\x05K\x03a\x86",
            b"(]q\x05h\x05h\x05K\x01ah\x05K\x02at",
            b"cbuiltins\nset\n](K\x01K\x02e\x85R",
            b"ccollections\nCounter\n}K\x01K\x02s\x85R",
            b"ctorch\nSize\n](K\x01K\x02e\x85R",
        )
    )


def _plain(random: Random, depth: int = 3) -> Any:
    kind = random.randrange(16 if depth else 9)
    few = range(random.randrange(4))
    if kind < 9:
        leaves = (None, True, 0, -1, 2**70, 1.5, "text", b"bytes", bytearray(b"b"))
        return leaves[kind]
    inner = [_plain(random, depth - 1) for _ in few]
    keys = [random.choice(("a", "b", 1, True, 1.0, (1, 2), b"k", None)) for _ in few]
    table = dict(zip(keys, inner, strict=True))
    if kind == 9:
        return inner
    if kind == 10:
        return tuple(inner)
    if kind == 11:
        return table
    if kind == 12:
        return OrderedDict(table)
    if kind == 13:
        return random.choice((Counter("abca"), defaultdict(list, table), {1, "a"}, frozenset({2, "b"})))
    if kind == 14:
        return [inner, inner, (inner,)]
    return ["x" * random.choice((3, 300, 70_000)), complex(1, 2), range(3), slice(1, None)]


def mutated(random: Random) -> bytes:
    """A real pickle of plain data, with a few bytes changed, left out, doubled or put in."""
    data = bytearray(pickle.dumps(_plain(random), random.randrange(6)))
    for _ in range(random.randrange(4)):
        at = random.randrange(len(data))
        match random.randrange(5):
            case 0:
                data[at] = random.randrange(256)
            case 1:
                del data[at : at + random.randrange(1, 4)]
            case 2:
                data[at:at] = data[at : at + random.randrange(1, 12)]
            case 3:
                data[at:at] = _opcode(random)
            case _:
                data[at] = (data[at] + random.choice((-1, 1))) % 256
        if not data:
            return b"."
    return bytes(data)


def program(random: Random) -> bytes:
    """Any of them."""
    return generated(random) if random.randrange(2) else mutated(random)


def _built_twice(state: bytes) -> bytes:
    return b"\x80\x02ccollections\nOrderedDict\n)Rq\x00" + state + b"."


# the C reader, from a stream, drops the frame's last byte: the length 263 becomes 1, and the rest is opcodes
_INSIDE = _sized(b"B", "<I", (b"\0a0cos\nsystem\n(S'id'\ntR.").ljust(263, b"N"))

CASES: dict[str, bytes] = {
    "opcode across its frame's end": b"\x80\x05" + frame(2) + _INSIDE + b".",
    "opcode across its frame's end, far in a file": (
        b"\x80\x05" + _sized(b"B", "<I", bytes(140_000)) + b"0" + frame(2) + _INSIDE + b"."
    ),
    "line across its frame's end": b"\x80\x04" + frame(3) + b"Vabcdef\nN.",
    "frame in a frame": b"\x80\x04" + frame(12) + b"N0" + frame(1) + b"N.",
    "frame past the end": b"\x80\x04" + frame(3) + b"N.",
    "frame past STOP": b"\x80\x04" + frame(4) + b"N.NN",
    "frame of a file's length": b"\x80\x04" + frame(2**63 - 1) + b"N.",
    "empty frames": frame(0) * 2 + b"N.",
    "between frames": b"\x80\x04" + frame(1) + b"]K\x01a" + frame(1) + b".",
    "Python 2's name after protocol 3": b"\x80\x03c__builtin__\nset\n)R.",
    "Python 2's name, both": b"\x80\x02c__builtin__\nset\n)R\x80\x03c__builtin__\nset\n)R\x86.",
    "dotted name": b"\x80\x04\x8c\x05torch\x8c\x19_utils._rebuild_tensor_v2\x93.",
    "dotted name before protocol 4": b"\x80\x02ctorch\n_utils._rebuild_tensor_v2\n.",
    "1 with a sign is True for one": b"I+1\n.",
    "0 with a sign is False for one": b"I-0\n.",
    "blank digit": b"I 1\n.",
    "octal": b"I010\n.",
    "hexadecimal": b"I0x10\n.",
    "underscore": b"I1_0\n.",
    "digits of another script": "I\u0661\n.".encode(),
    "NUL ends it for one": b"I12\x0034\n.",
    "INT with L": b"I5L\n.",
    "LONG with L twice": b"L5LL\n.",
    "overflowing float": b"F1e999\n.",
    "float with blank": b"F 1\n.",
    "float with underscore": b"F1_0.0\n.",
    "memo index with a plus": b"Np+1\ng1\n.",
    "memo index with a blank": b"Np 1\ng1\n.",
    "memo index that was never stored": b"j\x05\0\0\0.",
    "memoize after a gap": b"Nq\x01]\x94h\x02\x86.",
    "memoize over a far index": b"Nq\x02N0]\x94}\x94\x8f\x94h\x02\x87.",
    "string with a wrong octal": b"S'\\400'\n.",
    "string with a wrong escape": b"S'\\q'\n.",
    "string with half an escape": b"S'\\x4'\n.",
    "string with a backslash at its end": b"S'a\\'\n.",
    "string with a blank": b"S'a' \n.",
    "string of two quotes": b"S'a\"\n.",
    "name that is not ASCII in INST": "(ié\nb\n.".encode(),
    "read-only bytearray": b"\x96\x01\0\0\0\0\0\0\0a\x98.",
    "set items added to a list": b"](K\x01\x90.",
    "POP of a mark": b"N(0.",
    "STOP above a mark": b"(N.",
    "STOP above others": b"NK\x01K\x02.",
    "STOP on a mark": b"N(.",
    "extension": b"\x80\x02\x82\x01.",
    "state changed after BUILD": _built_twice(
        b"}q\x01X\x09\x00\x00\x00_metadata}sbh\x01X\x09\x00\x00\x00_metadata}X\x01\x00\x00\x00aK\x01ss0"
    ),
    "metadata changed after BUILD": _built_twice(
        b"}X\x09\x00\x00\x00_metadata}q\x01sbh\x01X\x01\x00\x00\x00aK\x01s0"
    ),
    "equal keys": b"}(K\x01K\x0a\x88K\x0bG\x3f\xf0\0\0\0\0\0\0K\x0cu.",
    "equal tuples as keys": b"}((K\x01(K\x02tt K\x0a(\x88(K\x02ttK\x0bu.".replace(b" ", b""),
    "equal long tuples as keys": b"}((" + b"K\x01" * 9 + b"tK\x0a(" + b"\x88" * 9 + b"tK\x0bu.",
    "long key with a set in it": b"}((" + b"K\x01" * 99 + b"\x8ftK\x0au.",
    "long key with a list in a tuple": b"}((" + b"K\x01" * 99 + b"]\x85tK\x0au.",
    "device that is none": b"ctorch\ndevice\nX\x03\0\0\0\0pu\x85R.",
    "device with its number twice": b"ctorch\ndevice\nX\x06\0\0\0cuda:0K\x01\x86R.",
    "device with a zero in front": b"ctorch\ndevice\nX\x07\0\0\0cuda:01\x85R.",
    "device with a digit in its name": b"ctorch\ndevice\nX\x06\0\0\0cudaz0\x85R.",
    "device below zero": b"ctorch\ndevice\nX\x03\0\0\0cpuJ\xff\xff\xff\xff\x86R.",
    "equal devices as keys": (
        b"}(ctorch\ndevice\nX\x03\0\0\0cpu\x85RK\x0actorch\ndevice\nX\x03\0\0\0cpu\x85RK\x0bu."
    ),
    "equal complex keys": (
        b"}(cbuiltins\ncomplex\nG\x3f\xf0\0\0\0\0\0\0G\0\0\0\0\0\0\0\0\x86RK\x0aK\x01K\x0bu."
    ),
    "equal frozensets as keys": b"\x80\x04}((K\x01\x91K\x0a(K\x01\x91K\x0bu.",
    "dictionary in a key": b"}}K\x02\x86K\x01s.",
    "list in a tuple": b"]q\x00\x85h\x00K\x01a\x86.",
    "list after set() of it": b"](K\x01eq\x00cbuiltins\nset\nh\x00\x85Rh\x00K\x02a\x86.",
    "items of an array set": b"cnumpy\nndarray\n)\x81K\x00K\x01s.",
    "surrogate": b"X\x03\0\0\0\xed\xa0\x80.",
    "Python 2's string, not UTF-8": b"U\x01\xff.",
}
"""Pickles that readers understand differently, or nearly so."""
