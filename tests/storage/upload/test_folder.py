"""Folders in the making: data under fresh names, the index last, and nothing half where it fails."""

from __future__ import annotations

import re

import pytest

from ptsave.core.address import Address
from ptsave.errors import ExistsError, WriteError
from ptsave.storage.opening import check_folder_destination, replacing_folder
from ptsave.storage.upload.folder import UploadFolder
from tests.servers.faults import lost_answer, replaced
from tests.servers.stores import Store
from tests.storage.upload.objects import address, refusal

MAIN = "index.json"


@pytest.fixture
def folder(store: Store, found_by_ptsave: None) -> Address:
    """An empty folder on each server in turn."""
    return address(f"{store.address}/run")


MADE = r"(?:PUT .*/|POST /upload/.*name=run%2F)"
"""The beginning of the request that makes a small object in it, before its name."""


def put(folder: Address, text: bytes, *, overwrite: bool = False, fails: bool = False) -> None:
    """Write a folder of one file of data and the index that names it."""
    with replacing_folder(folder, len(text), overwrite=overwrite) as made:
        (name,) = made.fresh(lambda generation: [f"data-{generation}"])
        made.small_file(name, text)
        if fails:
            raise ValueError("on purpose")
        old = sorted(name for name in made.taken if name.startswith("data-"))
        made.commit((MAIN, name.encode()), old=old)


def read(store: Store) -> bytes:
    """The data that the index names."""
    return store.get(f"run/{store.get(f'run/{MAIN}').decode()}")


def test_data_comes_first_and_the_index_last(store: Store, folder: Address) -> None:
    put(folder, b"one")
    sent = [f"{one.method} {one.target}" for one in store.server.log if one.method in ("PUT", "POST")]
    assert [re.sub(MADE, "", one) for one in sent] == ["data-1", MAIN]
    assert read(store) == b"one"


def test_an_update_takes_fresh_names_and_removes_the_old_ones(store: Store, folder: Address) -> None:
    put(folder, b"one")
    put(folder, b"two", overwrite=True)
    assert read(store) == b"two"
    assert store.names() == ["run/data-2", f"run/{MAIN}"]


def test_a_folder_with_content_is_refused_before_anything_is_sent(store: Store, folder: Address) -> None:
    put(folder, b"one")
    store.put("other/notes.txt", b"")
    store.server.reset()
    for where in (folder, address(f"{store.address}/other/")):
        with pytest.raises(ExistsError):
            put(where, b"two")
    assert store.server.count("^(PUT|POST)") == 0
    store.put("file", b"")
    with pytest.raises(WriteError, match="is a file"):
        check_folder_destination(address(f"{store.address}/file"))


def test_an_error_before_the_commit_removes_what_was_sent(store: Store, folder: Address) -> None:
    put(folder, b"one")
    with pytest.raises(ValueError, match="on purpose"):
        put(folder, b"two", overwrite=True, fails=True)
    assert store.names() == ["run/data-1", f"run/{MAIN}"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_commits_meanwhile_stands(store: Store, folder: Address, overwrite: bool) -> None:
    if overwrite:
        put(folder, b"one")
    before = store.names()
    fault = replaced(lambda: store.put(f"run/{MAIN}", b"another's"), 0)
    with store.server.faulty(fault, on=rf"{MADE}{MAIN}"), pytest.raises((WriteError, ExistsError)):
        put(folder, b"two", overwrite=overwrite)
    assert store.get(f"run/{MAIN}") == b"another's"
    assert store.names() == sorted({*before, f"run/{MAIN}"})


def test_a_lost_answer_to_the_commit_is_a_commit(store: Store, folder: Address) -> None:
    with store.server.faulty(lost_answer(), on=rf"{MADE}{MAIN}", times=1):
        put(folder, b"one")
    assert read(store) == b"one"


def test_a_refused_commit_leaves_nothing(store: Store, folder: Address) -> None:
    with (
        store.server.faulty(refusal(store, 403, "AccessDenied"), on=rf"{MADE}{MAIN}"),
        pytest.raises(WriteError),
    ):
        put(folder, b"one")
    assert store.names() == []


def test_what_a_killed_writer_left_is_no_content_and_is_removed(store: Store, folder: Address) -> None:
    killed = replacing_folder(folder, 3)
    killed.__enter__().small_file("data-1", b"half")
    put(folder, b"one")
    assert read(store) == b"one"
    assert store.names() == ["run/data-2", f"run/{MAIN}"]
    # while the server is there: later it would ask one that is gone for a minute
    assert killed.__exit__(ValueError, ValueError(), None) is False


def test_of_two_writers_one_gets_the_name(store: Store, folder: Address) -> None:
    second = replacing_folder(folder, 3)
    made = second.__enter__()
    put(folder, b"one")
    with pytest.raises(WriteError, match="another process"):
        made.small_file("data-1", b"two")
    assert second.__exit__(ValueError, ValueError(), None) is False
    assert read(store) == b"one"
    assert store.names() == ["run/data-1", f"run/{MAIN}"]


def test_an_interrupt_while_it_tidies_up_keeps_nothing(
    each: Store, found_by_ptsave: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = address(f"{each.address}/run")
    asks = iter([KeyboardInterrupt])
    remove = UploadFolder._remove_briefly

    def interrupted(made: UploadFolder, name: str) -> None:
        for interrupt in asks:
            raise interrupt
        remove(made, name)

    monkeypatch.setattr(UploadFolder, "_remove_briefly", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing_folder(where, 3) as folder:  # noqa: PT012
        for name in ("data-1", "data-2"):
            folder.small_file(name, b"one")
        raise ValueError("on purpose")
    assert each.names() == []
