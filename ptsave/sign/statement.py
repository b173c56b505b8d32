"""What is signed: the tensors and plain data of a checkpoint, whatever its format, in an in-toto statement.

Source: the in-toto attestation framework, `Statement` v1: `_type`, `subject`, `predicateType`, `predicate`.

A statement holds hashes of everything and lists nothing, so it is as small for 100,000 tensors as for one.
`root` is the Merkle root over `[NAME,DIGEST]` of each tensor by name, where DIGEST covers dtype, shape and
elements (`core.values.digest`). The other hashes say how two checkpoints differ whose roots do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from hashlib import sha256
from typing import Any, TypeVar

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Kind
from ptsave.core.leaves import named_leaves
from ptsave.core.names import matches
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.record import Record
from ptsave.core.strict_json import parse_object
from ptsave.core.values.digest import recorded_digests
from ptsave.errors import CorruptError, LossyError
from ptsave.own_process import no_garbage_collection
from ptsave.sign.canonical import array_of_texts, canonical, in_utf8, plain, spelled
from ptsave.sign.merkle import root

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:ptsave:tensors:1"
SUBJECT = "tensors"
ALGORITHMS = ("sha256", "blake3")
"""Digests for which nobody finds two tensors. XXH3 is not among them."""
MODEL_KEYS = ("class", "factory", "args", "source_digest")
"""The keys of a record's `model` that are signed."""
_HEX = re.compile("[0-9a-f]{64}")
_COUNTED = re.compile("~[0-9]+$")
_HINT = "sign the checkpoint again"
_NO_HASH = "0" * 64


@dataclass(frozen=True)
class SignedContent:
    """The content of a checkpoint that a statement covers."""

    digests: Mapping[str, str]
    """Name → digest, of every tensor."""
    layout: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Name → dtype and shape."""
    ties: Sequence[Sequence[str]] = ()
    """The names of each tensor that has several, sorted."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name → value in JSON, of what is not a tensor."""
    not_covered: Sequence[str] = ()
    """The names of objects whose content is not listed, and so not signed."""
    model: Mapping[str, Any] | None = None
    """Class path, arguments and source digest, where the record has them."""


@dataclass(frozen=True)
class Statement:
    """What is said of a checkpoint, and signed."""

    algorithm: str
    """Of the tensors' digests."""
    root: str
    """Merkle root over names and digests."""
    num_tensors: int
    names: str
    """SHA-256 over the sorted names."""
    layout: str
    """SHA-256 over names, dtypes and shapes."""
    values: str
    """SHA-256 over the sorted digests, each once, without names."""
    ties: str
    """SHA-256 over the names of tied tensors."""
    num_data: int
    data: str
    """Merkle root over names and values of what is not a tensor."""
    model: Mapping[str, Any] | None = None
    only: Sequence[str] = ()
    """Globs of the names that it is about; all where empty."""
    expires: str | None = None
    """The last day on which it holds (UTC), as YYYY-MM-DD."""

    def payload(self) -> bytes:
        """The in-toto statement in canonical JSON.

        Raises: LossyError for what canonical JSON cannot spell.
        """
        predicate: dict[str, Any] = {
            "algorithm": self.algorithm,
            "tensors": {
                "count": self.num_tensors,
                "names": self.names,
                "layout": self.layout,
                "values": self.values,
                "ties": self.ties,
            },
            "data": {"count": self.num_data, "root": self.data},
        }
        if self.model is not None:
            predicate["model"] = plain(self.model)
        if self.only:
            predicate["only"] = list(self.only)
        if self.expires is not None:
            predicate["expires"] = self.expires
        return canonical(
            {
                "_type": TYPE,
                "subject": [{"name": SUBJECT, "digest": {"sha256": self.root}}],
                "predicateType": PREDICATE,
                "predicate": predicate,
            }
        )

    def is_expired(self, today: str) -> bool:
        """Whether `today` (YYYY-MM-DD) comes after its last day."""
        return self.expires is not None and today > self.expires


@no_garbage_collection()
def content_of(
    checkpoint: Checkpoint,
    digests: Mapping[str, str],
    only: Sequence[str] = (),
    names: Names | None = None,
    within: Sequence[str] = (),
) -> SignedContent:
    """What a statement about `checkpoint` covers, given the digest of each tensor by name.

    `only`, and `within`: globs of the names that it is about; all where they are empty. `names`: the names
    under which tensors and data were signed.

    Raises: LossyError where two things have one name, or a value is not plain data.
    """
    known = names or {}

    def covered(items: Mapping[str, T]) -> Mapping[str, T]:
        for globs in (only, within):
            items = {name: item for name, item in items.items() if matches(name, globs)} if globs else items
        return items

    tensors = covered(_renamed(checkpoint.tensors, known, "tensors"))
    data, not_covered = _data_of(checkpoint)
    data = _renamed(data, known, "values")
    _refuse_repeated(checkpoint)
    own = {known.get(name, name): digest for name, digest in digests.items()} if known else digests
    shared = Counter([id(entry.storage) for entry in tensors.values()])
    views: dict[object, list[str]] = {}
    for name, entry in tensors.items() if len(shared) < len(tensors) else ():
        if shared[id(entry.storage)] > 1 and entry.num_elements:
            views.setdefault(entry.view, []).append(name)
    record = checkpoint.record.model if checkpoint.record is not None else None
    return SignedContent(
        {name: own[name] for name in sorted(tensors)},
        {name: (entry.dtype.name, entry.shape) for name, entry in tensors.items()},
        sorted(sorted(same) for same in views.values() if len(same) > 1),
        covered(data),
        [*covered(dict.fromkeys(not_covered))],
        model_of(record),
    )


T = TypeVar("T")
Names = Mapping[str, str]
"""Name in the file → the name that was signed."""


def model_of(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What of a record's `model` is signed, in JSON; None where it says nothing of the class.

    Raises: LossyError for what is not plain data.
    """
    known = {key: record[key] for key in MODEL_KEYS if record.get(key) is not None} if record else {}
    return plain(known) if known else None


def statement_of(
    content: SignedContent, algorithm: str, only: Sequence[str] = (), expires: str | None = None
) -> Statement:
    """The statement about `content`, whose digests are of `algorithm`.

    Raises: LossyError for names or values that canonical JSON cannot spell.
    """
    return with_digests(draft_of(content, algorithm, only, expires), content.digests)


@no_garbage_collection()
def with_digests(draft: Statement, digests: Mapping[str, str]) -> Statement:
    """`draft` of the tensors that have these digests, by name."""
    values = '","'.join(sorted({*digests.values()}))
    spelled_values = f'["{values}"]' if digests else "[]"
    return replace(draft, root=tensors_root(digests), values=sha256(spelled_values.encode()).hexdigest())


@no_garbage_collection()
def draft_of(
    content: SignedContent, algorithm: str, only: Sequence[str] = (), expires: str | None = None
) -> Statement:
    """The statement about `content` without what it says of digests, which are not known yet.

    Raises: LossyError for names or values that canonical JSON cannot spell.
    """
    names = sorted(content.digests)
    shapes = {kind: f',"{kind[0]}",{list(kind[1])}]'.replace(" ", "") for kind in {*content.layout.values()}}
    layout = ",".join([f"[{spelled(name)}{shapes[content.layout[name]]}" for name in names])
    return Statement(
        algorithm=algorithm,
        root=_NO_HASH,
        num_tensors=len(names),
        names=_sha256(names),
        layout=sha256(in_utf8(f"[{layout}]")).hexdigest(),
        values=_NO_HASH,
        ties=_sha256(list(content.ties)),
        num_data=len(content.data),
        data=root(canonical([name, content.data[name]]) for name in sorted(content.data)),
        model=content.model,
        only=only,
        expires=expires,
    )


def tensors_root(digests: Mapping[str, str]) -> str:
    """The Merkle root over tensors' names and digests.

    Raises: LossyError for names that are not Unicode.
    """
    return root([in_utf8(f'[{spelled(name)},"{digests[name]}"]') for name in sorted(digests)])


def recorded_root(entries: Collection[TensorEntry], record: Record | None) -> str:
    """The Merkle root over the names and recorded digests of `entries`; empty where one has no digest.

    It is what a statement has, where its digests are of the record's algorithm.
    """
    digests = recorded_digests(entries, record).tensors
    if not digests or len(digests) < len(entries):
        return ""
    try:
        return tensors_root(digests)
    except LossyError:
        return ""


def differences(signed: Statement, found: Statement) -> Iterator[Kind]:
    """How `found`, of the same algorithm, differs from what was signed; nothing where the statement holds."""
    if (signed.num_tensors, signed.names) != (found.num_tensors, found.names):
        if signed.num_tensors == found.num_tensors and signed.values == found.values:
            yield Kind.SIGNED_RENAMED
        else:
            yield Kind.SIGNED_OTHER_NAMES
    elif signed.layout != found.layout:
        yield Kind.SIGNED_OTHER_LAYOUT
    elif signed.root != found.root:
        yield Kind.SIGNED_SWAPPED if signed.values == found.values else Kind.SIGNED_OTHER_VALUES
    elif signed.values != found.values:
        yield Kind.SIGNED_INCONSISTENT
    if signed.names == found.names and signed.ties != found.ties:
        yield Kind.SIGNED_OTHER_TIES
    if (signed.num_data, signed.data) != (found.num_data, found.data):
        yield Kind.SIGNED_OTHER_DATA
    if signed.model is not None and found.model is not None and signed.model != found.model:
        yield Kind.SIGNED_OTHER_MODEL


def parse_statement(payload: bytes, where: str) -> Statement:
    """Read what `Statement.payload` wrote, and nothing else: one statement has one spelling.

    Raises: CorruptError, LimitError.
    """
    document = parse_object(payload, "the signed statement", where)
    predicate = document.get("predicate")
    if document.get("_type") != TYPE or document.get("predicateType") != PREDICATE:
        kind = str(document.get("predicateType"))
        raise CorruptError(f"the signed statement is of another kind ({kind!r:.60})", where, _HINT)
    try:
        statement = _parsed(document, predicate)
        spelled = statement.payload()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, LossyError):
        raise CorruptError("the signed statement is malformed", where, _HINT) from None
    if spelled != payload:
        raise CorruptError("the signed statement is not in canonical form", where, _HINT)
    return statement


def _parsed(document: Mapping[str, Any], predicate: Any) -> Statement:
    (subject,) = document["subject"]
    tensors, data = predicate["tensors"], predicate["data"]
    only, expires = predicate.get("only", []), predicate.get("expires")
    model = predicate.get("model")
    if expires is not None and date.fromisoformat(expires).isoformat() != expires:
        raise ValueError(expires)
    if not isinstance(only, list) or not all(isinstance(glob, str) for glob in only):
        raise TypeError(only)
    if model is not None and not isinstance(model, dict):
        raise TypeError(model)
    hashes = (subject["digest"]["sha256"], data["root"], *(tensors[key] for key in _HASHES))
    counts = (tensors["count"], data["count"])
    if not all(isinstance(text, str) and _HEX.fullmatch(text) for text in hashes):
        raise ValueError(hashes)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(counts)
    if not isinstance(predicate["algorithm"], str):
        raise TypeError(predicate["algorithm"])
    return Statement(
        algorithm=predicate["algorithm"],
        root=hashes[0],
        num_tensors=counts[0],
        num_data=counts[1],
        data=hashes[1],
        model=model,
        only=only,
        expires=expires,
        **dict(zip(_HASHES, hashes[2:], strict=True)),
    )


_HASHES = ("names", "layout", "values", "ties")


def _sha256(items: list[Any]) -> str:
    return sha256(array_of_texts(items)).hexdigest()


def _data_of(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """What is not a tensor, in JSON, and the names of objects whose content is not listed.

    Values that a flat format keeps in the record are here under the names that they had in the tree, where
    `convert` puts them back, and they stay in the record.

    Raises: LossyError.
    """
    data = {name: plain(leaf) for name, leaf in checkpoint.data.items()}
    not_covered = [
        name
        for name, leaf in checkpoint.data.items()
        if isinstance(leaf, Opaque) and leaf.num_parts and not leaf.is_call_of_scalars
    ]
    if not_covered:  # unless what is in them is listed under their names
        names = (*checkpoint.data, *checkpoint.tensors)
        above = {name[:at] for name in names for at, char in enumerate(name) if char == "."}
        not_covered = [name for name in not_covered if name not in above]
    kept = checkpoint.record.extras if isinstance(checkpoint.record, Record) else None
    if isinstance(kept, dict):
        for name, value in kept.items():
            kept_value = plain(value)
            if name in data and canonical(data[name]) != canonical(kept_value):
                raise LossyError("two values have one name", repr(name), "rename one of them")
            data[name] = kept_value
    elif kept is not None:
        data[""] = plain(kept)
    return data, not_covered


def _renamed(items: Mapping[str, Any], names: Names, kind: str) -> dict[str, Any]:
    if not names:
        return dict(items)
    renamed = {names.get(name, name): item for name, item in items.items()}
    if len(renamed) != len(items):
        raise LossyError(f"two {kind} would get one name", "", "change the rename")
    return renamed


def _refuse_repeated(checkpoint: Checkpoint) -> None:
    """Insist that no two paths of the tree spell one name: it would be unclear which of them was signed.

    Raises: LossyError.
    """
    if not any(_COUNTED.search(name) for name in (*checkpoint.tensors, *checkpoint.data)):
        return
    met: set[str | None] = set()
    for name, leaf in named_leaves(checkpoint.weights_root):
        if name in met:
            kind = "tensors" if isinstance(leaf, TensorEntry) else "values"
            raise LossyError(f"two {kind} have one name", repr(name), "rename one of them")
        met.add(name)
