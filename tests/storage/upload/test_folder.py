"""Folders in the making: data under fresh names, the index last, and nothing half where it fails."""

from __future__ import annotations

import pytest

from ptsave.core.address import Address
from ptsave.errors import ExistsError, WriteError
from ptsave.storage.opening import check_folder_destination, replacing_folder
from tests.servers.faults import lost_answer, replaced, s3_error
from tests.servers.stores import S3
from tests.storage.upload.objects import address

MAIN = "index.json"


@pytest.fixture
def folder(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Address:
    """An empty folder on each S3 server in turn."""
    for key, value in s3.env.items():
        monkeypatch.setenv(key, value)
    return address(f"{s3.address}/run")


def put(folder: Address, text: bytes, *, overwrite: bool = False, fails: bool = False) -> None:
    """Write a folder of one file of data and the index that names it."""
    with replacing_folder(folder, len(text), overwrite=overwrite) as made:
        (name,) = made.fresh(lambda generation: [f"data-{generation}"])
        made.small_file(name, text)
        if fails:
            raise ValueError("on purpose")
        old = sorted(name for name in made.taken if name.startswith("data-"))
        made.commit((MAIN, name.encode()), old=old)


def read(s3: S3) -> bytes:
    """The data that the index names."""
    return s3.get(f"run/{s3.get(f'run/{MAIN}').decode()}")


def test_data_comes_first_and_the_index_last(s3: S3, folder: Address) -> None:
    put(folder, b"one")
    puts = [exchange.target for exchange in s3.server.log if exchange.method == "PUT"]
    assert [target.rpartition("/")[2] for target in puts] == ["data-1", MAIN]
    assert read(s3) == b"one"


def test_an_update_takes_fresh_names_and_removes_the_old_ones(s3: S3, folder: Address) -> None:
    put(folder, b"one")
    put(folder, b"two", overwrite=True)
    assert read(s3) == b"two"
    assert s3.names() == ["run/data-2", f"run/{MAIN}"]


def test_a_folder_with_content_is_refused_before_anything_is_sent(s3: S3, folder: Address) -> None:
    put(folder, b"one")
    s3.put("other/notes.txt", b"")
    s3.server.reset()
    for where in (folder, address(f"{s3.address}/other/")):
        with pytest.raises(ExistsError):
            put(where, b"two")
    assert s3.server.count("^PUT") == 0
    s3.put("file", b"")
    with pytest.raises(WriteError, match="is a file"):
        check_folder_destination(address(f"{s3.address}/file"))


def test_an_error_before_the_commit_removes_what_was_sent(s3: S3, folder: Address) -> None:
    put(folder, b"one")
    with pytest.raises(ValueError, match="on purpose"):
        put(folder, b"two", overwrite=True, fails=True)
    assert s3.names() == ["run/data-1", f"run/{MAIN}"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_commits_meanwhile_stands(s3: S3, folder: Address, overwrite: bool) -> None:
    if overwrite:
        put(folder, b"one")
    before = s3.names()
    fault = replaced(lambda: s3.put(f"run/{MAIN}", b"another's"), 0)
    with s3.server.faulty(fault, on=rf"PUT .*/{MAIN}"), pytest.raises((WriteError, ExistsError)):
        put(folder, b"two", overwrite=overwrite)
    assert s3.get(f"run/{MAIN}") == b"another's"
    assert s3.names() == sorted({*before, f"run/{MAIN}"})


def test_a_lost_answer_to_the_commit_is_a_commit(s3: S3, folder: Address) -> None:
    with s3.server.faulty(lost_answer(), on=rf"PUT .*/{MAIN}", times=1):
        put(folder, b"one")
    assert read(s3) == b"one"


def test_a_refused_commit_leaves_nothing(s3: S3, folder: Address) -> None:
    with s3.server.faulty(s3_error(403, "AccessDenied"), on=rf"PUT .*/{MAIN}"), pytest.raises(WriteError):
        put(folder, b"one")
    assert s3.names() == []


def test_what_a_killed_writer_left_is_no_content_and_is_removed(s3: S3, folder: Address) -> None:
    killed = replacing_folder(folder, 3)
    killed.__enter__().small_file("data-1", b"half")
    put(folder, b"one")
    assert read(s3) == b"one"
    assert s3.names() == ["run/data-2", f"run/{MAIN}"]


def test_of_two_writers_one_gets_the_name(s3: S3, folder: Address) -> None:
    second = replacing_folder(folder, 3)
    made = second.__enter__()
    put(folder, b"one")
    with pytest.raises(WriteError, match="another process"):
        made.small_file("data-1", b"two")
    assert second.__exit__(ValueError, ValueError(), None) is False
    assert read(s3) == b"one"
    assert s3.names() == ["run/data-1", f"run/{MAIN}"]
