"""Statements: what each field is over, and which of them a change of the checkpoint changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
import rfc8785
import torch

from ptsave.core.finding import Kind
from ptsave.errors import CorruptError, LossyError
from ptsave.models.weights.live import checkpoint_of
from ptsave.sign.merkle import root
from ptsave.sign.statement import (
    Statement,
    content_of,
    differences,
    draft_of,
    parse_statement,
    statement_of,
    with_digests,
)

State = dict[str, Any]


def state() -> State:
    tied = torch.arange(6.0).reshape(2, 3)
    return {"b": tied, "a": tied, 'q"\\\n\x7fé': torch.ones(()), "e": torch.empty(0, 2), "epoch": 3}


def stated(tree: State, **options: Any) -> Statement:
    """The statement about a tree; a digest is one of the dtype, the shape and the bytes."""
    checkpoint = checkpoint_of(tree, None)  # type: ignore[arg-type]
    digests = {}
    for name, entry in checkpoint.tensors.items():
        values = tree[name].contiguous().reshape(-1).view(torch.uint8).tolist()
        digests[name] = sha256(repr((entry.dtype.name, entry.shape, values)).encode()).hexdigest()
    return statement_of(content_of(checkpoint, digests, **options), "sha256")


def test_each_field_is_what_the_format_says() -> None:
    """Spelled again with the rfc8785 package, as docs/signatures.md says."""
    tree = state()
    made, names = stated(tree), sorted(name for name in tree if name != "epoch")
    shapes = {name: [str(tree[name].dtype).removeprefix("torch."), list(tree[name].shape)] for name in names}

    def hashed(value: Any) -> str:
        return sha256(rfc8785.dumps(value)).hexdigest()

    assert made.names == hashed(names)
    assert made.layout == hashed([[name, *shapes[name]] for name in names])
    assert made.ties == hashed([["a", "b"]])
    assert made.data == root([rfc8785.dumps(["epoch", 3])])
    assert (made.num_tensors, made.num_data) == (4, 1)
    digests = {name: f"{i:064x}" for i, name in enumerate(reversed(names))}
    found = with_digests(made, digests)
    assert found.root == root([rfc8785.dumps([name, digests[name]]) for name in names])
    assert found.values == hashed(sorted(digests.values()))
    assert parse_statement(made.payload(), "") == replace(made, only=[])


def test_a_draft_is_the_statement_without_its_digests() -> None:
    checkpoint = checkpoint_of(state(), None)  # type: ignore[arg-type]
    digests = {name: sha256(name.encode()).hexdigest() for name in checkpoint.tensors}
    content = content_of(checkpoint, digests)
    draft = draft_of(content_of(checkpoint, dict.fromkeys(digests, "")), "sha256")
    assert with_digests(draft, digests) == statement_of(content, "sha256")
    assert len(draft.payload()) == len(statement_of(content, "sha256").payload())


def half(tree: State) -> None:
    tree["b"] = tree["a"] = tree["a"].to(torch.float16)


def relabelled(tree: State) -> None:
    tree["b"] = tree["a"] = tree["a"].view(torch.int32)


def one_dimension(tree: State) -> None:
    tree['q"\\\n\x7fé'] = torch.ones(1)


def empty_of_another_shape(tree: State) -> None:
    tree["e"] = torch.empty(2, 0)


def untied(tree: State) -> None:
    tree["a"] = tree["b"].clone()


def decomposed(tree: State) -> None:
    tree['q"\\\n\x7fe\u0301'] = tree.pop('q"\\\n\x7fé')


def named_as_each_other(tree: State) -> None:
    tree["b"], tree["a"] = tree["b"].clone(), tree["b"] + 1


def of_another_type(tree: State) -> None:
    tree["epoch"] = "3"


CHANGES: dict[Callable[[State], None], set[Kind]] = {
    half: {Kind.SIGNED_OTHER_LAYOUT},
    relabelled: {Kind.SIGNED_OTHER_LAYOUT},
    one_dimension: {Kind.SIGNED_OTHER_LAYOUT},
    empty_of_another_shape: {Kind.SIGNED_OTHER_LAYOUT},
    untied: {Kind.SIGNED_OTHER_TIES},
    decomposed: {Kind.SIGNED_RENAMED},
    named_as_each_other: {Kind.SIGNED_OTHER_VALUES, Kind.SIGNED_OTHER_TIES},
    of_another_type: {Kind.SIGNED_OTHER_DATA},
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_changes_the_statement(change: Callable[[State], None]) -> None:
    tree = state()
    change(tree)
    assert set(differences(stated(state()), stated(tree))) == CHANGES[change]


def test_an_order_is_none() -> None:
    assert stated(dict(reversed(state().items()))) == stated(state())


def test_a_part_is_of_its_names_alone() -> None:
    part = stated(state(), only=["a", "e"])
    assert (part.num_tensors, part.num_data) == (2, 0)
    assert stated(state(), only=["a", "b"], within=["a"]).num_tensors == 1


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(LossyError):
        stated({"\ud800": torch.ones(1)})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"_type":"https://in-toto.io/Statement/v1"}', "\ufeff{}"])
def test_what_is_no_statement(text: str) -> None:
    with pytest.raises(CorruptError):
        parse_statement(text.encode(), "")
