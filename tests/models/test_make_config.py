"""`--make-config --class`: sizes that no default has are found among those of the file's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptsave.cli.main import run
from ptsave.config.toml import load_config
from ptsave.examples import TinyTransformer


class Mlp(nn.Module):
    """Sizes without defaults, and with others than the file's."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int = 3, num_layers: int = 1, rate: float = 0.5
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(num_layers))
        self.last = nn.Linear(hidden, outputs)


class Called(nn.Module):
    """Says what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.inner(x * mask) * scale


class Needy(nn.Module):
    """Takes what no number stands for."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*words: str) -> int:
    return run(["inspect", "w.pt", "--make-config", "m.toml", "--class", *words])


def test_sizes_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Mlp(17, 32, 5, 3).state_dict(), "w.pt")
    assert make(f"{__name__}.Mlp") == 0
    said = capsys.readouterr().err
    assert "Found by the sizes of the file's tensors: inputs, hidden" in said
    assert "do not fit" not in said
    assert "There are no [inputs]: add what forward() takes" in said
    args = load_config(Path("m.toml")).model.args
    assert args == {"inputs": 17, "hidden": 32, "outputs": 5, "num_layers": 3, "rate": 0.5}
    assert run(["load", "w.pt", "-c", "m.toml"]) == 0


def test_the_inputs_to_add_run_once_they_are_uncommented() -> None:
    torch.save(Called().state_dict(), "w.pt")
    assert make(f"{__name__}.Called") == 0
    lines = Path("m.toml").read_text().splitlines()
    example = [line for line in lines if line.startswith(("# [inputs.", "# shape", "# dtype"))]
    assert [line for line in example if "[" in line[:3]] == ["# [inputs.x]", "# [inputs.mask]"]
    Path("m.toml").write_text("\n".join([*lines, *(line.removeprefix("# ") for line in example)]))
    assert run(["load", "w.pt", "-c", "m.toml", "--outputs", "out.npz"]) == 0


@pytest.mark.slow
def test_a_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    model = TinyTransformer(vocab_size=30, d_model=24, num_heads=4, num_layers=3, max_length=9)
    torch.save({"state_dict": model.state_dict()}, "w.pt")
    assert make("ptsave.examples.TinyTransformer") == 0
    assert "do not fit" not in capsys.readouterr().err
    args = load_config(Path("m.toml")).model.args
    assert (args["vocab_size"], args["d_model"], args["num_layers"]) == (30, 24, 3)


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"other": torch.ones(3)}, "w.pt")
    assert make("ptsave.examples.SimpleNet") == 0
    assert "The arguments do not fit the checkpoint yet: " in capsys.readouterr().err
    assert "do not fit" in Path("m.toml").read_text()


def test_what_is_no_class_or_cannot_be_sought(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(3)}, "w.pt")
    for path, words in (
        (f"{__name__}.Needy", "the argument 'config' is a dict"),
        ("ptsave.examples.Nothing", "Nothing"),
        ("ptsave.__version__", "is not a class or a function"),
        ("net.py", "is a file's path"),
    ):
        assert make(path) == 2
        assert words in capsys.readouterr().err
    assert not Path("m.toml").exists()


def test_a_class_of_the_users_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("code").mkdir()
    (Path("code") / "own_net.py").write_text(
        "from torch import nn\n\n\ndef net(width: int):\n    return nn.Linear(width, 2)\n"
    )
    torch.save(nn.Linear(7, 2).state_dict(), "w.pt")
    assert make("own_net.net", "--app-dir", "code") == 0
    assert load_config(Path("m.toml")).model.args == {"width": 7}
