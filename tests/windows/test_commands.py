"""The commands that need no torch, on the emulation of Windows."""

from __future__ import annotations

import json
import os
import subprocess
from collections import OrderedDict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.windows.scene import command, environment, linux_only, on_windows, written

pytestmark = linux_only


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    """What is in `m.pt`, and a little more than one block of it."""
    torch.manual_seed(0)
    tensors = {"big": torch.randn(300, 300), "small": torch.arange(7), "half": torch.ones(3).half()}
    torch.save(OrderedDict(tensors), tmp_path / "m.pt")
    return tensors


def files_in(folder: Path) -> list[str]:
    """The files, less the scripts that ran there."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.suffix != ".py")


def every_way() -> None:
    from ptsave.cli.main import run

    formats = ("pt", "safetensors", "safetensors-sharded", "dcp", "npz")
    for name in formats:
        assert run(["convert", "m.pt", f"C:{name}", "--format", name, "--quiet"]) == 0
    for source in formats:
        for target in formats:
            words = ["convert", source, f".\\{source} {target}", "--format", target, "--quiet"]
            assert run(words) == 0, words
            assert run(words) == 4, words
            assert run([*words, "--overwrite"]) == 0, words
            assert run(["inspect", "M.PT", "--diff", f"{source} {target}"]) == 0
            assert run(["verify", f"{source} {target}", "--quiet"]) == 0


@pytest.mark.slow
def test_every_format_becomes_every_other_and_replaces_itself(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    on_windows(every_way, tmp_path)
    assert not [name for name in files_in(tmp_path) if "tmp" in name]
    for path in tmp_path.glob("* safetensors"):
        assert all(torch.equal(weights[name], found) for name, found in load_file(path).items())
    for path in (tmp_path / "pt", tmp_path / "dcp pt"):
        found = torch.load(path, weights_only=True)
        assert all(torch.equal(weights[name], found[name]) for name in weights)


def reports() -> None:
    from ptsave import streams
    from ptsave.cli.main import run

    streams.prepare()
    assert run(["inspect", "m.pt", "--tree"]) == 0
    assert run(["inspect", "m.pt", "--stats", "-v"]) == 0
    for suffix in ("json", "xml", "html"):
        assert run(["verify", "m.pt", "--quiet", "--report", f"C:report.{suffix}"]) == 0
    assert run(["convert", "m.pt", "cast.pt", "--dtype", "bfloat16", "--quiet"]) == 0
    assert run(["inspect", "m.pt", "--diff", "cast.pt"]) == 1
    assert run(["inspect", "none.pt"]) == 3
    assert run(["inspect", "m.pt", "--filter", "bi"]) == 2
    assert run(["convert", "m.pt", "new.pt", "--rename", "big"]) == 2


@pytest.mark.slow
def test_a_console_without_unicode_and_reports_with_it(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    output = on_windows(reports, tmp_path)
    assert "Traceback" not in output
    assert "\\u" not in output
    assert "\n|- big" in output.replace("\r", "")
    assert 'hint: did you mean "*bi*"?' in output
    assert 'hint: for example --rename "^encoder=backbone"' in output
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["verdict"] == "yes"
    assert ElementTree.parse(tmp_path / "report.xml").getroot().tag == "testsuites"
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def held() -> None:
    import os

    from ptsave.cli.main import run

    assert run(["convert", "m.pt", "f.safetensors"]) == 0
    assert run(["convert", "m.pt", "shards", "--format", "safetensors-sharded"]) == 0
    before = [sorted(os.listdir(folder)) for folder in (".", "shards")]
    to_file = ["convert", "m.pt", "f.safetensors", "--overwrite"]
    to_folder = ["convert", "m.pt", "shards", "--format", "safetensors-sharded", "--overwrite"]
    for name in ("f.safetensors", *(f"shards\\{name}" for name in os.listdir("shards"))):
        with open(name, "rb"):
            assert run(to_file if name == "f.safetensors" else to_folder) == 4
        assert [sorted(os.listdir(folder)) for folder in (".", "shards")] == before
    assert run(to_file) == run(to_folder) == 0
    os.chmod("f.safetensors", 0o444)
    assert run(to_file) == 4
    assert run(["convert", "m.pt", "M.PT", "--overwrite"]) == 4
    with open("m.pt", "rb"):
        assert run(["convert", "m.pt", "copy.pt"]) == 0


@pytest.mark.slow
def test_what_somebody_has_open_is_refused_before_anything_is_written(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    output = on_windows(held, tmp_path)
    assert output.count("error: the file is in use: a program has it open") == 3
    assert "error: the destination is read-only (f.safetensors)\nhint: attrib -r" in output.replace("\r", "")
    assert "error: the destination is an input" in output
    assert files_in(tmp_path) == [
        "copy.pt",
        "f.safetensors",
        "m.pt",
        "shards/model-ptsave2-00001-of-00001.safetensors",
        "shards/model.safetensors.index.json",
    ]


def opened_late() -> None:
    import os
    from pathlib import Path

    from ptsave.errors import WriteError
    from ptsave.storage.atomic import replacing_file, write_file

    write_file("out", b"old")
    reader = None
    try:
        with replacing_file("out", 3, overwrite=True) as output:
            output.write_at(0, b"new")
            reader = open("out", "rb")  # noqa: SIM115
    except WriteError as error:
        print(error, error.hint)
    assert reader is not None
    reader.close()
    assert sorted(os.listdir()) == [".opened_late.py", "m.pt", "out"]
    assert Path("out").read_bytes() == b"old"


def test_what_somebody_opens_meanwhile_stays_and_nothing_is_left(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    assert "the file is in use: a program has it open" in on_windows(opened_late, tmp_path)


def bad_names() -> None:
    from ptsave.cli.main import run

    for name in ("CON", "nul.pt", "com1.tar.pt", "a:b.pt", "ab:c.pt", "a?.pt", 'a".pt', "a<b.pt", "a|.pt"):
        assert run(["convert", "m.pt", name, "--format", "pt"]) == 4, name
        assert run(["inspect", name]) == 3, name
    for name in ("a.pt.", "a.pt ", "D:\\a.pt", "\\\\server\\share\\a.pt", "none\\a.pt"):
        assert run(["convert", "m.pt", name, "--format", "pt"]) == 4, name
    assert run(["verify", "m.pt", "--report", "x:y.html", "--quiet"]) == 4


def test_names_that_windows_takes_for_something_else_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    output = on_windows(bad_names, tmp_path)
    assert output.count("error: no file can have this name: Windows keeps the name") == 3
    assert output.count("error: no file can have this name: Windows allows no") == 5
    assert output.count("error: no file can have this name: Windows drops a dot or a space") == 2
    assert "cannot read: The filename" not in output
    assert files_in(tmp_path) == ["m.pt"]


def deep_folders() -> None:
    import os

    from ptsave.cli.main import run

    deep = os.path.join(os.getcwd(), *["d" * 90] * 3)
    os.makedirs("\\\\?\\" + deep)
    source = "m.pt"
    for name in ("pt", "safetensors", "safetensors-sharded", "dcp", "npz"):
        path = os.path.join(deep, f"copy-{name}")
        for more in ([], ["--overwrite"]):
            assert run(["convert", source, path, "--format", name, "--quiet", *more]) == 0, name
        assert run(["verify", path, "--against", "m.pt", "--quiet"]) == 0
        source = path
    assert run(["verify", "m.pt", "--report", os.path.join(deep, "report.json"), "--quiet"]) == 0


@pytest.mark.slow
def test_a_path_of_any_length_is_read_and_written(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    on_windows(deep_folders, tmp_path)
    assert sum("copy-" in name for name in files_in(tmp_path)) == 8


def shared() -> None:
    import os

    from ptsave.cli.main import run

    share = r"\\server\share"
    deep = share + r"\runs" + r"\deep" * 50
    os.makedirs(r"\\?\UNC" + deep[1:])
    for place in (share, deep.upper()):
        for name in ("a.pt", "shards", "dcp"):
            form = {"shards": ["--format", "safetensors-sharded"], "dcp": ["--format", "dcp"]}.get(name, [])
            path = f"{place}\\{name}"
            assert run(["convert", "m.pt", path, *form, "--quiet"]) == 0, path
            assert run(["convert", "m.pt", path, *form, "--quiet"]) == 4, path
            assert run(["convert", "m.pt", path, *form, "--quiet", "--overwrite"]) == 0, path
            assert run(["verify", path, "--against", "m.pt", "--quiet"]) == 0, path
    assert run(["inspect", share, "--quiet"]) == 0
    assert run(["inspect", share + r"\none.pt"]) == 3
    assert run(["inspect", r"\\server\other\a.pt"]) == 3
    assert run(["convert", "m.pt", r"\\other\share\a.pt"]) == 4


@pytest.mark.slow
def test_a_folder_of_another_machine_is_one_like_others(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    output = on_windows(shared, tmp_path, share=tmp_path / "elsewhere")
    assert "Traceback" not in output
    found = torch.load(tmp_path / "elsewhere" / "a.pt", weights_only=True)
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert not list(tmp_path.rglob("*tmp*"))


def litter() -> None:
    import os
    import time

    from ptsave.cli.main import run

    old, young, held = (f".out.pt.12345-0000000{i}.ptsave-tmp" for i in range(3))
    for name in (old, young, held):
        with open(name, "wb") as file:
            file.write(b"half")
    for name in (old, held):
        os.utime(name, (time.time() - 7200,) * 2)
    with open(held, "rb"):
        assert run(["convert", "m.pt", "out.pt"]) == 0
    assert sorted(name for name in os.listdir() if name.endswith("tmp")) == [young, held]


def test_a_killed_writers_file_goes_when_nobody_has_it_open(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    on_windows(litter, tmp_path)


def unpacked() -> None:
    from ptsave.cli.main import run

    for name in ("m.pt.gz", "m.zip::m.pt", "deflated.zip"):
        assert run(["verify", name, "--quiet"]) == 0, name
        assert run(["convert", name, "out.safetensors", "--overwrite", "--quiet"]) == 0, name


@pytest.mark.slow
def test_what_is_compressed_is_unpacked_into_a_file_that_goes(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    subprocess.run(["gzip", "-k", "m.pt"], cwd=tmp_path, check=True)
    for name, level in (("m.zip", "-0"), ("deflated.zip", "-9")):
        words = ["python", "-m", "zipfile", "-c", name, "m.pt"]
        if level == "-9":
            words = [
                "python",
                "-c",
                f"import zipfile; z = zipfile.ZipFile({name!r}, 'w', 8); z.write('m.pt')",
            ]
        subprocess.run(words, cwd=tmp_path, check=True)
    (tmp_path / "temp").mkdir()
    os.environ["TMPDIR"], before = str(tmp_path / "temp"), os.environ.get("TMPDIR")
    try:
        on_windows(unpacked, tmp_path)
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before
    assert not [*(tmp_path / "temp").iterdir()]


def failing() -> None:
    import os

    import pytest

    from ptsave.cli.main import run
    from ptsave.errors import PtsaveError
    from ptsave.storage.atomic import replacing_file
    from ptsave.storage.atomic_folder import replacing_folder

    for name in ("safetensors", "safetensors-sharded", "dcp", "npz", "pt"):
        assert run(["convert", "damaged.pt", f"to-{name}", "--format", name]) == 3

    def file(error: type[BaseException]) -> None:
        with replacing_file("out", 3) as output:
            output.write_at(0, b"new")
            raise error("now")

    def folder(error: type[BaseException]) -> None:
        with replacing_folder("folder", 3) as made, made.data_file("data", 3) as data:
            data.write_at(0, b"new")
            raise error("now")

    for write in (file, folder):
        for error in (KeyboardInterrupt, PtsaveError):
            with pytest.raises(error):
                write(error)
    assert sorted(os.listdir()) == [".failing.py", "damaged.pt", "m.pt"]


@pytest.mark.slow
def test_what_fails_leaves_nothing(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    data = bytearray((tmp_path / "m.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(data)
    on_windows(failing, tmp_path)


def hostile_names() -> None:
    from ptsave.cli.main import run

    for number in range(8):
        assert run(["inspect", f"index-{number}"]) == 3, number
        assert run(["convert", f"index-{number}", "out.pt"]) == 3, number
    assert run(["verify", "."]) == 3


def test_an_index_reaches_nothing_outside_its_folder(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    save_file(weights, tmp_path / "out.safetensors")
    names = (
        r"..\out.safetensors",
        "../out.safetensors",
        "C:out.safetensors",
        r"C:\out.safetensors",
        "NUL",
        "model:stream.safetensors",
        "model.safetensors.",
        "MODEL.safetensors",
    )
    for number, name in enumerate(names):
        folder = tmp_path / f"index-{number}"
        folder.mkdir()
        save_file(weights, folder / "other.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    output = on_windows(hostile_names, tmp_path)
    assert "a bug in ptsave" not in output


def impatient() -> None:
    import signal

    from ptsave import stopping
    from ptsave.storage.atomic import replacing_file

    stopping.install()
    with replacing_file("out", 3) as output:
        output.write_at(0, b"new")
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            print("asked once", flush=True)
            signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_leaves_nothing(tmp_path: Path) -> None:
    words = command(written(impatient, tmp_path))
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "asked once\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".impatient.py"]
