"""Several checkpoints, and plain folders of them: a verdict for each, and nothing left unsaid."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

import ptsave
from ptsave.cli import main
from ptsave.errors import UnknownFormatError
from ptsave.verbs.folders.plain import FolderInspection, plain_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two whole checkpoints under odd names, a folder with one, a cut one, a pickle, and a text."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    torch.save({"w": torch.ones(3)}, folder / "a.pt")
    save_file({"w": torch.ones(2)}, folder / "weights-without-suffix")
    (folder / "sharded").mkdir()
    save_file({"w": torch.ones(4)}, folder / "sharded" / "model.safetensors")
    (folder / "cut.pt").write_bytes((folder / "a.pt").read_bytes()[:200])
    (folder / "README.md").write_text("# Models")
    return folder


def names(paths: object) -> list[str]:
    return [path.name for path in paths]  # type: ignore[attr-defined]


def test_members_are_known_by_content_or_called_so(folder: Path) -> None:
    (folder / "object").write_bytes(b"\x80\x04N.")
    found = plain_folder(folder)
    assert found is not None
    assert names(found.members) == ["a.pt", "cut.pt", "object", "sharded", "weights-without-suffix"]
    assert found.others == ("README.md",)


def test_folders_in_folders_are_looked_into_when_asked(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.remove(folder / "cut.pt")
    for name in ("more/deep", "more/empty", "more/run"):
        (folder / name).mkdir(parents=True)
    (folder / "more" / "deep" / "unsafe.pkl").write_bytes(b"cposix\nsystem\n.")
    torch.save({"w": torch.ones(1)}, folder / "more" / "deep" / "z.pt")
    torch.save({"step": 1, "model_state_dict": {"w": torch.ones(2)}}, folder / "more/run/step-000000001.pt")
    (folder / "more" / "circle").symlink_to(folder, target_is_directory=True)
    assert main.run(["verify", "models", "--json"]) == 0
    assert main.run(["verify", "models", "-r", "--json"]) == 3
    said = capfd.readouterr().out.splitlines()
    shallow, deep = (json.loads(line) for line in said)
    assert shallow["not_looked_into"] == ["models/README.md", "models/more/"]
    assert deep["not_looked_into"] == ["models/README.md", "models/more/circle/"]
    verdicts = {one["path"].removeprefix("models/"): one["verdict"] for one in deep["verdicts"]}
    assert verdicts == {
        "a.pt": "yes",
        "sharded": "yes",
        "weights-without-suffix": "yes",
        "more/deep/unsafe.pkl": "error",
        "more/deep/z.pt": "yes",
        "more/run": "yes",
    }
    assert main.run(["verify", "models/a.pt", "-r"]) == 2
    assert main.run(["verify", "models/more/empty", "-r"]) == 3


def test_nothing_is_passed_over_in_silence(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder in it that is no checkpoint is named, and an old pickle, which has no mark, by its suffix."""
    os.remove(folder / "cut.pt")
    (folder / "more").mkdir()
    torch.save({"w": torch.ones(1)}, folder / "more" / "hidden.pt")
    assert main.run(["verify", "models"]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last.endswith("models/README.md, models/more/ (--recursive looks into folders)")
    (folder / "old.pkl").write_bytes(b"cposix\nsystem\n.")
    assert main.run(["verify", "models"]) != 0
    found = plain_folder(folder)
    assert found is not None
    assert found.others == ("README.md", "more/")


def test_what_lies_in_archives_is_verified_too(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.remove(folder / "cut.pt")
    with zipfile.ZipFile(folder / "two.zip", "w") as archive:
        archive.write(folder / "a.pt", "a.pt")
        archive.write(folder / "weights-without-suffix", "b/model.safetensors")
        archive.write(folder / "README.md", "README.md")
    with tarfile.open(folder / "one.tar.gz", "w:gz") as tar:
        tar.add(folder / "a.pt", "a.pt")
    (folder / "a.pt.gz").write_bytes(gzip.compress((folder / "a.pt").read_bytes()))
    with zipfile.ZipFile(folder / "texts.zip", "w") as archive:
        archive.write(folder / "README.md", "README.md")
    (folder / "text.gz").write_bytes(gzip.compress(b"a text"))
    found = plain_folder(folder)
    assert found is not None
    assert [str(path)[len(str(folder)) + 1 :] for path in found.members] == [
        "a.pt",
        "a.pt.gz",
        "one.tar.gz",
        "sharded",
        "two.zip::a.pt",
        "two.zip::b/model.safetensors",
        "weights-without-suffix",
    ]
    assert found.others == ("README.md", "text.gz", "texts.zip")
    assert main.run(["verify", "models"]) == 0
    data = (folder / "two.zip").read_bytes()
    place = data.index(torch.ones(3).numpy().tobytes())
    (folder / "two.zip").write_bytes(data[:place] + b"\1" + data[place + 1 :])
    capfd.readouterr()
    assert main.run(["verify", "models"]) == 1
    assert "two.zip::a.pt" in capfd.readouterr().out
    (folder / "two.zip").write_bytes(data[: len(data) // 2])
    assert main.run(["verify", "models"]) == 3
    assert main.run(["inspect", "models"]) == 0


def test_what_is_no_plain_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    for path in (folder / "a.pt", folder / "sharded", tmp_path / "texts", tmp_path / "missing"):
        assert plain_folder(path) is None
    with pytest.raises(UnknownFormatError):
        ptsave.inspect(tmp_path / "texts")


def test_inspect_lists_what_is_there(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", "models"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "models: folder, 4 checkpoints, 36 B"
    assert [line.split()[:3] for line in lines[3:5]] == [["a.pt", "pt", "1"], ["cut.pt", "truncated:", "the"]]
    assert lines[-1] == "not looked into: README.md"
    result = ptsave.inspect("models")
    assert isinstance(result, FolderInspection)
    assert [member.num_tensors for member in result.checkpoints] == [1, 0, 1, 1]
    assert main.run(["inspect", "models", "--stats"]) == 2
    assert "--stats is about one checkpoint" in capfd.readouterr().err


def test_a_verdict_for_each_and_the_worst_exit_code(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["verify", "models", "--checks", "bytes,finite"]) == 3
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "4 checkpoints: 3 yes, 1 error; not looked into: models/README.md"
    assert "yes: models/sharded passed bytes, finite" in said.out
    assert "error: truncated" in said.err
    os.remove(folder / "cut.pt")
    assert main.run(["verify", "models", "-q"]) == 0
    torch.save({"w": torch.tensor(float("nan")).repeat(3)}, folder / "nan.pt")
    assert main.run(["verify", "models/a.pt", "models/nan.pt", "--json"]) == 1
    document = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert document["counts"] == {"yes": 1, "no": 1, "error": 0}
    assert [one["verdict"] for one in document["verdicts"]] == ["yes", "no"]


def test_a_pickle_in_a_folder_is_no_yes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.remove(folder / "cut.pt")
    (folder / "tokenizer").write_bytes(b"\x80\x04cposix\nsystem\n\x94.")
    assert main.run(["verify", "models"]) != 0
    assert "tokenizer" in capfd.readouterr().err


def test_a_link_that_leads_out_is_verified_too(folder: Path, tmp_path: Path) -> None:
    os.remove(folder / "cut.pt")
    (tmp_path / "outside.pt").write_bytes((folder / "a.pt").read_bytes()[:-300])
    (folder / "link").symlink_to(tmp_path / "outside.pt")
    assert main.run(["verify", "models"]) == 3


def test_reports_have_a_suite_each(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["verify", "models", "--checks", "bytes", "-q", "--report", "r.xml"]) == 3
    suites = ElementTree.parse("r.xml").getroot()
    assert [suite.get("id") for suite in suites] == ["0", "1", "2", "3"]
    assert [suite.get("name") for suite in suites][1] == "models/cut.pt"
    assert [suite.get("errors") for suite in suites] == ["0", "1", "0", "0"]
    assert main.run(["verify", "models", "--checks", "bytes", "-q", "--report", "r.json"]) == 3
    assert json.loads(Path("r.json").read_text())["counts"]["yes"] == 3
    assert main.run(["verify", "models", "--checks", "bytes", "-q", "--report", "r.html"]) == 3
    page = Path("r.html").read_text()
    assert "4 checkpoints: 3 yes, 1 error" in page
    assert "<code>models/cut.pt</code></td><td>truncated" in page
    assert "<dt>command</dt><dd>ptsave verify models --checks bytes -q --report r.html</dd>" in page


@pytest.mark.parametrize("flag", ["--record", "--against models/a.pt"])
def test_what_is_about_one_checkpoint(flag: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("net.toml").write_text('[model]\nclass = "torch.nn.Linear"\n')
    config = "" if "against" in flag else "-c net.toml"
    assert main.run(f"verify models/a.pt models/sharded {flag} {config}".split()) == 2
    assert f"{flag.split()[0]} is about one checkpoint" in capfd.readouterr().err
