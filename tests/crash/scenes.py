"""A command that writes a destination, and how to tell what a fault in its way has done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ptsave.formats import open_checkpoint
from ptsave.formats.writers import BY_NAME
from tests.crash.contents import ABSENT, HALF, by_others, by_ptsave, is_litter, of_state, tree
from tests.crash.trials import Trials

FORMATS = tuple(BY_NAME)
CONVERSIONS = [("convert", name, with_old) for name in FORMATS for with_old in (True, False)]
"""(command, format, whether there is an old file): every way of writing."""
SLOWER = [(command, name, True) for command in ("save", "record") for name in ("pt", "dcp")]
"""The same writers under commands that import torch; `record` is `verify --record`, which writes the
checkpoint that it has read again."""
TOML = """\
[model]
class = "ptsave.examples.SimpleNet"
[model.args]
input_size = 300
hidden_size = 301
output_size = 7
[inputs.x]
shape = [2, 300]
dtype = "float32"
"""


@dataclass(frozen=True)
class Sources:
    """What the commands read: the file of the new weights, that of the old ones, and a config."""

    new: Path
    old: Path
    config: Path


def make_sources(folder: Path) -> Sources:
    """Models with a tensor of several blocks, one of zeros, and many small ones."""
    paths = []
    for seed, name in enumerate(("new.pt", "old.pt")):
        generator = torch.Generator().manual_seed(seed)
        state = {
            "large": torch.randn(600, 300, generator=generator),
            "zeros": torch.zeros(300_000, dtype=torch.uint8),
            "half": torch.randn(130, 257, generator=generator).half(),
            "scalar": torch.tensor(seed),
            "empty": torch.zeros(0, 3),
        }
        state |= {f"small.{i}": torch.full((10 + i,), float(seed + i)) for i in range(5)}
        paths.append(folder / name)
        torch.save(state, paths[-1])
    config = folder / "config.toml"
    config.write_text(TOML)
    return Sources(*paths, config)


@dataclass
class Scene:
    """One command, one format, with an old file at the destination or without."""

    folder: Path
    """Holds nothing but the destination, between two trials."""
    destination: Path
    format: str
    arguments: Sequence[str]
    """Of the command that writes the new file."""
    old: dict[str, bytes] | None = field(repr=False)
    """What is at the destination before, bit for bit."""
    new: dict[str, bytes] = field(repr=False)
    """What is there after."""
    seen_old: str
    """The same as a reader sees it."""
    seen_new: str

    def reset(self) -> None:
        """Put the old file back, and nothing else."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.put_old()

    def put_old(self) -> None:
        """Write the old file."""
        if self.old is None:
            return
        for name, data in self.old.items():
            path = self.destination / name if name else self.destination
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def move_to(self, folder: Path) -> None:
        """Go on in `folder`, which lies on another file system."""
        self.folder, self.destination = folder, folder / self.destination.name
        self.put_old()

    def state(self) -> str:
        """`old`, `new`, or `half`: bit for bit for a file, by what readers see for a folder."""
        found = tree(self.destination)
        if found == self.new:
            return "new"
        if found == self.old:
            return "old"
        if self.destination.is_dir():
            seen = by_ptsave(self.destination)
            if seen == by_others(self.destination, self.format) and seen in (self.seen_old, self.seen_new):
                if self.seen_old == self.seen_new:
                    return "new" if has_behaviour(self.destination) else "old"
                return "new" if seen == self.seen_new else "old"
        return HALF

    def litter(self) -> list[str]:
        """The unfinished files around the destination and in it."""
        return [path.name for path in self.folder.rglob("*") if is_litter(path.name)]

    def strangers(self) -> list[str]:
        """What else lies beside the destination."""
        beside = set(os.listdir(self.folder)) - {self.destination.name}
        return sorted(name for name in beside if not is_litter(name))

    def problems_of_next_write(self, trials: Trials) -> list[str]:
        """What is wrong after the same command has run again: it must finish, and leave no litter."""
        needs_flag = "--overwrite" not in self.arguments and "--record" not in self.arguments
        again = trials.run([*self.arguments, "--overwrite"] if needs_flag else self.arguments, self.folder)
        problems = []
        if again.code != 0:
            problems.append(f"the next write ends with {again.code}: {again.stderr}")
        elif self.state() != "new":
            problems.append("the next write does not write the new checkpoint")
        elif len(tree(self.destination) or ()) != len(self.new):
            problems.append(f"the next write leaves files: {sorted(tree(self.destination) or ())}")
        if litter := self.litter() + self.strangers():
            problems.append(f"the next write leaves {litter}")
        return problems


def make_scene(folder: Path, case: tuple[str, str, bool], sources: Sources, trials: Trials) -> Scene:
    """Run the command undisturbed for what it must give, and check that against every reader."""
    command, format_name, with_old = case
    folder.mkdir()
    target = BY_NAME[format_name]
    name = f"model{target.suffixes[0]}" if target.suffixes else "model"
    destination = folder / name

    def arguments(*, old: bool) -> list[str]:
        if command == "record" and not old:
            return ["verify", "-c", str(sources.config), name, "--record", "--checks", "keys"]
        if command != "convert":
            given = [str(sources.config), name, "--seed", "1" if old else "0"]
        else:
            given = [str(sources.old if old else sources.new), name]
        if (command, format_name) == ("convert", "safetensors-sharded"):
            given += ["--shard-size", "300KB"]
        verb = "save" if command == "record" else command
        return [verb, *given, "--format", format_name, *(["--no-behaviour"] if command == "record" else [])]

    found = []
    for old in (True, False):
        ended = trials.run(arguments(old=old), folder)
        assert ended.code == 0, ended.stderr
        seen = by_ptsave(destination)
        assert seen == by_others(destination, format_name)
        assert seen not in (HALF, ABSENT)
        if command == "convert":
            assert seen == of_state(torch.load(sources.old if old else sources.new, weights_only=True))
        bits = tree(destination)
        assert bits is not None
        found.append((bits, seen))
        if command != "record":
            remove(destination)
    (old_bits, seen_old), (new_bits, seen_new) = found
    assert old_bits != new_bits
    scene = Scene(
        folder,
        destination,
        format_name,
        [*arguments(old=False), "--overwrite"] if with_old and command != "record" else arguments(old=False),
        old_bits if with_old else None,
        new_bits,
        seen_old if with_old else ABSENT,
        seen_new,
    )
    scene.reset()
    return scene


def has_behaviour(path: Path) -> bool:
    """Whether a checkpoint's record holds what its model does."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint.record is not None and checkpoint.record.behaviour is not None


def remove(path: Path) -> None:
    """A file, or a folder and all in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def name_of(case: tuple[str, str, bool]) -> str:
    """What a test calls a case."""
    command, format_name, with_old = case
    return f"{command}-{format_name}-{'over-old' if with_old else 'fresh'}"
