"""Tensors that reach outside of their storage, or whose numbers are no numbers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from . import torch_files as tf
from .pickles import Call, Name, New, Pers, Raw, dump, integer
from .registry import DESCRIBED, REFUSED, SHOWN, add, attack

LIES: dict[str, Any] = {
    # storage
    "storage_one_byte_too_short": (tf.tensor(), {"0": tf.FOUR[:-1]}),
    "storage_empty": (tf.tensor(), {"0": b""}),
    "storage_missing": (tf.tensor(), {}),
    "storage_longer_than_numel": (tf.tensor(), {"0": tf.FOUR + b"more"}),
    "numel_larger_than_the_record": (tf.tensor(of=tf.storage(numel=5)), None),
    "numel_smaller_than_the_tensor": (tf.tensor(of=tf.storage(numel=3)), None),
    "numel_negative": (tf.tensor(of=tf.storage(numel=-4)), None),
    "numel_overflows_in_bytes": (tf.tensor(of=tf.storage(numel=2**62 + 4)), None),
    "numel_is_text": (tf.tensor(of=tf.storage(numel="4")), None),
    "numel_is_true": (tf.tensor(of=tf.storage(numel=True), size=(1,)), None),
    "numel_is_none": (tf.tensor(of=tf.storage(numel=None)), None),
    "numel_is_a_float": (tf.tensor(of=tf.storage(numel=4.0)), None),
    "storage_type_unknown": (tf.tensor(of=tf.storage("QuaternionStorage")), None),
    "storage_type_is_text": (tf.tensor(of=Pers(("storage", "FloatStorage", "0", "cpu", 4))), None),
    "storage_type_of_another_module": (
        tf.tensor(of=Pers(("storage", Name("evil", "FloatStorage"), "0", "cpu", 4))),
        None,
    ),
    "storage_key_is_a_number": (tf.tensor(of=tf.storage(key=0)), None),
    "storage_key_is_a_path": (tf.tensor(of=tf.storage(key="../version")), None),
    "storage_key_is_absolute": (tf.tensor(of=tf.storage(key="/etc/passwd")), None),
    "storage_key_is_data_pkl": (tf.tensor(of=tf.storage(key="../data.pkl")), None),
    "storage_key_is_none": (tf.tensor(of=tf.storage(key=None)), None),
    "storage_key_has_a_nul": (tf.tensor(of=tf.storage(key="0\0")), None),
    "storage_tuple_too_short": (tf.tensor(of=Pers(("storage", Name("torch", "FloatStorage"), "0"))), None),
    "storage_tuple_too_long": (
        tf.tensor(of=Pers(("storage", Name("torch", "FloatStorage"), "0", "cpu", 4, None, 1))),
        None,
    ),
    "storage_is_a_number": (tf.tensor(of=4), None),
    "storage_is_none": (tf.tensor(of=Raw(b"N")), None),
    "storage_is_a_tensor": (tf.tensor(of=tf.tensor()), None),
    "one_record_with_two_types": (
        [tf.tensor(), tf.tensor(size=(2,), of=tf.storage("DoubleStorage", numel=2))],
        None,
    ),
    "one_record_with_two_lengths": ([tf.tensor(), tf.tensor(size=(1,), of=tf.storage(numel=1))], None),
    # offset
    "offset_one_too_far": (tf.tensor(offset=1), None),
    "offset_at_the_end": (tf.tensor(offset=4, size=(1,)), None),
    "offset_negative": (tf.tensor(offset=-1), None),
    "offset_2_63": (tf.tensor(offset=2**63), None),
    "offset_wraps_to_zero": (tf.tensor(offset=2**62), None),
    "offset_wraps_64_bits": (tf.tensor(offset=2**64), None),
    "offset_is_true": (tf.tensor(offset=True, size=(3,)), None),
    "offset_is_text": (tf.tensor(offset="0"), None),
    "offset_is_a_float": (tf.tensor(offset=0.0), None),
    "offset_is_none": (tf.tensor(offset=None), None),
    "offset_is_a_tuple": (tf.tensor(offset=(0,)), None),
    # size
    "size_one_too_large": (tf.tensor(size=(5,)), None),
    "size_negative": (tf.tensor(size=(-1,)), None),
    "size_negative_twice": (tf.tensor(size=(-2, -2), stride=(2, 1)), None),
    "size_is_true": (tf.tensor(size=(True,)), None),
    "size_is_a_float": (tf.tensor(size=(4.0,)), None),
    "size_is_text": (tf.tensor(size="4"), None),
    "size_of_text": (tf.tensor(size=("4",)), None),
    "size_of_none": (tf.tensor(size=(None,)), None),
    "size_is_a_number": (tf.tensor(size=4), None),
    "size_is_a_dict": (tf.tensor(size={4: 4}), None),
    "size_product_wraps_to_zero": (tf.tensor(size=(2**32, 2**32), stride=(1, 1)), None),
    "size_product_wraps_to_four": (tf.tensor(size=(2**62 + 1, 4), stride=(4, 1)), None),
    "size_2_63": (tf.tensor(size=(2**63,), stride=(0,)), None),
    "size_10_100": (tf.tensor(size=(10**100,), stride=(0,)), None),
    "size_zero_beside_huge": (tf.tensor(size=(0, 2**70), stride=(1, 1)), None),
    "size_nested": (tf.tensor(size=((4,),)), None),
    # stride
    "stride_reaches_outside": (tf.tensor(size=(2, 2), stride=(3, 1)), None),
    "stride_negative": (tf.tensor(offset=3, stride=(-1,)), None),
    "stride_wraps_to_zero": (tf.tensor(size=(2,), stride=(2**64,)), None),
    "stride_wraps_in_bytes": (tf.tensor(size=(2,), stride=(2**62,)), None),
    "stride_product_wraps": (tf.tensor(size=(2**32 + 1, 1), stride=(2**32, 1)), None),
    "stride_is_true": (tf.tensor(stride=(True,)), None),
    "stride_is_a_float": (tf.tensor(stride=(1.0,)), None),
    "stride_is_text": (tf.tensor(stride="1"), None),
    "stride_is_none": (tf.tensor(stride=None), None),
    "rank_of_stride_too_small": (tf.tensor(size=(2, 2), stride=(1,)), None),
    "rank_of_stride_too_large": (tf.tensor(size=(4,), stride=(1, 1)), None),
    "rank_of_stride_zero": (tf.tensor(size=(4,), stride=()), None),
    # the call
    "too_few_arguments": (Call(tf.REBUILD, (tf.storage(), 0, (4,))), None),
    "no_arguments": (Call(tf.REBUILD, ()), None),
    "arguments_are_a_list": (Call(tf.REBUILD, [tf.storage(), 0, (4,), (1,)]), None),
    "arguments_are_none": (Call(tf.REBUILD, Raw(b"N")), None),
    "far_too_many_arguments": (tf.tensor(rest=tuple(range(50))), None),
    "version_1_out_of_bounds": (
        Call(Name("torch._utils", "_rebuild_tensor"), (tf.storage(), 1, (4,), (1,))),
        None,
    ),
    "version_3_out_of_bounds": (
        Call(
            Name("torch._utils", "_rebuild_tensor_v3"),
            (tf.storage(), 0, (5,), (1,), False, OrderedDict(), Name("torch", "float32")),
        ),
        None,
    ),
    **{
        f"version_3_{case}": (
            Call(
                Name("torch._utils", "_rebuild_tensor_v3"),
                (
                    tf.storage("UntypedStorage", numel=16),
                    0,
                    (4,),
                    (1,),
                    False,
                    OrderedDict(),
                    Name("torch", dtype),
                ),
            ),
            None,
        )
        for case, dtype in {"wider_dtype": "float64", "dtype_is_no_dtype": "device"}.items()
    },
    "parameter_of_an_outside_tensor": (
        Call(Name("torch._utils", "_rebuild_parameter"), (tf.tensor(offset=9), True, OrderedDict())),
        None,
    ),
    "tensor_in_an_object_outside": (
        [New(Name("a", "B"), (), {"w": tf.tensor(offset=9)})],
        None,
    ),
    "tensor_as_key_outside": ({tf.tensor(offset=9): 1}, None),
}
"""Name → (what `data.pkl` holds, the records); each of them is refused, even where torch is lenient,
unless it stands in LENIENT."""

LENIENT = {
    "storage_longer_than_numel": (REFUSED, SHOWN),
    "one_record_with_two_types": (REFUSED, SHOWN),
    "one_record_with_two_lengths": (REFUSED, SHOWN),
    "size_zero_beside_huge": (REFUSED, SHOWN),
    "storage_type_of_another_module": (REFUSED, DESCRIBED),
    "version_3_dtype_is_no_dtype": (REFUSED, DESCRIBED),
    "too_few_arguments": (REFUSED, DESCRIBED),
    "no_arguments": (REFUSED, DESCRIBED),
    "far_too_many_arguments": (REFUSED, DESCRIBED),
}


def _maker(root: Any, records: Any) -> Callable[[], bytes]:
    return lambda: tf.pt(root, records)


for _name, (_root, _records) in LIES.items():
    add(_name, "bounds", _maker(_root, _records), *LENIENT.get(_name, (REFUSED,)))


LEGACY: dict[str, Callable[[], bytes]] = {
    "legacy_storage_too_short": lambda: tf.legacy({"w": tf.legacy_tensor()}, storages=[(4, tf.FOUR[:-1])]),
    "legacy_storage_missing": lambda: tf.legacy({"w": tf.legacy_tensor()}, storages=[]),
    "legacy_numel_disagrees": lambda: tf.legacy({"w": tf.legacy_tensor()}, storages=[(3, tf.FOUR)]),
    "legacy_numel_negative": lambda: tf.legacy({"w": tf.legacy_tensor()}, storages=[(-4, tf.FOUR)]),
    "legacy_key_not_listed": lambda: tf.legacy({"w": tf.legacy_tensor(key="7")}),
    "legacy_key_listed_twice": lambda: tf.legacy(
        {"w": tf.legacy_tensor()}, keys=("0", "0"), storages=[(4, tf.FOUR)] * 2
    ),
    "legacy_key_never_used": lambda: tf.legacy({}, keys=("0",)),
    "legacy_keys_are_no_list": lambda: tf.legacy({"w": tf.legacy_tensor()}, keys=3),
    "legacy_trailing_bytes": lambda: tf.legacy({"w": tf.legacy_tensor()}) + b"more",
    "legacy_view_outside": lambda: tf.legacy({"w": tf.legacy_tensor(view=("1", 2, 4))}),
    "legacy_view_negative": lambda: tf.legacy({"w": tf.legacy_tensor(view=("1", -1, 4))}),
    "legacy_view_huge": lambda: tf.legacy({"w": tf.legacy_tensor(view=("1", 0, 2**62))}),
    "legacy_view_malformed": lambda: tf.legacy({"w": tf.legacy_tensor(view=("1",))}),
    "legacy_view_is_text": lambda: tf.legacy({"w": tf.legacy_tensor(view="abc")}),
    "legacy_tensor_outside": lambda: tf.legacy({"w": tf.legacy_tensor(size=(5,))}),
    "legacy_protocol_of_tomorrow": lambda: tf.legacy({"w": tf.legacy_tensor()}, protocol=1002),
    "legacy_protocol_is_text": lambda: tf.legacy({"w": tf.legacy_tensor()}, protocol="1001"),
    "legacy_info_is_text": lambda: tf.legacy({"w": tf.legacy_tensor()}, info="little"),
    "legacy_info_without_byte_order": lambda: tf.legacy({"w": tf.legacy_tensor()}, info={}),
    "legacy_byte_order_is_text": lambda: tf.legacy(
        {"w": tf.legacy_tensor()}, info=tf.SYSTEM_INFO | {"little_endian": "yes"}
    ),
    "legacy_only_the_magic": lambda: dump(tf.MAGIC),
    "legacy_root_is_cut": lambda: tf.legacy({"w": tf.legacy_tensor()})[:200],
}

LENIENT_LEGACY = {
    "legacy_key_never_used": (REFUSED, SHOWN),
    "legacy_trailing_bytes": (REFUSED, SHOWN),
    "legacy_info_without_byte_order": (REFUSED, SHOWN),
    "legacy_info_is_text": (REFUSED, SHOWN),
    "legacy_byte_order_is_text": (REFUSED, SHOWN),
}

for _name, _function in LEGACY.items():
    add(_name, "bounds", _function, *LENIENT_LEGACY.get(_name, (REFUSED,)))


@attack(REFUSED)
def negative_numel_as_long() -> bytes:
    """LONG1 whose sign bit is set."""
    raw = Raw(b"\x8a\x08" + (2**63).to_bytes(8, "little"))
    return tf.pt(tf.tensor(of=tf.storage(numel=raw)))


@attack(REFUSED)
def size_as_float_opcode() -> bytes:
    return tf.pt(tf.tensor(size=(Raw(b"F4\n"),)))


@attack(REFUSED)
def size_as_text_bool() -> bytes:
    """`I01` is how protocol 0 writes True."""
    return tf.pt(tf.tensor(size=(Raw(b"I01\n"),)))


@attack(REFUSED)
def integers_with_a_gradient() -> bytes:
    return tf.pt(tf.tensor(of=tf.storage("IntStorage"), rest=(True, OrderedDict())))


@attack(REFUSED)
def a_parameter_of_integers_with_a_gradient() -> bytes:
    parameter = Call(
        Name("torch._utils", "_rebuild_parameter"), (tf.tensor(of=tf.storage("IntStorage")), True, None)
    )
    return tf.pt({"w": parameter})


@attack(REFUSED, DESCRIBED, says="sparse")
def sparse_that_is_coalesced_by_a_number() -> bytes:
    indices = tf.tensor(size=(1, 2), stride=(2, 1), of=tf.storage("LongStorage", "0", "cpu", 2))
    layout = Call(Name("torch.serialization", "_get_layout"), ("torch.sparse_coo",))
    args = (layout, (indices, tf.tensor(size=(2,), of=tf.storage(key="1")), (4,), 1))
    sparse = Call(Name("torch._utils", "_rebuild_sparse_tensor"), args)
    return tf.pt({"w": sparse}, {"0": tf.FOUR, "1": tf.FOUR})


@attack(REFUSED)
def bits_that_are_numbers() -> bytes:
    return tf.pt(tf.tensor(rest=(False, OrderedDict(), {"neg": 1})))


@attack(REFUSED, DESCRIBED, says="qtensor")
def quantized_floats() -> bytes:
    scheme = (Name("torch", "per_tensor_affine"), 1.0, 0)
    args = (tf.storage(), 0, (4,), (1,), scheme, False, OrderedDict())
    return tf.pt({"w": Call(Name("torch._utils", "_rebuild_qtensor"), args)})


@attack(REFUSED)
def sparse_indices_outside() -> bytes:
    """The parts of a sparse tensor are tensors, and have bounds too."""
    indices = tf.tensor(size=(1, 9), stride=(9, 1), of=tf.storage("LongStorage", "0", "cpu", 2))
    layout = Call(Name("torch.serialization", "_get_layout"), ("torch.sparse_coo",))
    args = (layout, (indices, tf.tensor(), (4,), True))
    return tf.pt({"w": Call(Name("torch._utils", "_rebuild_sparse_tensor"), args)})


@attack(REFUSED, DESCRIBED, says="sparse")
def sparse_with_an_unknown_layout() -> bytes:
    return tf.pt({"w": Call(Name("torch._utils", "_rebuild_sparse_tensor"), ("sparse_hyper", (1, 2, 3)))})


@attack(REFUSED, DESCRIBED, says="")
def quantized_with_nonsense() -> bytes:
    args = (
        tf.storage("QInt8Storage", numel=16),
        0,
        (16,),
        (1,),
        (Name("torch", "per_moon"), 0, 0),
        False,
        {},
    )
    return tf.pt({"w": Call(Name("torch._utils", "_rebuild_qtensor"), args)})


@attack(REFUSED)
def quantized_outside() -> bytes:
    scheme = (Name("torch", "per_tensor_affine"), 1.0, 0)
    args = (tf.storage("QInt8Storage", numel=16), 0, (17,), (1,), scheme, False, OrderedDict())
    return tf.pt({"w": Call(Name("torch._utils", "_rebuild_qtensor"), args)})


@attack(REFUSED, SHOWN)
def size_through_torch_size_of_text() -> bytes:
    return tf.pt(Call(Name("torch", "Size"), (("4",),)))


@attack(REFUSED)
def wide_integer_as_size() -> bytes:
    return tf.pt(tf.tensor(size=(Raw(integer(2**4000)),), stride=(0,)))


@attack(REFUSED, SHOWN)
def meta_tensor_of_astronomic_size() -> bytes:
    args = (Name("torch", "float32"), (2**70, 2**70), (2**70, 1), False)
    return tf.pt({"w": Call(Name("torch._utils", "_rebuild_meta_tensor_no_storage"), args)})
