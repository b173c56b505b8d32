"""Destinations made by hand: links, devices, pipes, odd names, modes, owners, and one's own source."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ptsave.errors import RefusedError
from ptsave.formats.base import WriteOptions
from ptsave.formats.torch.write import write
from ptsave.models.weights.live import checkpoint_of
from tests.crash.contents import by_others, by_ptsave, is_litter, of_state
from tests.crash.scenes import FORMATS, Sources
from tests.crash.trials import Ended, Trials, ptsave_command

pytestmark = pytest.mark.slow

OLD = b"not ours to lose"
NOBODY = 65534

Convert = Callable[..., Ended]


@pytest.fixture
def convert(trials: Trials, sources: Sources, tmp_path: Path) -> Convert:
    """`ptsave convert NEW DST …` in `tmp_path`."""

    def run(destination: object, *more: object, source: object = sources.new) -> Ended:
        ended = trials.run(["convert", source, destination, *more], tmp_path)
        assert "Traceback" not in ended.stderr
        assert ended.code in (0, RefusedError.exit_code), ended
        assert not [path for path in tmp_path.rglob("*") if is_litter(path.name)]
        return ended

    return run


@pytest.fixture
def new(sources: Sources) -> str:
    """What readers see in a file with the new weights."""
    return of_state(torch.load(sources.new, weights_only=True))


def check_refused(ended: Ended, says: str = "") -> None:
    assert ended.code == RefusedError.exit_code, ended
    assert "hint: " in ended.stderr
    assert says in ended.stderr, ended.stderr


def test_a_link_is_followed_and_stays(convert: Convert, new: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "real.pt"
    real.write_bytes(OLD)
    (tmp_path / "link.pt").symlink_to("store/real.pt")
    (tmp_path / "link2.pt").symlink_to("link.pt")
    check_refused(convert("link2.pt"), "exists")
    assert real.read_bytes() == OLD
    assert convert("link2.pt", "--overwrite").code == 0
    assert (tmp_path / "link2.pt").is_symlink()
    assert (tmp_path / "link.pt").is_symlink()
    assert by_ptsave(real) == new


def test_a_dangling_link_gets_its_file(convert: Convert, new: str, tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to("real.pt")
    assert convert("link.pt").code == 0
    assert (tmp_path / "link.pt").is_symlink()
    assert by_ptsave(tmp_path / "real.pt") == new


def test_a_link_into_nowhere_and_a_loop(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "away.pt").symlink_to("missing/real.pt")
    (tmp_path / "a.pt").symlink_to("b.pt")
    (tmp_path / "b.pt").symlink_to("a.pt")
    check_refused(convert("away.pt", "--overwrite"), "the folder does not exist")
    check_refused(convert("a.pt", "--overwrite"), "loop")
    assert (tmp_path / "a.pt").is_symlink()


def test_a_folder_behind_a_link(convert: Convert, new: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert convert("link", "--format", "dcp").code == 0
    assert (tmp_path / "link").is_symlink()
    assert by_ptsave(tmp_path / "real") == by_others(tmp_path / "real", "dcp") == new


def test_hard_links_are_refused(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_bytes(OLD)
    (tmp_path / "two.pt").hardlink_to(tmp_path / "one.pt")
    check_refused(convert("one.pt", "--overwrite"), "2 hard links")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes() == OLD


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
@pytest.mark.parametrize("format_name", ["pt", "dcp"])
def test_a_device_is_refused(convert: Convert, device: str, format_name: str) -> None:
    before = os.stat(device)
    check_refused(convert(device, "--overwrite", "--format", format_name))
    assert os.stat(device).st_rdev == before.st_rdev


def test_a_pipe_a_socket_and_a_folder_are_refused(convert: Convert, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    check_refused(convert("pipe.pt", "--overwrite"), "not a regular file")
    check_refused(convert("folder.pt", "--overwrite"), "is a directory")
    check_refused(convert("pipe.pt", "--overwrite", "--format", "dcp"))
    assert stat.S_ISFIFO((tmp_path / "pipe.pt").stat().st_mode)
    assert list((tmp_path / "folder.pt").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "x" * 252 + ".pt",
        "x" * 253 + ".pt",
        "é" * 126 + ".pt",
        "a\nb\x1b[31m.pt",
        " .pt",
        "-dash.pt",
        ".hidden.pt",
        "sub/../plain.pt",
        "x/" * 2100 + "deep.pt",
        "file.txt/x.pt",
        "ends/",
        ".",
        "..",
        "/",
        "",
    ],
    ids=lambda name: repr(name)[:20],
)
def test_odd_names(convert: Convert, new: str, name: str, tmp_path: Path) -> None:
    """Written where the name can be a file's; otherwise refused with its reason."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "file.txt").write_bytes(OLD)
    destination = f"./{name}" if name.startswith("-") else name
    ended = convert(destination, "--format", "pt", "--overwrite")
    try:
        can_be = len(os.fsencode(Path(name).name)) <= 255 and (tmp_path / name).parent.is_dir()
    except OSError:
        can_be = False
    if can_be and name not in ("", ".", "..", "/", "ends/"):
        assert ended.code == 0, ended
        assert by_ptsave(tmp_path / name) == new
    elif ended.code == 0:
        assert name == "ends/"
        assert by_ptsave(tmp_path / "ends") == new
    else:
        check_refused(ended)
    assert "\x1b[31m" not in ended.stderr, "the terminal obeys a name"
    assert (tmp_path / "file.txt").read_bytes() == OLD


def with_umask(umask: int, *arguments: str) -> None:
    os.umask(umask)
    ptsave_command(*arguments)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077], ids=oct)
def test_new_files_honour_the_umask(
    format_name: str, umask: int, trials: Trials, sources: Sources, tmp_path: Path
) -> None:
    arguments = ["convert", str(sources.new), "new", "--format", format_name]
    trial = trials.prepare(with_umask, umask, *arguments, cwd=tmp_path)
    trial.go()
    assert trial.wait().code == 0
    for path in [tmp_path / "new", *(tmp_path / "new").glob("*")]:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o755], ids=oct)
def test_an_old_file_keeps_its_mode(convert: Convert, mode: int, new: str, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(OLD)
    path.chmod(mode)
    assert convert(path, "--overwrite").code == 0
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert by_ptsave(path) == new


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="NOT RUN: giving files away needs root")
def test_an_old_file_keeps_its_owner(convert: Convert, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(OLD)
    os.chown(path, NOBODY, NOBODY)
    assert convert(path, "--overwrite").code == 0
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_checkpoint_converted_onto_itself(
    format_name: str, convert: Convert, sources: Sources, new: str, tmp_path: Path
) -> None:
    target = tmp_path / "self"
    assert convert(target, "--format", format_name).code == 0
    check_refused(
        convert(target, "--format", format_name, source=target), *([] if target.is_file() else ["exists"])
    )
    assert by_ptsave(target) == new
    for flags in ((), ("--dtype", "float16")):
        ended = convert(target, "--format", format_name, "--overwrite", *flags, source=target)
        check_refused(ended, "never changed")
    assert by_ptsave(target) == by_others(target, format_name) == new


def test_a_model_saved_onto_its_own_weights(trials: Trials, sources: Sources, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert trials.run(["save", sources.config, path], tmp_path).code == 0
    before = by_ptsave(path)
    arguments = ["save", sources.config, path, "--weights", path]
    check_refused(trials.run(arguments, tmp_path), "exists")
    check_refused(trials.run([*arguments, "--overwrite"], tmp_path), "never changed")
    assert by_ptsave(path) == before


def test_a_file_that_a_model_is_mapped_from(sources: Sources, tmp_path: Path) -> None:
    """The mapped tensors are read while their own file is replaced, and go on living from the old one."""
    path = tmp_path / "model.pt"
    shutil.copyfile(sources.old, path)
    state = torch.load(path, weights_only=True, mmap=True)
    expected = of_state(torch.load(sources.old, weights_only=True))
    for _ in range(2):
        write(checkpoint_of(state, path), path, WriteOptions(overwrite=True))
        assert of_state(state) == expected
        assert by_ptsave(path) == by_others(path, "pt") == expected


def test_litter_is_named_for_what_it_is(trials: Trials, sources: Sources, tmp_path: Path) -> None:
    """Beside the destination, under a hidden name that no reader's pattern finds."""
    trial = trials.prepare_command(["convert", sources.new, "model.safetensors"], tmp_path)
    trial.go()
    trial.wait()
    (tmp_path / ".model.safetensors.4000000-0123abcd.ptsave-tmp").write_bytes(OLD)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    ended = trials.run(["inspect", tmp_path], tmp_path)
    assert ended.code == 0, ended
    again = trials.run(["convert", sources.new, "model.safetensors", "--overwrite"], tmp_path)
    assert again.code == 0
    assert os.listdir(tmp_path) == ["model.safetensors"]
