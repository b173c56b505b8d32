"""The nouns: what any checkpoint is, whatever its format.

A checkpoint is a tree of plain data whose leaves may be tensors. Files, folders and live models all
present themselves as one, so that nothing downstream knows where bytes come from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from ptsave.core.accounts import Accounting, Accounts, account
from ptsave.core.address import Location
from ptsave.core.caps import SMALL_FILE_TENSORS, room
from ptsave.core.finding import Finding
from ptsave.core.leaves import MAX_NAME_CHARS, named_leaves
from ptsave.core.nodes import GlobalUse, Program, TensorEntry
from ptsave.core.parts.training import Parts, find_parts, nested
from ptsave.core.record import Record
from ptsave.core.tree import with_arrays
from ptsave.errors import LimitError
from ptsave.own_process import no_garbage_collection

MAX_VIEWS_OF_A_BYTE = 8
"""Cap on the bytes of all tensors, per byte of the storages that they view, past FREE_VIEWED_BYTES."""
FREE_VIEWED_BYTES = 1024**3
MAX_LEAVES = 500_000
"""Cap on the tensors and other values that a file lists: six bytes can spell one, which costs 300 bytes of
memory and 8 microseconds to show. A container costs as much as two."""
FILE_BYTES_PER_LEAF = 32
"""A long file may list one for each so many of its bytes."""
LIVE = "live"
"""The format of what is not a file: a model in memory."""
ROOT_NAME = "value"
"""The name of a root that is itself a leaf: `torch.save(tensor, path)`."""


class Held(Protocol):
    """A file or a folder that is open for reading."""

    @property
    def size_bytes(self) -> int:
        """Of the file, or of the folder's files that were opened."""

    @property
    def stored_bytes(self) -> int:
        """How many bytes somebody had to give for these; compressed ones are fewer."""

    def check_unchanged(self) -> None:
        """Insist that all that was read so far is of one version.

        Raises: UnreadableError.
        """

    def check_in_place(self) -> None:
        """Insist that its path still leads to the version that was read.

        Raises: UnreadableError.
        """


@dataclass(frozen=True)
class Replaced:
    """What was read and is to be replaced: then it must still be what its path leads to."""

    held: Held

    @property
    def size_bytes(self) -> int:
        return self.held.size_bytes

    @property
    def stored_bytes(self) -> int:
        return self.held.stored_bytes

    def check_unchanged(self) -> None:
        self.held.check_in_place()

    def check_in_place(self) -> None:
        self.held.check_in_place()


@dataclass(frozen=True)
class Wrapping:
    """What a checkpoint's file lies in: one of an archive's members, or compressed."""

    kind: str
    """`zip`, `tar`, `gzip`, `zstd`, …"""
    member: str = ""
    """Of an archive, the one that it is."""
    num_bytes: int = 0
    """Of what is inside."""
    is_unpacked: bool = False
    """Whether it was copied out into a temporary file, which goes with the checkpoint."""

    @property
    def described(self) -> str:
        """`tar archive`, `gzip-compressed file`."""
        return f"{self.kind} archive" if self.member else f"{self.kind}-compressed file"


@dataclass(eq=False)
class Checkpoint:
    """A checkpoint that is open for reading."""

    format: str
    path: Location
    """Where it came from; for messages only, never opened again."""
    root: Any
    """The tree: dict, list, tuple and plain values, with TensorEntry, Opaque and Global as leaves."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Text that the container carries beside the tensors (safetensors' `__metadata__`)."""
    globals: Mapping[str, GlobalUse] = field(default_factory=dict)
    """The names in the file that are not in the allow-list, by dotted name."""
    record: Record | None = None
    notes: list[str] = field(default_factory=list)
    """What a reader wants a user to know: a TorchScript archive's code, an index's extra shard."""
    programs: Sequence[Program] = ()
    """What it says of the programs in it."""
    constants: frozenset[str] = frozenset()
    """Names of the tensors that a program computes with and no state dict has: masks, tables."""
    num_code_files: int = 0
    """How many files of code it carries that torch would run in an interpreter of its own."""
    beside: list[Finding] = field(default_factory=list)
    """What the check `safe` has to say of files beside it that a loader could take."""
    checks: list[Callable[[], Iterator[Any]]] = field(default_factory=list)
    """The container's own integrity checks (CRCs, …); each yields `core.verdict.Finding`s."""
    parts_of_checks: list[Callable[[], Iterator[Any]]] = field(default_factory=list)
    """`checks` in parts that several processes can share; empty where the checks cannot be divided."""
    parts: list[Accounting] = field(default_factory=list)
    """What the container has that tensors may view, its bookkeeping aside."""
    dropped: list[str] = field(default_factory=list)
    """What the file says of its tensors and containers, and a reader could not keep."""
    files: ExitStack = field(default_factory=ExitStack)
    """Closes what is open."""
    named: Location | None = None
    """What a user named, where it was opened by that: `path` is a copy of it in a cache, or a file of it."""
    siblings: Sequence[str] = ()
    """The other files in the folder that it is, by name."""
    held: Sequence[Held] = ()
    """What it was read from; none for a live model."""
    wrappings: Sequence[Wrapping] = ()
    """What its file lies in, the outermost first."""

    @property
    def source_bytes(self) -> int:
        """The size of what it was read from: caps grow with it. A live model is as large as it is."""
        if self.format == LIVE:
            return sys.maxsize
        return sum(held.stored_bytes for held in self.held)

    @property
    def texts(self) -> dict[str, str]:
        """`metadata`, and what the record keeps of it for formats that have no place of their own."""
        return {**(self.record.metadata if self.record is not None else {}), **self.metadata}

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """Every tensor by its name, in the file's order. The names are unique."""
        return self._leaves[0]

    @cached_property
    def data(self) -> dict[str, Any]:
        """Every leaf that is not a tensor, by its path: plain values, Opaque, Global, empty containers."""
        return self._leaves[1]

    @cached_property
    def weights_root(self) -> Any:
        """The tree with weights that are NumPy arrays as tensors."""
        return with_arrays(self.root)

    @cached_property
    def training_root(self) -> Any:
        """The tree in which the parts of a training nest, where a flat format has pulled them apart."""
        return nested(self.root, self.record.extras if self.record is not None else None)

    @cached_property
    def training_parts(self) -> Parts:
        """The parts of a training in `training_root`."""
        return find_parts(self.training_root)

    @cached_property
    def accounts(self) -> Accounts:
        """What became of everything that the container holds: nothing is left out without a name."""
        parts = (part for accounting in self.parts for part in accounting())
        with no_garbage_collection():
            return account(self.root, self.tensors.values(), parts, self.dropped)

    @cached_property
    def _leaves(self) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
        tensors: dict[str, TensorEntry] = {}
        data: dict[str, Any] = {}
        times: dict[str, int] = {}
        most = max(MAX_LEAVES, self.source_bytes // FILE_BYTES_PER_LEAF)
        is_small = bool(self.held) and room(self.source_bytes) == 1  # of a part alone, nobody knows
        most_tensors = SMALL_FILE_TENSORS if is_small else most
        with no_garbage_collection():
            try:
                most_chars = max(MAX_NAME_CHARS, self.source_bytes // 4)
                for place, leaf in named_leaves(self.weights_root, most_chars, most):
                    name = ROOT_NAME if place is None else place
                    if isinstance(leaf, TensorEntry):
                        name = _unused(name, tensors, times)
                        tensors[name] = leaf.named(name)
                        if len(tensors) > most_tensors:
                            raise LimitError("tensors", most_tensors, "more")
                    elif place is not None or leaf != {}:  # an empty state dict has no leaves
                        data[_unused(name, data, times)] = leaf
                check_viewed(tensors.values(), spelled=False)
            except LimitError as error:
                error.where = error.where or str(self.path)
                raise
        return tensors, data

    def check_unchanged(self) -> None:
        """Insist that all that was read so far is of one version of what it was read from.

        Raises: UnreadableError where a file was written to, or one of a folder replaced, meanwhile.
        """
        for held in self.held:
            held.check_unchanged()

    def close(self) -> None:
        self.files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_viewed(entries: Collection[TensorEntry], *, once: bool = True, spelled: bool = True) -> None:
    """Refuse tensors that view the same bytes so often that a small file costs what a large one does.

    `once`: whether equal views are gone through once, as in most commands; a writer without ties writes each.
    `spelled`: whether what is done with them goes through each element in its order, as comparing, hashing
    and writing do; for statistics, and for what looks at storages, an expanded tensor is as small as those.

    Raises: LimitError.
    """

    def size(entry: TensorEntry) -> int:
        return entry.num_bytes if spelled else entry.unrepeated_bytes

    viewed = sum(map(size, entries))
    if viewed <= FREE_VIEWED_BYTES:
        return
    stored = sum({id(entry.storage): entry.storage.num_bytes for entry in entries}.values())
    allowed = max(FREE_VIEWED_BYTES, MAX_VIEWS_OF_A_BYTE * stored)
    if once and viewed > allowed:
        viewed = sum({entry.view: size(entry) for entry in entries}.values())
    if viewed > allowed:
        raise LimitError("views_of_a_byte", MAX_VIEWS_OF_A_BYTE, viewed // max(stored, 1))


def _unused(name: str, taken: Mapping[str, Any], times: dict[str, int]) -> str:
    """`name`, or `name~2`, … where two paths ({"a.b": …} and {"a": {"b": …}}) spell the same name.

    `times` remembers how far each name has been counted, so that many such paths cost no more each.
    """
    if name not in taken:
        return name
    n = times.get(name, 2)
    while f"{name}~{n}" in taken:
        n += 1
    times[name] = n
    return f"{name}~{n}"
