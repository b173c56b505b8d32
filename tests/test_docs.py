"""README and docs are what the program prints, say how every command is used, and name only what is there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ptsave
from ptsave.config.input_tables import FORMS
from ptsave.config.model import MARKERS
from ptsave.config.toml import MESH_DIMENSIONS, PARALLEL_STYLES
from tests.support import Command

COMMANDS = ("save", "load", "inspect", "convert", "verify")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[Path, str]:
    """The text of README and docs, by path."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return {path: path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def readme(root: Path, pages: dict[Path, str]) -> str:
    return pages[root / "README.md"]


@pytest.mark.slow
def test_they_are_what_the_program_prints(root: Path, clean_env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"],
        cwd=root,
        env=clean_env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short_and_begins_with_what_a_newcomer_types(readme: str) -> None:
    lines = readme.splitlines()
    assert len(lines) <= 200
    screen = "\n".join(lines[:45])
    assert "pip install ptsave" in screen
    assert "ptsave inspect" in screen
    assert "FAIL" in screen


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_and_an_example(command: str, readme: str, root: Path) -> None:
    page = (root / "docs" / "commands" / f"{command}.md").read_text(encoding="utf-8")
    for text in (readme, page):
        assert re.search(rf"^\$ ptsave {command} ", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_stands_in_its_help_on_its_page(
    command: str, root: Path, ptsave_here: Command
) -> None:
    page = (root / "docs" / "commands" / f"{command}.md").read_text(encoding="utf-8")
    flags = set(re.findall(r"--[a-z][a-z-]+", ptsave_here(command, "--help").stdout)) - {"--help"}
    assert flags
    assert {flag for flag in flags if flag not in page} == set()


def test_every_flag_in_an_example_exists(pages: dict[Path, str], ptsave_here: Command) -> None:
    known = set()
    for command in ((), *((name,) for name in COMMANDS)):
        known |= set(re.findall(r"--[a-z][a-z-]+", ptsave_here(*command, "--help").stdout))
    used = set()
    for text in pages.values():
        for line in re.findall(rf"(?<![\w/'\"])ptsave (?:{'|'.join(COMMANDS)}) [^\n`]*", text):
            used |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line))
    assert used
    assert used - known == set()


def test_every_key_of_a_config_is_explained(root: Path) -> None:
    page = (root / "docs" / "config.md").read_text(encoding="utf-8")
    keys = {"class", "factory", "args", "rtol", "atol", "mesh", "wrap", "tensor", *MARKERS, *FORMS}
    keys |= {key for beside in FORMS.values() for key in beside} | {*MESH_DIMENSIONS, *PARALLEL_STYLES}
    assert {key for key in keys if not re.search(rf"\b{key}\b", page)} == set()


def test_every_path_that_they_name_exists(pages: dict[Path, str], root: Path) -> None:
    for page, text in pages.items():
        paths = set(re.findall(r"`((?:scripts|configs|benchmarks|docs|tests|ptsave)/[\w./-]*)`", text))
        assert {path for path in paths if not (root / path).exists()} == set(), page


def test_every_link_leads_somewhere(pages: dict[Path, str]) -> None:
    links = 0
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
            if target.startswith(("http:", "https:")):
                continue
            links += 1
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page}: {target}"
            if anchor:
                assert anchor in _anchors(path.read_text(encoding="utf-8")), f"{page}: {target}"
    assert links > 50


def _anchors(text: str) -> set[str]:
    """What headings can be linked to as."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached(pages: dict[Path, str], root: Path) -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page, text in pages.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not target.startswith("http")
    }
    begin = {root / "README.md", root / "docs" / "index.md"}
    assert set(pages) - linked - begin == set()


def test_every_block_of_python_compiles(pages: dict[Path, str]) -> None:
    blocks = [
        (page, block) for page in pages for block in re.findall(r"```python\n(.*?)```", pages[page], re.S)
    ]
    assert len(blocks) > 6
    for page, block in blocks:
        compile(block, str(page), "exec")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(root: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    """Every page is in it and in its navigation, and nothing is fetched from elsewhere when it is read."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=root, env=clean_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (root / "docs").rglob("*.md"):
        name = page.relative_to(root / "docs").with_suffix("")
        built = tmp_path / "site" / ("" if name.name == "index" else name) / "index.html"
        fetched = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\" >]*)", built.read_text())
        assert fetched == [], page
    reference = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in set(ptsave.__all__) - {"__version__"}:
        assert f'id="ptsave.{name}"' in reference, name
    for parameter in inspect.signature(ptsave.load).parameters:
        assert parameter in reference
    assert (tmp_path / "site" / "search" / "search_index.json").stat().st_size > 10_000
