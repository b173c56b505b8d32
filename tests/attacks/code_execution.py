"""Files that run code in whoever unpickles them."""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

from . import torch_files as tf
from .pickles import (
    APPENDS,
    BINPERSID,
    BUILD,
    EMPTY_DICT,
    EMPTY_TUPLE,
    EVIL,
    IMPORTS,
    INST,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    OPEN,
    POP,
    PROTO2,
    PROTO4,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    STOP,
    SYSTEM,
    TOUCH,
    TUPLE,
    TUPLE1,
    Call,
    Name,
    New,
    Pers,
    Raw,
    Shared,
    dump,
    get,
    glob,
    put,
    stack_glob,
    text,
)
from .registry import CANARY, CANARY_MODULE, DESCRIBED, REFUSED, SHOWN, add, attack

IN_PT = {
    # opcodes that name and call
    "global_reduce": (dump(EVIL), "os.system"),
    "stack_global_reduce": (
        PROTO4 + stack_glob("os", "system") + text(TOUCH) + TUPLE1 + REDUCE + STOP,
        "os.system",
    ),
    "short_stack_global_memo": (
        PROTO4
        + b"\x8c\x02os"
        + MEMOIZE
        + b"\x8c\x06system"
        + MEMOIZE
        + STACK_GLOBAL
        + MEMOIZE
        + text(TOUCH)
        + TUPLE1
        + MEMOIZE
        + REDUCE
        + STOP,
        "os.system",
    ),
    "stack_global_from_memo": (
        PROTO4
        + text("system")
        + put(7)
        + POP
        + text("os")
        + get(7)
        + STACK_GLOBAL
        + text(TOUCH)
        + TUPLE1
        + REDUCE
        + STOP,
        "os.system",
    ),
    "inst": (b"(S" + repr(TOUCH).encode() + b"\n" + INST + b"os\nsystem\n" + STOP, "os.system"),
    "obj": (PROTO2 + MARK + glob("os", "system") + text(TOUCH) + OBJ + STOP, "os.system"),
    "newobj": (dump(New(Name("subprocess", "Popen"), (["touch", CANARY],))), "subprocess.Popen"),
    "newobj_ex": (
        PROTO4 + glob(CANARY_MODULE, "Class") + EMPTY_TUPLE + EMPTY_DICT + NEWOBJ_EX + STOP,
        CANARY_MODULE,
    ),
    "build_setstate": (
        PROTO2 + glob(CANARY_MODULE, "Class") + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + BUILD + STOP,
        CANARY_MODULE,
    ),
    "build_dict_of_builtins": (
        dump(Call(Name("builtins", "setattr"), (Name("builtins", "print"), "x", 1))),
        "builtins.setattr",
    ),
    "protocol_0_text": (b"cos\nsystem\n(S" + repr(TOUCH).encode() + b"\ntR.", "os.system"),
    "protocol_1_binstring": (
        glob("os", "system") + MARK + b"U" + bytes([len(TOUCH)]) + TOUCH.encode() + TUPLE + REDUCE + STOP,
        "os.system",
    ),
    "protocol_5_framed": (
        b"\x80\x05\x95" + struct.pack("<Q", len(dump(EVIL)) - 2) + dump(EVIL)[2:],
        "os.system",
    ),
    # names with side effects
    "import_is_enough": (dump(Name(CANARY_MODULE, "anything")), CANARY_MODULE),
    "import_and_call": (dump(IMPORTS), CANARY_MODULE),
    "dotted_attribute": (
        PROTO4 + stack_glob("os", "path.os.system") + text(TOUCH) + TUPLE1 + REDUCE + STOP,
        "os",
    ),
    "submodule_alias": (dump(Call(Name("posix", "system"), (TOUCH,))), "posix.system"),
    "builtins_exec": (dump(Call(Name("builtins", "exec"), (OPEN,))), "builtins.exec"),
    "builtins_eval_python_2_name": (dump(Call(Name("__builtin__", "eval"), (OPEN,))), "eval"),
    "builtins_import": (dump(Call(Name("builtins", "__import__"), (CANARY_MODULE,))), "builtins.__import__"),
    "importlib": (
        dump(Call(Name("importlib", "import_module"), (CANARY_MODULE,))),
        "importlib.import_module",
    ),
    "runpy": (dump(Call(Name("runpy", "run_module"), (CANARY_MODULE,))), "runpy.run_module"),
    "open_for_writing": (dump(Call(Name("builtins", "open"), (CANARY, "w"))), "builtins.open"),
    "timeit": (
        dump(Call(Name("timeit", "timeit"), (OPEN, "pass", Name("time", "perf_counter"), 1))),
        "timeit.timeit",
    ),
    "code_module": (
        dump(Call(Name("code", "InteractiveInterpreter.runsource"), ())),
        "code.InteractiveInterpreter",
    ),
    "numpy_runstring": (
        dump(Call(Name("numpy.testing._private.utils", "runstring"), (OPEN, {}))),
        "runstring",
    ),
    "torch_dynamo_exec": (
        dump(Call(Name("torch._inductor.codecache", "PyCodeCache.load"), (OPEN,))),
        "torch._inductor",
    ),
    "doctest": (dump(Call(Name("doctest", "debug_script"), (OPEN,))), "doctest.debug_script"),
    "pickle_in_pickle": (dump(Call(Name("pickle", "loads"), (dump(EVIL),))), "pickle.loads"),
    "ctypes_cdll": (dump(Call(Name("ctypes", "CDLL"), ("./canary.so",))), "ctypes.CDLL"),
    # chains
    "getattr_chain": (
        dump(
            Call(
                Call(
                    Name("builtins", "getattr"),
                    (Call(Name("importlib", "import_module"), ("os",)), "system"),
                ),
                (TOUCH,),
            )
        ),
        "builtins.getattr",
    ),
    "operator_attrgetter": (
        dump(
            Call(
                Call(Name("operator", "attrgetter"), ("system",)),
                (Call(Name("builtins", "__import__"), ("os",)),),
            )
        ),
        "operator.attrgetter",
    ),
    "operator_methodcaller": (
        dump(
            Call(
                Call(Name("operator", "methodcaller"), ("system", TOUCH)),
                (Call(Name("builtins", "__import__"), ("os",)),),
            )
        ),
        "operator.methodcaller",
    ),
    "functools_partial": (dump(Call(Call(Name("functools", "partial"), (SYSTEM, TOUCH)), ())), "os.system"),
    "functools_reduce": (dump(Call(Name("functools", "reduce"), (SYSTEM, (1, 2)))), "os.system"),
    "map_and_list": (
        dump(Call(Name("builtins", "list"), (Call(Name("builtins", "map"), (SYSTEM, [TOUCH])),))),
        "os.system",
    ),
    "nested_torch_load": (dump(Call(Name("torch", "load"), ("inner.pt",))), "torch.load"),
    "nested_torch_load_unsafe": (
        dump(Call(Name("torch.serialization", "load"), ("inner.pt", None, Name("pickle", "Unpickler")))),
        "load",
    ),
    "torch_hub_load": (dump(Call(Name("torch.hub", "load"), ("owner/name", "model"))), "torch.hub.load"),
    "torch_jit_load": (dump(Call(Name("torch.jit", "load"), ("inner.pt",))), "torch.jit.load"),
    "torch_ops_library": (
        dump(Call(Name("torch", "ops.load_library"), ("./canary.so",))),
        "torch.ops.load_library",
    ),
    "torch_classes_library": (
        dump(Call(Name("torch", "classes.load_library"), ("./canary.so",))),
        "torch.classes.load_library",
    ),
    "numpy_load_allow_pickle": (dump(Call(Name("numpy", "load"), ("inner.npy", None, True))), "numpy.load"),
    "pandas_read_pickle": (
        dump(Call(Name("pandas", "read_pickle"), ("https://127.0.0.1/x",))),
        "pandas.read_pickle",
    ),
    "joblib_load": (dump(Call(Name("joblib", "load"), ("inner.joblib",))), "joblib.load"),
    "marshalled_function": (
        dump(Call(Name("types", "FunctionType"), (Call(Name("marshal", "loads"), (b"c",)), {}))),
        "marshal.loads",
    ),
    # known shapes, misused
    "storage_type_is_a_function": (dump(tf.tensor(of=Pers(("storage", SYSTEM, "0", "cpu", 4)))), "os.system"),
    "rebuild_from_type_of_a_function": (
        dump(
            Call(
                Name("torch._tensor", "_rebuild_from_type_v2"),
                (SYSTEM, Name("torch", "Tensor"), (TOUCH,), {}),
            )
        ),
        "os.system",
    ),
    "rebuild_parameter_of_a_call": (
        dump(Call(Name("torch._utils", "_rebuild_parameter"), (EVIL, True, OrderedDict()))),
        "os.system",
    ),
    "backward_hook_is_a_call": (dump(tf.tensor(rest=(False, OrderedDict({"hook": EVIL})))), "os.system"),
    "tensor_with_evil_metadata": (dump(tf.tensor(rest=(False, OrderedDict(), {"conj": EVIL}))), "os.system"),
    "bytes_that_torch_loads": (
        dump(Call(Name("torch.storage", "_load_from_bytes"), (tf.pt(EVIL),))),
        "_load_from_bytes",
    ),
    "legacy_bytes_that_torch_loads": (
        dump(Call(Name("torch.storage", "_load_from_bytes"), (tf.legacy(EVIL, (), ()),))),
        "_load_from_bytes",
    ),
    "storage_made_of_bytes_that_torch_loads": (
        dump(tf.tensor(of=Call(Name("torch.storage", "_load_from_bytes"), (tf.legacy(EVIL, (), ()),)))),
        "_load_from_bytes",
    ),
    "wrapper_subclass_of_any_class": (
        dump(
            Call(
                Name("torch._utils", "_rebuild_wrapper_subclass"),
                (Name(CANARY_MODULE, "Class"), Name("torch", "float32"), (2,), (1,), 0, None, "cpu", False),
            )
        ),
        CANARY_MODULE,
    ),
    "type_of_any_class": (
        dump(
            Call(
                Name("torch._tensor", "_rebuild_from_type_v2"),
                (
                    Name("torch._utils", "_rebuild_tensor_v2"),
                    Name(CANARY_MODULE, "Class"),
                    (tf.storage(), 0, (4,), (1,), False, OrderedDict()),
                    {},
                ),
            )
        ),
        CANARY_MODULE,
    ),
    "parameter_with_evil_state": (
        dump(
            Call(
                Name("torch._utils", "_rebuild_parameter_with_state"),
                (tf.tensor(), True, OrderedDict(), {"__class__": Name(CANARY_MODULE, "Class")}),
            )
        ),
        CANARY_MODULE,
    ),
    "default_dict_of_a_function": (
        dump(Call(Name("collections", "defaultdict"), (Name(CANARY_MODULE, "fire"),))),
        CANARY_MODULE,
    ),
    "reconstructor_of_any_class": (
        dump(
            Call(
                Name("copyreg", "_reconstructor"),
                (Name(CANARY_MODULE, "Class"), Name("builtins", "object"), Raw(NONE)),
            )
        ),
        CANARY_MODULE,
    ),
    "copyreg_newobj": (
        dump(Call(Name("copyreg", "__newobj__"), (Name(CANARY_MODULE, "Class"),))),
        CANARY_MODULE,
    ),
    "partial_of_a_function": (
        dump(Call(Name("functools", "partial"), (SYSTEM, TOUCH))),
        "os.system",
    ),
    "evil_codec": (dump(Call(Name("_codecs", "encode"), ("x", "idna_evil"))), "_codecs"),
    "numpy_scalar_of_pickled_object": (
        dump(
            Call(
                Name("numpy.core.multiarray", "scalar"),
                (Call(Name("numpy", "dtype"), ("O8", False, True)), EVIL),
            )
        ),
        "os.system",
    ),
    "numpy_array_of_evil_objects": (
        dump(
            Call(
                Name("numpy.core.multiarray", "_reconstruct"),
                (Name("numpy", "ndarray"), (0,), b"b"),
                (1, (1,), Call(Name("numpy", "dtype"), ("O8", False, True)), False, [EVIL]),
            )
        ),
        "os.system",
    ),
    "enum_of_any_class": (dump(Call(Name(CANARY_MODULE, "Color"), (1,))), CANARY_MODULE),
    "datetime_of_a_call": (dump(Call(Name("datetime", "datetime"), (EVIL,))), "os.system"),
    "path_of_a_call": (dump(Call(Name("pathlib", "PosixPath"), (EVIL,))), "os.system"),
    "device_of_a_call": (dump(Call(Name("torch", "device"), (EVIL,))), "os.system"),
    "layout_of_a_call": (dump(Call(Name("torch.serialization", "_get_layout"), (EVIL,))), "os.system"),
    "set_of_calls": (dump(Call(Name("builtins", "set"), ([EVIL],))), "os.system"),
    "counter_of_calls": (dump(Call(Name("collections", "Counter"), ({"a": EVIL},))), "os.system"),
    "intlist_of_a_call": (dump(Call(Name("torch.jit._pickle", "build_intlist"), ([EVIL],))), "os.system"),
    "ordered_dict_of_evil_pairs": (
        dump(Call(Name("collections", "OrderedDict"), ([("w", EVIL)],))),
        "os.system",
    ),
    "state_dict_metadata_is_a_call": (
        dump(Call(Name("collections", "OrderedDict"), (), {"_metadata": EVIL})),
        "os.system",
    ),
    "evil_as_dict_key": (dump({"a": 1, Raw(dump(EVIL)[2:-1]): 2}), "os.system"),
    "evil_as_set_item": (PROTO4 + b"\x8f" + MARK + dump(EVIL)[2:-1] + b"\x90" + STOP, "os.system"),
    "evil_in_tensor_size": (dump(tf.tensor(size=EVIL)), "os.system"),
    "evil_in_persistent_id": (dump(Pers(EVIL)), "os.system"),
    "evil_beside_weights": (dump(OrderedDict(w=tf.tensor(), epoch=EVIL)), "os.system"),
    "evil_in_module_parameters": (
        dump(
            New(
                Name("torch.nn.modules.linear", "Linear"),
                state={"_parameters": {"weight": EVIL}, "_modules": {}},
            )
        ),
        "os.system",
    ),
    "setitem_on_a_call": (dump(EVIL)[:-1] + text("k") + NONE + SETITEM + STOP, "os.system"),
    "append_to_a_call": (dump(EVIL)[:-1] + MARK + NONE + APPENDS + STOP, "os.system"),
    "setitems_on_a_global": (
        PROTO2 + glob(CANARY_MODULE, "registry") + MARK + text("k") + NONE + SETITEMS + STOP,
        CANARY_MODULE,
    ),
    "build_on_a_global": (
        PROTO2 + glob(CANARY_MODULE, "settings") + EMPTY_DICT + BUILD + STOP,
        CANARY_MODULE,
    ),
    # hidden from a scanner
    "popped_at_once": (dump(EVIL)[:-1] + POP + EMPTY_DICT + STOP, "os.system"),
    "popped_with_its_mark": (PROTO2 + MARK + dump(EVIL)[2:-1] + b"1" + EMPTY_DICT + STOP, "os.system"),
    "only_in_the_memo": (dump(EVIL)[:-1] + put(5) + POP + tf.dump({"w": 1})[2:], "os.system"),
    "overwritten_key": (dump({"k": Shared(EVIL)})[:-1] + text("k") + NONE + SETITEM + STOP, "os.system"),
    "payload_then_garbage": (dump(EVIL)[:-1] + POP + b"\xff\xfe\xfd garbage", ""),
    "payload_then_stack_underflow": (dump(EVIL)[:-1] + POP + REDUCE + STOP, ""),
    "payload_without_stop": (dump(EVIL)[:-1], ""),
    "payload_then_truncated_string": (dump(EVIL)[:-1] + POP + b"X\xff\xff\x00\x00ab", ""),
    "second_pickle_after_stop": (dump({"w": tf.tensor()}) + dump(EVIL), ""),
    "protocol_9": (b"\x80\x09" + dump(EVIL)[2:], ""),
}
"""Name → (the pickle in `data.pkl`, a part of a name that must be listed).

Those with an empty name are damaged besides, and may not be read as if they were sound.
"""

INERT_IF_RUN = {
    "build_dict_of_builtins",
    "build_setstate",
    "functools_reduce",
    "code_module",
    "numpy_runstring",
    "torch_dynamo_exec",
    "doctest",
    "ctypes_cdll",
    "operator_attrgetter",
    "nested_torch_load",
    "nested_torch_load_unsafe",
    "torch_hub_load",
    "torch_jit_load",
    "torch_ops_library",
    "torch_classes_library",
    "numpy_load_allow_pickle",
    "pandas_read_pickle",
    "joblib_load",
    "marshalled_function",
    "storage_type_is_a_function",
    "evil_in_persistent_id",
    "rebuild_from_type_of_a_function",
    "newobj",
    "bytes_that_torch_loads",
    "legacy_bytes_that_torch_loads",
    "storage_made_of_bytes_that_torch_loads",
    "default_dict_of_a_function",
    "partial_of_a_function",
    "evil_codec",
    "second_pickle_after_stop",
    "protocol_9",
}
"""Named for what they try; a plain `pickle` on the test's machine would not make the canary with them."""


IMPOSSIBLE = (
    "storage_type_is_a_function",
    "tensor_with_evil_metadata",
    "evil_in_tensor_size",
    "evil_in_persistent_id",
    "setitems_on_a_global",
    "storage_made_of_bytes_that_torch_loads",
)
"""Known shapes that no checkpoint could have with such parts."""
HARMLESS_REST = ("second_pickle_after_stop",)
"""What follows the first pickle of a record is never looked at by torch."""


def _pt_maker(pickle: bytes) -> Any:
    return lambda: tf.pt_raw(pickle)


for _name, (_pickle, _says) in IN_PT.items():
    _outcomes = (DESCRIBED,) if _says else (REFUSED,)
    if _name in HARMLESS_REST:
        _outcomes = (REFUSED, SHOWN)
    elif _name in IMPOSSIBLE:
        _outcomes = (REFUSED,)
    add(_name, __name__.rpartition(".")[2], _pt_maker(_pickle), *_outcomes, fires=_name not in INERT_IF_RUN)


# Extension codes and persistent ids mean nothing without the process that wrote them.


@attack(REFUSED, DESCRIBED, says="")
def ext1() -> bytes:
    return tf.pt_raw(PROTO2 + b"\x82\x05" + EMPTY_TUPLE + REDUCE + STOP)


@attack(REFUSED, DESCRIBED, says="")
def ext2() -> bytes:
    return tf.pt_raw(PROTO2 + b"\x83\x05\x05" + EMPTY_TUPLE + REDUCE + STOP)


@attack(REFUSED, DESCRIBED, says="")
def ext4_negative() -> bytes:
    return tf.pt_raw(PROTO2 + b"\x84\xff\xff\xff\xff" + EMPTY_TUPLE + REDUCE + STOP)


@attack(REFUSED)
def persistent_id_as_text() -> bytes:
    return tf.pt_raw(b"Pstorage\n.")


@attack(REFUSED)
def persistent_id_of_another_kind() -> bytes:
    return tf.pt(Pers(("module", "import os", "x", "y", 4)))


@attack(REFUSED)
def persistent_id_of_a_number() -> bytes:
    return tf.pt(Pers(7))


@attack(REFUSED)
def persistent_id_on_an_empty_stack() -> bytes:
    return tf.pt_raw(PROTO2 + BINPERSID + STOP)


@attack(REFUSED)
def out_of_band_buffer() -> bytes:
    return tf.pt_raw(b"\x80\x05\x97\x98" + STOP)


@attack(DESCRIBED, says="os.system", fires=True)
def nested_reduce_states() -> bytes:
    """`copyreg._reconstructor`, the way of protocols 0 and 1 to make objects, around a payload."""
    made = Call(
        Name("copyreg", "_reconstructor"), (Name(CANARY_MODULE, "Class"), Name("builtins", "object"), None)
    )
    return tf.pt([made, EVIL])
