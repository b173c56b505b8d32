"""ONNX models: initializers as tensors under their own names, and what the graph says of itself.

A model is one Protocol Buffers message, read by `wire` without the onnx library: whatever its size, only the
messages that say something are read, and no tensor's bytes. A tensor in a subgraph has the names of its node
and attribute before its own. Tensors that are no initializers, in the attributes of nodes (`Constant`, its
`value_floats` and `value_ints` too, where they are long), are listed under CONSTANTS.

Source: onnx/onnx.proto; onnx's docs/IR.md.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any

from ptsave.core import record as records
from ptsave.core.caps import check_metadata, room
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import counted
from ptsave.core.leaves import MAX_NAME_CHARS
from ptsave.core.nodes import GlobalUse, Opaque, Port, Program
from ptsave.core.record import Record
from ptsave.errors import LimitError
from ptsave.formats.base import FileFormat
from ptsave.formats.kinds.packed import MAX_OBJECTS
from ptsave.formats.onnx import schema
from ptsave.formats.onnx.external import ExternalFiles
from ptsave.formats.onnx.operators import is_plain, named
from ptsave.formats.onnx.ports import port
from ptsave.formats.onnx.tensors import Tensors
from ptsave.formats.onnx.wire import BYTES, Field, Message, Span, WireReader, varint
from ptsave.own_process import no_garbage_collection
from ptsave.storage.files import InputFile

NAME = "onnx"
CONSTANTS = "CONSTANTS"
"""The key of the tensors in the attributes of nodes."""
MAX_THINGS = 100_000
"""Cap on the tensors, kinds of operators, functions and other items of a small model."""
_WITH_OPSETS = 3
"""The `ir_version` since which a model says which operators it means."""
MAX_NOTES = 20
"""How many files beside the model are told one by one."""
MAX_PLAIN_NUMBERS = 16
"""The longest list of numbers in an attribute that is a part of the program, as shapes, axes and pads are."""
MAX_NESTING = 30
"""Cap on how deep graphs nest."""


def sniff(file: InputFile, head: bytes) -> bool:
    """A ModelProto has no magic number: `ir_version` comes first, and then only fields that it has, with
    readable texts in them, as far as the graph or the end of `head`."""
    if head[:1] != b"\x08" or not 1 <= head[1:2].ljust(1)[0] < 0x80:
        return False
    at = 2
    while at < len(head):
        try:
            field, value, begin = _field(schema.MODEL, head, at)
            if field is None:
                return False
            if field.name == "graph":
                return not value or begin == len(head) or _field(schema.GRAPH, head, begin)[0] is not None
        except IndexError:  # the head, or the file, ends inside the field
            return at > 2
        except ValueError:
            return False
        at = begin
        if BYTES in field.wire_types:
            at += value
            if field.name in _TEXTS and not _is_readable(head[begin:at]):
                return False
    return at > 2


_TEXTS = ("producer_name", "producer_version", "domain", "doc_string")


def _field(message: Message, head: bytes, at: int) -> tuple[Field | None, int, int]:
    """The field of `message` at `at`, None where it has no such; its number or length; where that ends."""
    key, at = varint(head, at)
    value, at = varint(head, at)
    field = message.fields.get(key >> 3)
    return field if field is not None and key & 7 in field.wire_types else None, value, at


def _is_readable(text: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r" for byte in text)


def read(file: InputFile, *, has_folder: bool = True) -> Checkpoint:
    """Open an ONNX model as a dict of its initializers, with other tensors of its nodes under CONSTANTS.

    `has_folder`: whether there is a folder around it, in which its other files lie.

    Raises: CorruptError, LimitError, MissingFileError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        external = ExternalFiles(file, has_folder=has_folder)
        on_failure.callback(external.close)
        with no_garbage_collection():
            model = _Model(file, external)
        root, constants = model.root()
        text = model.metadata.pop(records.KEY, None)
        record = Record.from_json(text, str(file.path)) if text is not None else None
        check_metadata(model.metadata, file.stored_bytes, str(file.path))
        checkpoint = Checkpoint(
            NAME,
            file.path,
            root,
            model.metadata,
            globals=model.uses(),
            record=record,
            notes=model.notes(),
            constants=constants | _constants(record),
            programs=[model.program()],
            dropped=[*model.wire.unknown, *model.dropped()],
        )
        checkpoint.held = (file, *external.folders.values())
        checkpoint.parts.append(external.parts)
        checkpoint.checks.append(external.check_sums)
        checkpoint.files = on_failure.pop_all()
    return checkpoint


def _constants(record: Record | None) -> frozenset[str]:
    """Which of the initializers no state dict has, as the record of an export says."""
    names = (record.program or {}).get("constants") if record is not None else None
    listed = names if isinstance(names, list) else ()
    return frozenset(name for name in listed if isinstance(name, str))


FORMAT = FileFormat(NAME, sniff, read)
MEMBER_FORMAT = FileFormat(NAME, sniff, partial(read, has_folder=False))
"""Of a model in an archive, which has no folder around it."""


class _Model:
    """What one walk through a model finds."""

    def __init__(self, file: InputFile, external: ExternalFiles) -> None:
        self.wire = WireReader(file)
        self.metadata: dict[str, str] = {}
        self._where, self._times = str(file.path), room(file.stored_bytes)
        self._external = external
        self._tensors = Tensors(self.wire, external)
        self._initializers: dict[str, Any] = {}
        self._nested: dict[str, Any] = {}
        """Those of graphs in the graph, which come before its own in the file."""
        self._constants: dict[str, Any] = {}
        self._operators: Counter[tuple[str, str]] = Counter()
        """By domain and type."""
        self._functions: dict[tuple[str, str], None] = {}
        self._opsets: dict[str, int] = {}
        self._inputs: list[Port] = []
        self._outputs: list[Port] = []
        self._texts: dict[str, str] = {}
        self._numbers_in_nodes: dict[str, None] = {}
        """The operators whose attributes are what a model has learned."""
        self._num_training = self._num_objects = 0
        self._name_chars = 0
        self._copies: Counter[str] = Counter()
        self._read(Span(0, file.size_bytes))
        external.check_apart()

    def root(self) -> tuple[dict[str, Any], frozenset[str]]:
        """The initializers and constants by name, and the names that the constants have in the checkpoint."""
        if taken := self._initializers.keys() & self._nested.keys():
            raise self.wire.corrupt(f"two initializers are called {min(taken)[:80]!r}")
        root = {**self._initializers, **self._nested}
        key = CONSTANTS
        while key in root:
            key += "_"
        if not self._constants:
            return root, frozenset()
        return {**root, key: self._constants}, frozenset(f"{key}.{name}" for name in self._constants)

    def uses(self) -> dict[str, GlobalUse]:
        """The operators that may do more than compute."""
        found = {}
        for (domain, op_type), count in self._operators.items():
            if not is_plain(domain, op_type) and (domain, op_type) not in self._functions:
                name = named(domain, op_type)
                found[name] = GlobalUse(name, count, "called")
        return found

    def program(self) -> Program:
        operators: Counter[str] = Counter()
        for (domain, op_type), count in self._operators.items():
            operators[named(domain, op_type)] += count
        return Program(
            name=self._texts.get("domain", ""),
            inputs=[one for one in self._inputs if one.name not in self._initializers],
            outputs=self._outputs,
            operators=dict(operators.most_common()),
            opsets=self._opsets,
            producer=" ".join(filter(None, map(self._texts.get, ("producer_name", "producer_version")))),
            functions=[named(*function) for function in self._functions],
        )

    def notes(self) -> list[str]:
        notes = [
            f"{counted(count, 'tensor lies', 'tensors lie')} in {location}"
            for location, count in [*self._external.num_tensors.items()][:MAX_NOTES]
        ]
        if len(self._external.num_tensors) > MAX_NOTES:
            notes.append(f"others lie in {len(self._external.num_tensors) - MAX_NOTES} more files")
        if self._num_training:
            notes.append("holds graphs of a training, whose initializers are listed")
        return notes

    def dropped(self) -> list[str]:
        return [f"the numbers in the attributes of {name}" for name in self._numbers_in_nodes]

    def _read(self, span: Span) -> None:
        wire, graph, version = self.wire, None, 0
        for field, value in wire.read(schema.MODEL, span):
            if isinstance(value, int):
                version = value if field == "ir_version" else version
            elif field == "graph":
                graph = value
                self._graph(value, "", 0)
            elif field == "opset_import":
                domain, number = self._operator_set(value)
                if self._opsets.setdefault(domain, number) != number:
                    raise wire.corrupt(f"two versions of the operators of {domain[:80]!r}")
                self._limit("opsets", len(self._opsets))
            elif field == "metadata_props":
                found: dict[str, Any] = dict(wire.read(schema.ENTRY, value))
                key = wire.text(found.get("key"))
                if key in self.metadata:
                    raise wire.corrupt(f"two texts under {key[:80]!r} in metadata_props")
                self.metadata[key] = wire.text(found.get("value"))
                self._limit("metadata_texts", len(self.metadata))
            elif field == "training_info":
                for part, inner in wire.read(schema.TRAINING, value):
                    self._graph(inner, f"training_info.{self._num_training}.{part}.", 1)
                self._num_training += 1
            elif field == "functions":
                self._function(value)
            else:
                self._texts[field] = wire.text(value)
        if graph is None or not version or (version >= _WITH_OPSETS and not self._opsets):
            raise wire.corrupt("it ends before its graph and its opsets")

    def _graph(self, span: Span, prefix: str, depth: int) -> None:
        """`prefix`: what comes before the names of its tensors; `depth`: in how many graphs it lies."""
        wire = self.wire
        if depth > MAX_NESTING:
            raise LimitError("nested_graphs", MAX_NESTING, "more", self._where)
        number = 0
        for field, value in wire.read(schema.GRAPH, span):
            if field == "node":
                self._node(value, prefix, number, depth)
                number += 1
            elif field in ("initializer", "sparse_initializer"):
                made = self._tensors.tensor if field == "initializer" else self._tensors.sparse
                name, tensor = made(value)
                self._add(self._nested if depth else self._initializers, prefix, name, tensor)
            elif depth == 0:
                ports = self._inputs if field == "input" else self._outputs
                ports.append(port(wire, value))
                self._limit("graph_inputs_and_outputs", len(ports))

    def _node(self, span: Span, prefix: str, number: int, depth: int) -> None:
        """`number`: which node of its graph it is."""
        wire = self.wire
        texts: dict[str, str] = {}
        num_floats = 0
        for field, value in wire.read(schema.NODE, span):
            if field == "attribute":
                num_floats = max(num_floats, self._attribute(value, texts, prefix, number, depth))
            elif field not in texts:  # the first output names the node
                texts[field] = wire.text(value)
        domain, op_type = texts.get("domain", ""), texts.get("op_type", "")
        self._operators[domain, op_type] += 1
        self._limit("operators", len(self._operators))
        if num_floats > (0 if domain == "ai.onnx.ml" else MAX_PLAIN_NUMBERS):
            self._numbers_in_nodes[op_type] = None

    def _attribute(self, span: Span, node: dict[str, str], prefix: str, number: int, depth: int) -> int:
        """List what tensors an attribute has; how many floating-point numbers it has that are not listed.

        `node`: the texts of its node that lie before it, as all writers have them.
        """
        wire = self.wire
        op_type, name, num_floats = node.get("op_type", ""), "", 0
        holder = node.get("name") or f"{op_type}_{number}"
        is_constant = op_type == "Constant" and node.get("output")
        lists: dict[str, Any] = {}
        for field, value in wire.read(schema.ATTRIBUTE, span):
            if field == "name":
                name = wire.text(value)
            elif field in ("floats", "ints"):
                if is_constant:
                    self._collect(lists, field, value)
                elif field == "floats":
                    num_floats += value.num_bytes // 4
            elif field in ("g", "graphs"):
                self._graph(value, f"{prefix}{holder}.{name}.", depth + 1)
            else:
                made = self._tensors.sparse if field.startswith("sparse") else self._tensors.tensor
                own = node["output"] if is_constant else f"{holder}.{name}"
                self._add(self._constants, prefix, self._unused(prefix, own), made(value)[1])
        for field, numbers in lists.items():
            tensor = self._tensors.of_numbers(field, numbers)
            if tensor.shape[0] > MAX_PLAIN_NUMBERS:
                self._add(self._constants, prefix, self._unused(prefix, node["output"]), tensor)
        return num_floats

    def _collect(self, lists: dict[str, Any], field: str, value: int | Span) -> None:
        """Add one field of a repeated number to its list: one number, or the Span of all, packed.

        Raises: CorruptError where a packed list is one of several pieces.
        """
        is_packed = isinstance(value, Span) and (field == "ints" or value.num_bytes != 4)
        known = lists.get(field)
        if is_packed and known is None:
            lists[field] = value
            return
        if is_packed or isinstance(known, Span):
            raise self.wire.corrupt("a list of numbers in several pieces")
        number = value.to_bytes(8, "little") if isinstance(value, int) else self.wire.bytes_at(value)
        lists.setdefault(field, bytearray()).extend(number)

    def _function(self, span: Span) -> None:
        wire = self.wire
        texts: dict[str, str] = {}
        number = 0
        for field, value in wire.read(schema.FUNCTION, span):
            name = texts.get("name", "")
            if field == "node":
                self._node(value, f"functions.{name}.", number, 1)
                number += 1
            elif field == "attribute_proto":
                self._attribute(value, {"name": name}, "functions.", 0, 1)
            else:
                texts[field] = wire.text(value)
        self._functions[texts.get("domain", ""), texts.get("name", "")] = None
        self._limit("functions", len(self._functions))

    def _operator_set(self, span: Span) -> tuple[str, int]:
        found: dict[str, Any] = dict(self.wire.read(schema.OPERATOR_SET, span))
        return self.wire.text(found.get("domain")), found.get("version", 0)

    def _add(self, tensors: dict[str, Any], prefix: str, name: str, tensor: Any) -> None:
        """Raises: CorruptError for an initializer without a name, or of a name that is taken; LimitError."""
        if not name:
            raise self.wire.corrupt("an initializer has no name")
        name = prefix + name
        if name in tensors:
            raise self.wire.corrupt(f"two initializers are called {name[:80]!r}")
        self._name_chars += len(name)
        if self._name_chars > MAX_NAME_CHARS:
            raise LimitError("name_chars", MAX_NAME_CHARS, "more", self._where)
        tensors[name] = tensor
        self._limit("tensors", len(tensors))
        if isinstance(tensor, Opaque):
            self._num_objects += 1
            self._limit("objects", self._num_objects, MAX_OBJECTS)

    def _unused(self, prefix: str, name: str) -> str:
        """`name`, or `name~2`, … where a constant has it already: names of nodes may repeat."""
        unused = name
        while prefix + unused in self._constants:
            self._copies[name] += 1
            unused = f"{name}~{self._copies[name] + 1}"
        return unused

    def _limit(self, what: str, count: int, most: int = MAX_THINGS) -> None:
        """Raises: LimitError."""
        most *= self._times
        if count > most:
            raise LimitError(f"onnx_{what}", most, "more", self._where)
