"""safetensors headers that contradict themselves, or that two JSON readers would read differently.

Source: the format description in the safetensors repository's README, which asks for no duplicate
keys, no holes, and offsets that cover the whole buffer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from . import torch_files as tf
from .registry import REFUSED, SHOWN, add, attack

PLAIN = '{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


def one(shape: str = "[4]", offsets: str = "[0,16]", dtype: str = '"F32"', more: str = "") -> str:
    """A header of one tensor, in JSON text."""
    return f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'


HEADERS: dict[str, str | bytes] = {
    # not what JSON or the format allow
    "header_is_a_list": "[]",
    "header_is_text": '"abc"',
    "header_is_null": "null",
    "header_is_a_number": "1",
    "header_is_empty_text": "",
    "header_is_spaces": " " * 64,
    "header_starts_with_a_space": " " + one(),
    "header_starts_with_a_bom": "\ufeff" + one(),
    "header_in_utf_16": one().encode("utf-16-le"),
    "header_not_utf_8": b'{"\xff\xfe":' + PLAIN.encode() + b"}",
    "header_overlong_utf_8": b'{"\xc0\x80":' + PLAIN.encode() + b"}",
    "header_surrogate_in_utf_8": b'{"\xed\xa0\x80":' + PLAIN.encode() + b"}",
    "header_cut": one()[:-2],
    "header_twice": one() + one(),
    "header_with_a_tail": one() + "tail",
    "header_with_a_nul_tail": one() + "\0\0\0",
    "header_with_a_comment": one()[:-1] + "/* c */}",
    "header_with_a_trailing_comma": one()[:-1] + ",}",
    "header_single_quotes": one().replace('"', "'"),
    "header_raw_control_character": '{"a\x1b[31m":' + PLAIN + "}",
    "header_raw_newline_in_key": '{"a\nb":' + PLAIN + "}",
    "nested_100_000_deep": '{"w":' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested_objects_100_000_deep": '{"w":' * 100_000 + "1" + "}" * 100_000,
    "nested_in_an_unknown_key": one(more=',"x":' + "[" * 100_000 + "]" * 100_000),
    "nested_in_metadata": '{"__metadata__":{"a":' + "[" * 5000 + "]" * 5000 + "}}",
    "nested_in_an_unknown_key_beyond_the_library": one(more=',"x":' + "[" * 126 + "]" * 126),
    "unknown_key_of_nan": one(more=',"x":NaN'),
    "unknown_key_of_infinity": one(more=',"x":1e999'),
    "unknown_key_of_400_digits": one(more=',"x":' + "9" * 400),
    "unknown_key_of_a_lone_surrogate_within": one(more=',"x":[{"a":["\\ud83d"]}]'),
    "unknown_key_of_a_lone_surrogate": one(more=',"x":"\\ud83d"'),
    "metadata_of_a_lone_surrogate": f'{{"__metadata__":{{"a":"\\ud83d"}},"w":{PLAIN}}}',
    "metadata_key_of_a_lone_surrogate": f'{{"__metadata__":{{"\\ud83d":"a"}},"w":{PLAIN}}}',
    # duplicate keys
    "duplicate_tensor": f'{{"w":{PLAIN},"w":{PLAIN}}}',
    "duplicate_tensor_escaped": f'{{"w":{PLAIN},"\\u0077":{PLAIN}}}',
    "duplicate_dtype": one(more=',"dtype":"I32"'),
    "duplicate_shape": one(more=',"shape":[2,2]'),
    "duplicate_offsets": one(more=',"data_offsets":[0,16]'),
    "duplicate_metadata": f'{{"__metadata__":{{}},"w":{PLAIN},"__metadata__":{{"a":"b"}}}}',
    "duplicate_metadata_key": f'{{"__metadata__":{{"a":"1","a":"2"}},"w":{PLAIN}}}',
    # fields
    "tensor_is_null": '{"w":null}',
    "tensor_is_text": '{"w":"F32"}',
    "tensor_is_a_list": '{"w":["F32",[4],[0,16]]}',
    "tensor_is_empty": '{"w":{}}',
    "dtype_missing": '{"w":{"shape":[4],"data_offsets":[0,16]}}',
    "shape_missing": '{"w":{"dtype":"F32","data_offsets":[0,16]}}',
    "offsets_missing": '{"w":{"dtype":"F32","shape":[4]}}',
    "dtype_unknown": one(dtype='"F128"'),
    "dtype_in_lower_case": one(dtype='"f32"'),
    "dtype_of_torch": one(dtype='"float32"'),
    "dtype_is_a_number": one(dtype="32"),
    "dtype_is_null": one(dtype="null"),
    "dtype_is_a_list": one(dtype='["F32"]'),
    "dtype_has_a_nul": one(dtype='"F32\\u0000"'),
    "dtype_is_empty": one(dtype='""'),
    "metadata_is_a_list": '{"__metadata__":[],"w":' + PLAIN + "}",
    "metadata_is_text": '{"__metadata__":"pt","w":' + PLAIN + "}",
    "metadata_value_is_a_number": '{"__metadata__":{"format":1},"w":' + PLAIN + "}",
    "metadata_value_is_null": '{"__metadata__":{"format":null},"w":' + PLAIN + "}",
    "metadata_value_is_nested": '{"__metadata__":{"format":{"a":"b"}},"w":' + PLAIN + "}",
    "metadata_is_a_tensor": '{"__metadata__":' + PLAIN + "}",
    # numbers
    "shape_is_null": one("null"),
    "shape_is_text": one('"4"'),
    "shape_is_a_number": one("4"),
    "shape_is_an_object": one('{"0":4}'),
    "shape_of_text": one('["4"]'),
    "shape_of_null": one("[null]"),
    "shape_of_true": one("[true]", "[0,4]"),
    "shape_of_a_list": one("[[4]]"),
    "shape_of_a_float": one("[4.0]"),
    "shape_with_an_exponent": one("[4e0]"),
    "shape_1e3": one("[1e3]", "[0,4000]"),
    "shape_minus_zero": one("[-0]", "[0,0]"),
    "shape_minus_one": one("[-1]"),
    "shape_minus_twice": one("[-2,-2]"),
    "shape_2_63": one("[9223372036854775808]"),
    "shape_2_64_plus_4": one("[18446744073709551620]"),
    "shape_wraps_to_zero": one("[4294967296,4294967296]", "[0,0]"),
    "shape_wraps_in_bytes": one("[4611686018427387904]", "[0,0]"),
    "shape_of_5000_digits": one("[" + "9" * 5000 + "]"),
    "shape_leading_zero": one("[04]"),
    "shape_hexadecimal": one("[0x4]"),
    "shape_plus_sign": one("[+4]"),
    "shape_nan": one("[NaN]"),
    "shape_infinity": one("[Infinity]"),
    "shape_of_50_000_huge_numbers": one("[" + ",".join(["4611686018427387904"] * 50_000) + "]"),
    "shape_larger_than_the_bytes": one("[5]"),
    "shape_smaller_than_the_bytes": one("[3]"),
    "scalar_with_16_bytes": one("[]"),
    "offsets_reversed": one(offsets="[16,0]"),
    "offsets_negative": one(offsets="[-16,0]"),
    "offsets_negative_end": one(offsets="[0,-16]"),
    "offsets_beyond": one("[8]", "[0,32]"),
    "offsets_2_64": one(offsets="[0,18446744073709551616]"),
    "offsets_wrap": one(offsets="[18446744073709551600,18446744073709551616]"),
    "offsets_one": one(offsets="[16]"),
    "offsets_three": one(offsets="[0,16,16]"),
    "offsets_none": one(offsets="[]"),
    "offsets_text": one(offsets='["0","16"]'),
    "offsets_floats": one(offsets="[0.0,16.0]"),
    "offsets_true": one("[]", "[false,true]", '"U8"'),
    "offsets_minus_zero": one(offsets="[-0,16]"),
    "offsets_exponent": one(offsets="[0,16e0]"),
    "offsets_null": one(offsets="null"),
    # the buffer
    "hole_at_the_start": one("[3]", "[4,16]"),
    "hole_in_the_middle": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    '"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
    "trailing_bytes": one("[2]", "[0,8]"),
    "trailing_bytes_and_no_tensor": "{}",
    "overlap": '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
    '"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
    "overlap_whole": f'{{"a":{PLAIN},"b":{PLAIN}}}',
    "overlap_nested": f'{{"a":{PLAIN},"b":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}}}',
    "empty_tensor_inside_another": f'{{"a":{PLAIN},"b":{{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}}}',
    "empty_tensor_beyond": f'{{"a":{PLAIN},"b":{{"dtype":"F32","shape":[0],"data_offsets":[99,99]}}}}',
}
"""Each refused, unless it stands in TOLERATED. The file's buffer is 16 bytes."""

TOLERATED = {
    "header_with_a_nul_tail",
    "empty_tensor_inside_another",
    "header_starts_with_a_space",
}


def _maker(header: str | bytes) -> Callable[[], bytes]:
    return lambda: tf.safetensors(header, tf.FOUR)


for _name, _header in HEADERS.items():
    add(
        f"safetensors_{_name}",
        "safetensors_lies",
        _maker(_header),
        *((REFUSED, SHOWN) if _name in TOLERATED else (REFUSED,)),
        file="attack.safetensors",
    )

SOUND = tf.PLAIN_SAFETENSORS

FRAMES: dict[str, Callable[[], bytes]] = {
    "length_zero": lambda: tf.safetensors("{}", length=0),
    "length_one": lambda: tf.safetensors(one(), tf.FOUR, length=1),
    "length_one_short": lambda: tf.safetensors(one(), tf.FOUR, length=len(one()) - 1),
    "length_one_long": lambda: tf.safetensors(one(), tf.FOUR, length=len(one()) + 1),
    "length_of_the_whole_file": lambda: tf.safetensors(one(), tf.FOUR, length=len(one()) + 16),
    "length_beyond_the_file": lambda: tf.safetensors(one(), tf.FOUR, length=10_000),
    "length_2_63": lambda: tf.safetensors(one(), tf.FOUR, length=2**63),
    "length_2_64_less_1": lambda: tf.safetensors(one(), tf.FOUR, length=2**64 - 1),
    "length_wraps": lambda: tf.safetensors(one(), tf.FOUR, length=2**64 - 8),
    "only_the_length": lambda: struct.pack("<Q", 100),
    "seven_bytes": lambda: SOUND[:7],
    "buffer_one_short": lambda: SOUND[:-1],
    "buffer_one_long": lambda: SOUND + b"\0",
    "buffer_missing": lambda: SOUND[:-16],
    "float4_of_odd_size": lambda: tf.safetensors(one("[3]", "[0,2]", '"F4"'), b"ab"),
    "metadata_only_and_bytes": lambda: tf.safetensors('{"__metadata__":{"format":"pt"}}', b"more"),
    "two_files_in_one": lambda: SOUND + SOUND,
}

for _name, _function in FRAMES.items():
    _outcomes = (REFUSED, SHOWN) if _name == "float4_of_odd_size" else (REFUSED,)
    add(f"safetensors_{_name}", "safetensors_lies", _function, *_outcomes, file="attack.safetensors")


@attack(REFUSED)
def safetensors_header_of_100_mb_in_a_sparse_file(folder: Any) -> Any:
    """1 TiB of nothing, whose header would be just below safetensors' own cap."""
    path = folder / "attack.safetensors"
    with path.open("wb") as out:
        out.write(struct.pack("<Q", 99_999_999) + b"{")
        out.truncate(2**40)
    return path


@attack(REFUSED)
def safetensors_header_of_1_tib_in_a_sparse_file(folder: Any) -> Any:
    path = folder / "attack.safetensors"
    with path.open("wb") as out:
        out.write(struct.pack("<Q", 2**40 - 8) + b"{")
        out.truncate(2**40)
    return path


# The record inside: a file may say anything there


def with_record(record: Any) -> bytes:
    text = record if isinstance(record, str) else json.dumps(record)
    return tf.safetensors({"__metadata__": {"format": "pt", "ptsave": text}, "w": tf.info()}, tf.FOUR)


DIGEST = {"algorithm": "xxh3_128", "tensors": {"w": "0" * 32}}

RECORDS: dict[str, Any] = {
    "not_json": "{",
    "empty": "",
    "a_list": [],
    "null": "null",
    "without_a_version": {"model": {}},
    "version_of_tomorrow": {"schema_version": 2},
    "version_is_true": {"schema_version": True},
    "version_is_a_float": '{"schema_version":1.0}',
    "nested_100_000_deep": '{"schema_version":1,"x":' + "[" * 100_000 + "]" * 100_000 + "}",
    "number_of_5000_digits": '{"schema_version":1,"x":' + "9" * 5000 + "}",
    "unknown_algorithm": {"schema_version": 1, "digests": {"algorithm": "rot13", "tensors": {"w": "77"}}},
    "algorithm_is_a_path": {"schema_version": 1, "digests": {"algorithm": "../../x", "tensors": {}}},
    "digest_wrong": {"schema_version": 1, "digests": DIGEST},
    "digest_of_wrong_width": {"schema_version": 1, "digests": DIGEST | {"tensors": {"w": "00"}}},
    "digest_is_no_hex": {"schema_version": 1, "digests": DIGEST | {"tensors": {"w": "z" * 32}}},
    "digest_is_empty": {"schema_version": 1, "digests": DIGEST | {"tensors": {"w": ""}}},
    "digest_is_a_number": {"schema_version": 1, "digests": DIGEST | {"tensors": {"w": 0}}},
    "digest_of_no_tensor": {"schema_version": 1, "digests": DIGEST | {"tensors": {"v": "0" * 32}}},
    "alias_to_itself": {"schema_version": 1, "aliases": {"w": "w"}},
    "alias_in_a_circle": {"schema_version": 1, "aliases": {"a": "b", "b": "a"}},
    "alias_to_nothing": {"schema_version": 1, "aliases": {"v": "nothing"}},
    "alias_is_a_list": {"schema_version": 1, "aliases": {"v": ["w"]}},
    "alias_of_an_alias": {"schema_version": 1, "aliases": {"a": "w", "b": "a"}},
    "class_is_os_system": {"schema_version": 1, "model": {"class": "os.system", "args": {"command": "x"}}},
    "class_is_the_canary": {"schema_version": 1, "model": {"class": "canary_module.Class", "args": {}}},
    "model_is_text": {"schema_version": 1, "model": "os.system"},
    "environment_of_escapes": {"schema_version": 1, "environment": {"torch": "\x1b]0;pwned\x07\x1b[2J"}},
    "behaviour_is_a_list": {"schema_version": 1, "behaviour": [1]},
    "twice_the_same_key": '{"schema_version":1,"schema_version":1,"model":{},"model":{"class":"os.system"}}',
    "extras_of_nan": '{"schema_version":1,"extras":NaN}',
}


def _record_maker(record: Any) -> Callable[[], bytes]:
    return lambda: with_record(record)


for _name, _record in RECORDS.items():
    add(
        f"record_{_name}",
        "safetensors_lies",
        _record_maker(_record),
        REFUSED,
        SHOWN,
        file="attack.safetensors",
    )


@attack(REFUSED, slow=True)
def record_of_three_million_aliases() -> bytes:
    aliases = ",".join(f'"{i}":"w"' for i in range(3_000_000))
    return with_record('{"schema_version":1,"aliases":{' + aliases + "}}")


@attack(REFUSED, says="two keys")
def record_that_says_two_things() -> bytes:
    """Python's json takes the last one, other readers the first."""
    return with_record('{"schema_version":1,"behaviour":{"dtypes":{},"dtypes":{"float16":1}}}')


@attack(REFUSED, slow=True)
def record_of_a_million_digests() -> bytes:
    tensors = ",".join(f'"{i}":""' for i in range(2_000_000))
    return with_record('{"schema_version":1,"digests":{"algorithm":"xxh3_128","tensors":{' + tensors + "}}}")


@attack(REFUSED, slow=True)
def record_of_empty_lists() -> bytes:
    return with_record('{"schema_version":1,"extras":[' + "[]," * 15_000_000 + "[]]}")


@attack(REFUSED, SHOWN, slow=True)
def metadata_of_a_million_ties() -> bytes:
    """As `save_model` spells them; each would make a note."""
    metadata = {f"t{i}": "w" for i in range(1_000_000)}
    return tf.safetensors({"__metadata__": metadata, "w": tf.info()}, tf.FOUR)


@attack(REFUSED, SHOWN)
def metadata_of_ties_to_a_long_name() -> bytes:
    name = "n" * 300_000
    metadata = {f"t{i}": name for i in range(100)}
    return tf.safetensors({"__metadata__": metadata, name: tf.info()}, tf.FOUR)


@attack(SHOWN)
def tensors_named_as_the_container_names_its_own() -> bytes:
    names = ("format", "ptsave", "metadata", "__metadata", "ptsave.json", "value")
    offsets = ((name, (16 * i, 16 * i + 16)) for i, name in enumerate(names))
    return tf.safetensors({name: tf.info(offsets=place) for name, place in offsets}, tf.FOUR * len(names))
