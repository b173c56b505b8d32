"""The callbacks of docs/training.md: a training of Lightning, transformers or accelerate goes on exactly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests import warm

COMMON = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")  # the frameworks' own
import ptsave, torch
from torch import nn

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        return {"x": torch.full((4,), i / 24) + 0.1 * torch.rand(4), "labels": torch.tensor(i % 2)}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.d, self.b = nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2)

    def forward(self, x, labels):
        logits = self.b(self.d(self.a(x).relu()))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

folder, kill_at, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(seed)

class Keeper(ptsave.Checkpoints):
    def save(self, state, *, step, **others):
        super().save(state, step=step, **others)
        if step == kill_at:
            self.wait()
            os.kill(os.getpid(), signal.SIGKILL)

model = Net()
keeper = Keeper(folder)
loader = ptsave.ResumableDataLoader(Data(), 4, shuffle=True, seed=1)
"""

LIGHTNING = """
import lightning.pytorch
{block}
class Module(lightning.pytorch.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = model

    def training_step(self, batch, i):
        return self.net(**batch)["loss"]

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

trainer = lightning.pytorch.Trainer(
    max_epochs=3,
    accelerator="cpu",
    callbacks=[KeepTraining(keeper, loader)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Module(), loader)
"""

TRANSFORMERS = """
import transformers
{block}
class Trainer(transformers.Trainer):
    def get_train_dataloader(self):
        return loader

arguments = transformers.TrainingArguments(
    folder, max_steps=18, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", seed=seed
)
Trainer(model, arguments, callbacks=[KeepTraining(keeper)]).train()
"""

ACCELERATE = """
import accelerate
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
{block}
"""

END = """
keeper.close()
torch.save(model.state_dict(), folder + ".end")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "script", "number"),
    [("lightning", LIGHTNING, 0), ("transformers", TRANSFORMERS, 1), ("accelerate", ACCELERATE, 2)],
)
def test_it_goes_on_exactly(
    library: str, script: str, number: int, root: Path, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    for name in (library, "accelerate"):
        pytest.importorskip(name, exc_type=ImportError)
    page = (root / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.partition("\n## In someone else's loop\n")[2].partition("\n## ")[0]
    block = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]
    program = COMMON + script.format(block=block) + END

    def run(name: str, kill_at: int, seed: int) -> int:
        done = warm.run(warm.python, "-c", program, name, kill_at, seed, cwd=tmp_path, env=clean_env)
        assert done.returncode in (0, -9), done.stderr
        return done.returncode

    assert run("whole", -1, 0) == 0
    assert run("killed", 5, 0) == -9  # the last step of an epoch
    assert run("killed", 9, 7) == -9
    assert run("killed", -1, 8) == 0
    whole, killed = (torch.load(tmp_path / f"{name}.end", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[key]) for key, value in whole.items())
