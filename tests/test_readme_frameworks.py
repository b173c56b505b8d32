"""The README's callbacks and loop for Lightning, Trainer and accelerate keep a run and go on with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ptsave

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # theirs; scripts of ours run with -W error elsewhere
]


class StoppedError(Exception):
    """Ends a training in the middle."""


@pytest.fixture
def blocks(root: Path) -> dict[str, str]:
    """Framework → its block of the README."""
    text = (root / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n### Inside Lightning, Trainer and accelerate\n")[2].partition("\n### ")[0]
    sources = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return dict(zip(("lightning", "transformers", "accelerate"), sources, strict=True))


def defined(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    return names


def needs(library: str) -> None:
    pytest.importorskip(library, reason=f"NOT RUN, nothing was proved: {library} is not installed")


def dataset() -> TensorDataset:
    numbers = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(32, 4, generator=numbers), torch.randn(32, 1, generator=numbers))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))


def check_same(one: nn.Module, other: nn.Module) -> None:
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_lightning(blocks: dict[str, str], tmp_path: Path) -> None:
    needs("lightning")
    names = defined(blocks["lightning"])
    lightning = names["lightning"]

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, stop_at: int | None) -> None:
            super().__init__()
            self.network = network()
            self.stop_at = stop_at

        def training_step(self, batch: Any, index: int) -> Any:
            if self.global_step == self.stop_at:
                raise StoppedError
            loss = (self.network(batch[0]) - batch[1]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    def fit(folder: Path, stop_at: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        module = Module(stop_at)
        off = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        keep = names["KeepEpochs"](folder)
        trainer = lightning.Trainer(
            max_epochs=5, accelerator="cpu", callbacks=[keep], default_root_dir=tmp_path, **off
        )
        trainer.fit(module, DataLoader(dataset(), batch_size=8, shuffle=True))
        return module

    alone = fit(tmp_path / "alone")
    with pytest.raises(StoppedError):
        fit(tmp_path / "run", stop_at=10)
    assert ptsave.Checkpoints(tmp_path / "run").latest() == tmp_path / "run" / "step-000000001.pt"
    check_same(alone, fit(tmp_path / "run"))


def test_transformers_trainer(blocks: dict[str, str], tmp_path: Path) -> None:
    needs("transformers")
    needs("accelerate")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    names = defined(blocks["transformers"])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()
            self.num_batches = 0

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            self.num_batches += 1
            outputs = self.network(x)
            return {"loss": (outputs - labels).square().mean(), "logits": outputs}

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 5:
                raise StoppedError

    def fit(*others: TrainerCallback) -> tuple[Model, Any]:
        model, keep = Model(), names["KeepSteps"](tmp_path / "run")
        arguments = TrainingArguments(
            str(tmp_path / "trainer"),
            max_steps=8,
            per_device_train_batch_size=8,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        data = [{"x": x, "labels": y} for x, y in dataset()]
        Trainer(model, arguments, train_dataset=data, callbacks=[keep, *others]).train()
        return model, keep

    with pytest.raises(StoppedError):
        fit(Stop())
    model, keep = fit()
    assert (model.num_batches, keep.state.state_dict()["scheduler_state_dict"]["last_epoch"]) == (3, 8)
    saved = torch.load(tmp_path / "run" / "step-000000007.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_accelerate(blocks: dict[str, str], tmp_path: Path) -> None:
    needs("accelerate")
    train = defined(blocks["accelerate"])["train"]

    def fit(folder: Path, stop_at: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        num_losses = 0

        def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            nonlocal num_losses
            num_losses += 1
            if num_losses == stop_at:
                raise StoppedError
            return (outputs - labels).square().mean()

        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        loader = ptsave.ResumableDataLoader(dataset(), batch_size=8, shuffle=True)
        train(folder, model, optimizer, schedule, loader, loss, 20)
        return model

    alone = fit(tmp_path / "alone")
    with pytest.raises(StoppedError):
        fit(tmp_path / "run", stop_at=11)
    check_same(alone, fit(tmp_path / "run"))
