"""`--dtype` leaves no quantized weight without its scale: packed ones and their scales are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ptsave.cli.main import run

FP8 = torch.randn(4, 4).to(torch.float8_e4m3fn)
INTS = torch.arange(16, dtype=torch.int32).view(4, 4)
BYTES = INTS.to(torch.uint8)

PACKED: dict[str, dict[str, Tensor]] = {
    "DeepSeek": {"weight": FP8, "weight_scale_inv": torch.ones(1, 1)},
    "a scale for all": {"weight": FP8, "weight_scale": torch.tensor(2.0), "input_scale": torch.tensor(1.0)},
    "bitsandbytes, 4 bits": {
        "weight": BYTES,
        "weight.absmax": torch.ones(4),
        "weight.quant_map": torch.ones(16),
    },
    "bitsandbytes, 8 bits": {"weight": BYTES.to(torch.int8), "SCB": torch.ones(4)},
    "bitsandbytes, nested": {"weight": BYTES, "weight.nested_absmax": torch.ones(4)},
    "GPTQ": {"qweight": INTS, "qzeros": INTS, "scales": torch.ones(4).half(), "g_idx": INTS[0]},
    "compressed-tensors": {"weight_packed": INTS, "weight_scale": torch.ones(4)},
    "MX": {"weight": BYTES, "weight_scale": torch.ones(4).to(torch.float8_e8m0fnu)},
    "HQQ": {"W_q": BYTES, "scale": torch.ones(4), "zero": torch.ones(4)},
    "fake quantization": {"scale": torch.ones(1), "zero_point": torch.zeros(1, dtype=torch.int32)},
}


@pytest.mark.parametrize("prefix", ["", "model.layers.0.mlp."])
@pytest.mark.parametrize("case", PACKED)
def test_packed_weights_are_not_cast(
    case: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in PACKED[case].items()}
    torch.save({"norm.weight": torch.ones(4), **state}, tmp_path / "m.pt")
    target = tmp_path / "out.pt"
    assert run(["convert", str(tmp_path / "m.pt"), str(target), "--dtype", "bfloat16"]) == 4
    assert "one quantized weight" in capsys.readouterr().err
    assert not target.exists()


PLAIN: dict[str, dict[str, Tensor]] = {
    "8-bit floats alone": {"weight": FP8},
    "a norm's scale": {"scale": torch.ones(4), "embed.position_ids": torch.arange(4)},
    "a temperature": {"logit_scale": torch.tensor(2.0), "ids": torch.arange(4), "weight": torch.ones(4, 4)},
    "a batch norm": {"weight": torch.ones(4), "num_batches_tracked": torch.tensor(3)},
    "scales elsewhere": {"a.scale": torch.ones(4), "b.weight": BYTES},
    "a mask": {"scale": torch.ones(4), "mask": torch.ones(4, dtype=torch.bool)},
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_weights_are_cast(case: str, tmp_path: Path) -> None:
    torch.save(PLAIN[case], tmp_path / "m.pt")
    assert run(["convert", str(tmp_path / "m.pt"), str(tmp_path / "out.pt"), "--dtype", "bfloat16"]) == 0
    written = torch.load(tmp_path / "out.pt")
    assert all(
        written[name].dtype is torch.bfloat16 for name, t in PLAIN[case].items() if t.is_floating_point()
    )
