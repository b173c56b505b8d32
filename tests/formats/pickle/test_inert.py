"""The pickle machine: everything that Python's own pickler writes, and nothing that it would run."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptsave.core.nodes import Global, Opaque
from ptsave.core.storage import MemoryStorage
from ptsave.errors import CorruptError, LimitError, PtsaveError
from ptsave.formats.pickle import inert, machine, python_objects
from ptsave.formats.pickle.inert import Unpickled
from ptsave.formats.pickle.shapes import Payload, Shapes
from tests.support import examples

PROTOCOLS = range(6)


def load(data: bytes, **fields: Any) -> Unpickled:
    return inert.load(data, 0, Shapes(python_objects.NAMES, python_objects.build, **fields), "test")


def same(mine: Any, theirs: Any) -> bool:
    """Equality that tells 1 from True and 1.0, and finds NaN equal to itself."""
    if type(mine) is not type(theirs):
        return False
    if isinstance(theirs, float):
        return mine == theirs or (math.isnan(mine) and math.isnan(theirs))
    if isinstance(theirs, complex):
        return same(mine.real, theirs.real) and same(mine.imag, theirs.imag)
    if isinstance(theirs, (list, tuple)):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(theirs, dict):
        return same(list(mine), list(theirs)) and same(list(mine.values()), list(theirs.values()))
    return bool(mine == theirs)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
)
keys = (
    st.text() | st.binary() | st.integers() | st.booleans() | st.none() | st.tuples(st.text(), st.integers())
)
plain = st.recursive(
    scalars | st.sets(st.integers() | st.text()) | st.frozensets(st.text()),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(keys, inner)
        | st.dictionaries(keys, inner).map(OrderedDict)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner).map(lambda t: [t, t[0], t])
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=examples(80))
@given(value=plain)
@example(value=["x" * 300, b"y" * 70_000, "é" * 200, "\ud800", 2**8000, -(2**8000)])
@example(value=list(range(3000)))
@example(value={str(i): i for i in range(2500)})
@example(value=[float("nan"), -0.0, 1e308, float("-inf")])
@example(value=["line\nbreak\\u0041", "\0", "\U0001f600"])
def test_plain_data(protocol: int, value: Any) -> None:
    loaded = load(pickle.dumps(value, protocol))
    assert same(loaded.root, value)
    assert loaded.globals == {}


@settings(max_examples=examples(300))
@given(data=st.binary(max_size=60))
def test_garbage_never_surprises(data: bytes) -> None:
    with suppress(PtsaveError):
        assert load(data).end <= len(data)


@settings(max_examples=examples(300))
@given(value=plain, protocol=st.sampled_from(PROTOCOLS), where=st.integers(0), byte=st.integers(0, 255))
def test_one_wrong_byte_never_surprises(value: Any, protocol: int, where: int, byte: int) -> None:
    data = bytearray(pickle.dumps(value, protocol))
    data[where % len(data)] = byte
    with suppress(PtsaveError):
        load(bytes(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_corrupt(protocol: int) -> None:
    data = pickle.dumps({"a": [1, 2.5, "text", b"bytes", (None, True), 2**80], "b": {1, 2}}, protocol)
    for end in range(len(data)):
        with pytest.raises(CorruptError):
            load(data[:end])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_follows_the_end_is_left_alone(protocol: int) -> None:
    data = pickle.dumps([1], protocol)
    loaded = inert.load(b"before" + data + b"after", 6, Shapes(python_objects.NAMES), "test")
    assert (loaded.root, loaded.end) == ([1], 6 + len(data))


class Colour(Enum):
    RED = 1


class Plain:
    def __init__(self) -> None:
        self.x = 1
        self.y = [2]


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 5


class Rows(list):  # type: ignore[type-arg]
    pass


class Table(dict):  # type: ignore[type-arg]
    pass


def opaque(value: Any, protocol: int) -> Opaque:
    root = load(pickle.dumps(value, protocol)).root
    assert isinstance(root, Opaque)
    return root


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestObjects:
    """Objects show their name and their contents, whatever way the protocol spells them."""

    def test_attributes(self, protocol: int) -> None:
        node = opaque(Plain(), protocol)
        assert node.name == f"{__name__}.Plain"
        assert dict(node.children()) == {"x": 1, "y": [2]}

    def test_namespace(self, protocol: int) -> None:
        loaded = load(pickle.dumps(Namespace(lr=0.1, name="n"), protocol))
        assert dict(loaded.root.children()) == {"lr": 0.1, "name": "n"}
        assert [(u.name, u.count, u.used_for) for u in loaded.globals.values()] == [
            ("argparse.Namespace", 1, "built")
        ]

    def test_slots(self, protocol: int) -> None:
        if protocol < 2:
            pytest.skip("Python cannot pickle slots in these protocols")
        assert dict(opaque(Slotted(), protocol).children()) == {"a": 5}

    def test_list_and_dict_subclasses(self, protocol: int) -> None:
        rows, table = Rows([1, 2]), Table(a=1)
        assert {1, 2} <= set(_scalars(opaque(rows, protocol)))
        assert {1} <= set(_scalars(opaque(table, protocol)))

    def test_called_with_arguments(self, protocol: int) -> None:
        assert opaque(PurePosixPath("a/b"), protocol).args[-2:] == ("a", "b")
        assert opaque(Decimal("1.5"), protocol).args == ("1.5",)
        assert 1 in _scalars(opaque(Colour.RED, protocol))

    def test_partial_and_deque(self, protocol: int) -> None:
        assert "functools.partial" in opaque(partial(int, "7"), protocol).name
        assert {1, 2} <= set(_scalars(opaque(deque([1, 2]), protocol)))

    def test_known_containers(self, protocol: int) -> None:
        made: defaultdict[str, int] = defaultdict(int)
        made["k"] += 1
        loaded = load(pickle.dumps([made, Counter("aab"), range(3), slice(1, None), {1: 2}.keys], protocol))
        table, counter, span, cut = loaded.root[:4]
        assert isinstance(table, defaultdict)
        assert table.default_factory is None
        assert dict(table) == {"k": 1}
        assert counter == Counter("aab")
        assert (span.name, span.args) == ("builtins.range", (0, 3, 1))
        assert (cut.name, cut.args) == ("builtins.slice", (1, None, None))
        assert set(loaded.globals) == {"builtins.getattr"}

    def test_shared_and_recursive(self, protocol: int) -> None:
        shared = [1]
        loop: list[Any] = [shared, shared]
        loop.append(loop)
        root = load(pickle.dumps(loop, protocol)).root
        assert root[0] is root[1]
        assert root[2] is root


def _scalars(node: Any, depth: int = 0) -> list[Any]:
    if depth > 10:
        return []
    if isinstance(node, Opaque):
        return [leaf for _, child in node.children() for leaf in _scalars(child, depth + 1)]
    if isinstance(node, dict):
        return [leaf for child in node.values() for leaf in _scalars(child, depth + 1)]
    if isinstance(node, (list, tuple)):
        return [leaf for child in node for leaf in _scalars(child, depth + 1)]
    return [node]


def test_metadata_of_a_state_dict_stays() -> None:
    state: OrderedDict[str, int] = OrderedDict(a=1)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    root = load(pickle.dumps(state, 2)).root
    assert type(root) is OrderedDict
    assert root._metadata == {"": {"version": 1}}  # type: ignore[attr-defined]


def test_python_2_names_and_strings() -> None:
    assert load(b"c__builtin__\nset\n((lp0\nI1\natR.").root == {1}
    assert load(b"S'a\\x41\\n\\'\\101'\n.").root == "aA\n'A"
    assert load(b"U\x02\xff\xfe.").root == b"\xff\xfe"
    assert load(b"T\x02\0\0\0\xc3\xa9.").root == "é"
    assert load(b"(I01\nI00\nL5L\nF1.5\nVa\\u00e9\ntp0\n.").root == (True, False, 5, 1.5, "aé")
    state = b"ccollections\nOrderedDict\n((l(lS'k'\naI1\naatR."
    assert load(state).root == OrderedDict(k=1)


HOSTILE = {
    "reduce": (b"cos\nsystem\n(S'echo'\ntR.", "os.system", "called"),
    "stack_global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.", "os.system", "called"),
    "inst": (b"(S'echo'\nios\nsystem\n.", "os.system", "called"),
    "obj": (b"(cos\nsystem\nS'echo'\no.", "os.system", "called"),
    "newobj": (b"\x80\x02csubprocess\nPopen\nS'echo'\n\x85\x81.", "subprocess.Popen", "built"),
    "newobj_ex": (b"\x80\x04csubprocess\nPopen\n)}\x92.", "subprocess.Popen", "built"),
    "build": (b"\x80\x02cmod\nname\n}b.", "mod.name", "built"),
    "named": (b"cbuiltins\neval\n.", "builtins.eval", "named"),
    "ext1": (b"\x80\x02\x82\x07.", "copyreg.extension_7", "named"),
    "ext2": (b"\x80\x02\x83\x07\x01.", "copyreg.extension_263", "named"),
    "ext4": (b"\x80\x02\x84\x07\0\0\0.", "copyreg.extension_7", "named"),
    "reconstructor": (b"ccopy_reg\n_reconstructor\n(cevil\nC\nc__builtin__\nobject\nNtR.", "evil.C", "built"),
    "known, wrongly": (b"cbuiltins\nbytearray\n(I4000000000\ntR.", "builtins.bytearray", "called"),
    "getattr": (b"cbuiltins\ngetattr\n(cos\n__dict__\nS'x'\ntR.", "builtins.getattr", "called"),
    "called result": (b"cbuiltins\ngetattr\n(I1\ntR(I2\ntR.", "builtins.getattr", "called"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_runs_and_everything_is_listed(name: str) -> None:
    data, dotted, used_for = HOSTILE[name]
    loaded = load(data)
    assert isinstance(loaded.root, (Opaque, Global))
    assert loaded.globals[dotted].used_for == used_for
    assert loaded.globals[dotted].count >= 1
    _, uses = inert.begin(MemoryStorage(memoryview(data)), Shapes(python_objects.NAMES), "test")
    assert uses[dotted].count >= 1


CORRUPT = {
    "empty": b"",
    "no stop": b"N",
    "unknown opcode": b"\xff.",
    "nothing to return": b".",
    "protocol 6": b"\x80\x06N.",
    "memo miss": b"h\x05.",
    "memo miss, far": b"j\xff\xff\xff\x7f.",
    "negative put": b"Np-1\n.",
    "octal number": b"I010\n.",
    "hexadecimal number": b"I0x10\n.",
    "not a number": b"Iten\n.",
    "not a float": b"Fx\n.",
    "no mark": b"Nt.",
    "pop of nothing": b"0.",
    "dup of nothing": b"2.",
    "tuple2 of one": b"N\x86.",
    "below the mark": b"N(\x85.",
    "append to int": b"I1\nNa.",
    "setitem on list": b"]NNs.",
    "odd setitems": b"}(Nu.",
    "list as key": b"}]Ns.",
    "dict in set": b"\x8f(}\x90.",
    "build on a list": b"]}b.",
    "call of a number": b"I1\n)R.",
    "arguments that are a list": b"cos\nsystem\n]R.",
    "newobj of a number": b"I1\n)\x81.",
    "global of a number": b"\x80\x04K\x01K\x02\x93.",
    "bad utf-8 in a text": b"X\x01\0\0\0\xff.",
    "bad utf-8 in a name": b"c\xff\nx\n.",
    "string of -1 bytes": b"T\xff\xff\xff\xff.",
    "long of -1 bytes": b"\x8b\xff\xff\xff\xff.",
    "string past the end": b"X\xff\xff\xff\x7fa.",
    "string past the end, 8": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "bytes past the end, 8": b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffa.",
    "unquoted string": b"Sabc\n.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "read-only number": b"\x80\x05K\x01\x98.",
    "persistent id": b"NQ.",
    "persistent id, text": b"Pid\n.",
    "extension 0": b"\x80\x02\x82\0.",
    "obj of nothing": b"(o.",
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt(name: str) -> None:
    with pytest.raises(CorruptError, match=r".") as caught:
        load(CORRUPT[name])
    assert "byte" in caught.value.where
    assert caught.value.hint


def test_the_error_names_the_keys_that_lead_to_it() -> None:
    data = b"\x80\x02}X\x05\0\0\0model}X\x06\0\0\0weightNQss."
    with pytest.raises(CorruptError) as caught:
        load(data)
    assert "at model.weight, byte" in caught.value.where


BOMBS = {
    "marks": (b"(" * 2_000_000, "open_marks"),
    "lists": (b"]" * 3_000_000, "pickle_units"),
    "sets": (b"\x8f" * 3_000_000, "pickle_units"),
    "nested tuples": (b")" + b"\x85" * 4_000_000 + b".", "pickle_units"),
    "memo": (b"N" + b"\x94" * 12_000_000 + b".", "pickle_units"),
    "nothing": (b"N" * 12_000_000, "pickle_units"),
    "one memo place, for long": (b"N" + b"q\0" * 15_000_000, "pickle_code_bytes"),
    "a long integer": (b"\x8b\x01\x04\0\0" + bytes(1025) + b".", "integer_bytes"),
    "many digits": (b"L" + b"9" * 5000 + b"L\n.", "integer_digits"),
    "a long name": (b"c" + b"a" * 5000 + b"\nx\n.", "name_bytes"),
    "a long stacked name": (b"\x80\x04X\x00\x10\0\0" + b"a" * 4096 + b"\x8c\x01b\x93.", "name_bytes"),
    "a long line": (b"V" + b"a" * 2_000_000 + b"\n.", "line_bytes"),
    "copies of a list": (
        b"("
        + b"N" * 100_000
        + b"lp0\n0"
        + b"ccollections\nOrderedDict\np1\n0"
        + b"cbuiltins\nset\n(g0\ntR0" * 1000,
        "pickle_units",
    ),
    "colliding integers": (
        b"}("
        + b"".join(b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little") + b"N" for i in range(1, 20_000))
        + b"u.",
        "unusual_keys",
    ),
    "colliding tuples": (
        b"}(" + b"".join(b"M" + i.to_bytes(2, "little") + b"\x85N" for i in range(5000)) + b"u.",
        "unusual_keys",
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if len(BOMBS[name][0]) >= 3e6 else ()) for name in BOMBS],
)
def test_a_bomb_meets_its_cap(name: str) -> None:
    data, cap = BOMBS[name]
    with pytest.raises(LimitError, match=cap):
        load(data)


def test_far_memo_indexes_cost_nothing() -> None:
    assert load(b"]r\x09\0\0\0j\x09\0\0\0\x86.").root == ([], [])
    with pytest.raises(CorruptError, match="number 2147483647, in 13 bytes"):  # CPython: MemoryError
        load(b"]r\xff\xff\xff\x7fj\xff\xff\xff\x7f\x86.")
    # PUT 1 before PUT 0: MEMOIZE numbers by the count of objects, as CPython does
    data = b"\x80\x04K\x07q\x01K\x08q\x00K\x09\x94h\x00h\x01h\x02\x87."
    assert load(data).root == pickle.loads(data) == (8, 7, 9)


def test_exponential_sharing_costs_nothing() -> None:
    data = b"]" + b"q\x00(h\x00h\x00l" * 100_000 + b"."
    assert isinstance(load(data).root, list)
    nested = b")" + b"2\x86" * 1000 + b"q\x00}h\x00K\x01s."
    (key,) = load(nested).root
    assert isinstance(key, Opaque)


def test_long_strings_stay_where_they_are() -> None:
    value = {"array": b"\1" * 3_000_000, "text": "é" * 2_000_000, "end": 1}
    root = load(pickle.dumps(value, 4)).root
    assert isinstance(root["array"], Payload)
    assert root["array"].storage.num_bytes == 3_000_000
    buffer = bytearray(5)
    root["array"].storage.read_into(10, memoryview(buffer))
    assert buffer == b"\1" * 5
    assert dict(root["text"].children()) == {"num_bytes": 4_000_000}
    assert root["end"] == 1


@pytest.mark.parametrize("piece", [1, 7, 100, 5000])
def test_the_pieces_do_not_matter(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands, names and strings across the boundaries of what is in memory."""
    monkeypatch.setattr(inert, "_MARGIN_BYTES", 8192)
    monkeypatch.setattr(machine, "_FIRST_PIECE_BYTES", 8193 + piece)
    monkeypatch.setattr(machine, "_PIECE_BYTES", 8193 + piece)
    value = [[i, str(i) * (i % 300), float(i), "x" * (i * 7 % 20_000)] for i in range(200)]
    for protocol in PROTOCOLS:
        assert load(pickle.dumps(value, protocol)).root == value


def test_every_opcode_is_handled() -> None:
    """No opcode that pickletools knows is refused as unknown."""
    for opcode in pickletools.opcodes:
        if opcode.name != "STOP":
            with pytest.raises(CorruptError) as caught:
                load(opcode.code.encode("latin-1") + b"\xff" * 16)
            assert caught.value.what != f"the data is not a pickle: 0x{ord(opcode.code):02x} is not an opcode"


def test_persistent_ids() -> None:
    stream = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("p", 1) if isinstance(value, complex) else None

    Pickler(stream, 2).dump([1j, 2])
    assert load(stream.getvalue(), persistent_load=lambda pid: pid).root == [("p", 1), 2]


@pytest.mark.parametrize("protocol", range(6))
def test_complex_keys(protocol: int) -> None:
    """They are equal where Python's are; one that equals a real number is refused."""
    keys = {1j: "a", 3j: "b", 1 + 2j: "c"}
    assert load(pickle.dumps(keys, protocol)).root == keys
    assert load(pickle.dumps({1j: 1, (1j, 2): 2}, protocol)).root[1j] == 1
    with pytest.raises(CorruptError, match="complex"):
        load(pickle.dumps({1 + 0j: "a"}, protocol))


def frame(num_bytes: int) -> bytes:
    return b"\x95" + num_bytes.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (frame(2) + b"B\x03\0\0\0abc.", "crosses the end of its frame"),
        (frame(3) + b"Vabcdef\n.", "crosses the end of its frame"),
        (frame(5) + b"X\x03\0\0\0abc.", "crosses the end of its frame"),
        (frame(12) + b"N0" + frame(1) + b"N.", "inside another frame"),
        (frame(11) + b"N0" + frame(0) + b"N.", "inside another frame"),
        (frame(3) + b"N.", "a frame of 3 bytes where 2 bytes follow"),
        (frame(2**64 - 1) + b"N.", "where 2 bytes follow"),
        (frame(3) + b"N.N", "ends inside a frame"),
    ],
)
def test_frames_end_where_opcodes_do(data: bytes, what: str) -> None:
    for before in (b"", b"B\x40\x9c\0\0" + bytes(40_000) + b"0", b"N0" * 20_000):
        with pytest.raises(CorruptError, match=what):
            load(b"\x80\x04" + before + data)


def test_frames_that_end_well() -> None:
    assert load(frame(0) * 3 + b"N.").root is None
    assert load(b"\x80\x04" + frame(1) + b"]K\x01a" + frame(3) + b"K\x02a" + frame(1) + b".").root == [1, 2]
    large = [b"x" * 70_000, {"a": ["y" * 70_000]}, b"z" * 10]
    assert load(pickle.dumps(large, 4)).root == large


def test_names_are_translated_below_protocol_3() -> None:
    named = b"c__builtin__\nset\n"
    assert not load(b"\x80\x02" + named + b")R.").globals
    assert list(load(b"\x80\x03" + named + b")R.").globals) == ["__builtin__.set"]
    both = load(b"\x80\x02" + named + b"0\x80\x04" + named + b")R.")
    assert list(both.globals) == ["__builtin__.set"]


@pytest.mark.parametrize(
    "line", [b"I+1", b"I-0", b"I 1", b"I1 ", b"I1_0", b"I0x1", b"I010", b"I5L", b"I1\0", b"I"]
)
def test_integers_that_readers_read_differently(line: bytes) -> None:
    with pytest.raises(CorruptError, match="malformed number"):
        load(line + b"\n.")


def test_attributes_are_copied() -> None:
    # the dictionary of the state is changed after BUILD: as in CPython, the object does not see it
    made = load(b"\x80\x02cpkg\nA\n)\x81}q\x00X\x01\0\0\0aK\x01sbh\x00X\x01\0\0\0aK\x02s\x86.").root[0]
    assert made.state == {"a": 1}
    slots = load(b"\x80\x02cpkg\nA\n)\x81N}q\x00X\x01\0\0\0aK\x01s\x86bh\x00X\x01\0\0\0aK\x02s\x86.").root[0]
    assert slots.state == (None, {"a": 1})
    twice = load(b"\x80\x02cpkg\nA\n)\x81}X\x01\0\0\0aK\x01sb}X\x01\0\0\0bK\x02sb.").root
    assert twice.state == {"a": 1, "b": 2}
    inner = load(b"\x80\x02cpkg\nA\n)\x81}X\x01\0\0\0a]q\x00sbh\x00K\x01a\x86.").root[0]
    assert inner.state == {"a": [1]}


@pytest.mark.parametrize("change", [b"K\x00K\x01s", b"K\x01a", b"}X\x01\0\0\0aK\x01sb", b"(K\x01\x90"])
def test_nothing_changes_what_a_known_shape_made(change: bytes) -> None:
    for made in (b"c__builtin__\nxrange\nK\x03\x85R", b"c__builtin__\nslice\nNK\x01N\x87R"):
        with pytest.raises(CorruptError, match=r"builtins\.(range|slice)"):
            load(b"\x80\x02" + made + change + b".")


def test_keys_that_may_be_equal() -> None:
    long = b"(" + b"K\x01" * 70 + b"t"
    assert len(load(b"}" + long + b"K\x01s.").root) == 1
    for opened, closed in ((b"}(", b"u."), (b"(", b"d.")):
        with pytest.raises(CorruptError, match="two keys that may be equal"):
            load(opened + (long + b"K\x01") * 2 + closed)
    for data in (
        b"\x8f(" + long * 2 + b"\x90.",
        b"(" + long * 2 + b"\x91.",
        b"cbuiltins\nset\n(" + long * 2 + b"l\x85R.",
    ):
        with pytest.raises(CorruptError, match="two keys that may be equal"):
            load(data)
    assert load(b"}((K\x01(K\x02ttK\x0a(\x88(K\x02ttK\x0bu.").root == {(1, (2,)): 11}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_harmless_objects_of_python(protocol: int) -> None:
    class_of = {
        "deque": deque([1, 2]),
        "short": deque([3], 4),
        "price": Decimal("1.50"),
        "third": Fraction(1, 3),
    }
    named = {"len": len, "kind": dict, "abstract": Mapping}
    loaded = load(pickle.dumps(class_of | named, protocol))
    assert not loaded.globals
    assert loaded.root["deque"].items == [1, 2]
    assert (loaded.root["short"].args, loaded.root["short"].items) == ((4,), [3])
    assert loaded.root["price"].args == ("1.50",)


def test_what_makes_them_harmful() -> None:
    assert list(load(b"cbuiltins\nlen\n]\x85R.").globals) == ["builtins.len"]
    assert list(load(b"cdecimal\nDecimal\nX\x03\0\0\0abc\x85R.").globals) == ["decimal.Decimal"]
    with pytest.raises(CorruptError, match="more than 1 items"):
        load(b"ccollections\ndeque\n)K\x01\x86R(K\x01K\x02e.")
    with pytest.raises(CorruptError, match="may equal another"):
        load(b"}(cdecimal\nDecimal\nX\x01\0\0\x001\x85RK\x0aK\x01K\x0bu.")
