"""`inspect --make-config`: the TOML that it writes loads the weights that it was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.cli.main import run
from ptsave.config.toml import load_config
from ptsave.errors import UnsafeError, UsageError
from ptsave.verbs.make_config import from_transformers
from tests.support import some

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def library() -> Any:
    """transformers, which takes seconds to import: the worker that runs these tests does so."""
    import transformers

    return transformers


MODELS = {
    "bert": lambda: library().BertModel(
        library().BertConfig(
            **SMALL, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
    ),
    "gpt2": lambda: library().GPT2LMHeadModel(
        library().GPT2Config(**SMALL, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    ),
    "t5": lambda: library().T5ForConditionalGeneration(
        library().T5Config(
            vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("place", some(["folder", "folder/model.safetensors"]))
def test_from_the_config_json_of_transformers(
    kind: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]()
    model.save_pretrained("folder")
    assert run(["inspect", place, "--make-config", "model.toml"]) == 0
    assert (
        f"wrote model.toml from config.json: transformers.{type(model).__name__}" in capsys.readouterr().err
    )
    assert run(["load", "folder", "-c", "model.toml", "--outputs", "out.safetensors", "--json"]) == 0
    loaded = json.loads(capsys.readouterr().out)
    assert loaded["missing"] == loaded["unexpected"] == loaded["mismatched"] == []
    spec = load_config(Path("model.toml"))
    assert spec.inputs is not None
    assert ("decoder_input_ids" in spec.inputs.named) == (kind == "t5")


def test_from_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "tiny_transformer.toml"
    assert run(["save", str(config), "net.pt"]) == 0
    assert run(["inspect", "net.pt", "--make-config", "model.toml", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["source"], made["class"]) == ("the record", "ptsave.examples.TinyTransformer")
    assert load_config(Path("model.toml")).model.args == load_config(config).model.args
    assert run(["verify", "net.pt", "-c", "model.toml", "--checks", "keys,behaviour"]) == 0


def test_an_older_config_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["save", str(ROOT / "configs" / "simple_net.toml"), "net.pt"]) == 0
    Path("model.toml").write_text("mine")
    assert run(["inspect", "net.pt", "--make-config", "model.toml"]) == 4
    assert Path("model.toml").read_text() == "mine"


def test_a_load_without_a_config_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(1)}, "w.pt")
    assert run(["load", "w.pt"]) == 2
    assert (
        "`ptsave inspect CHECKPOINT --make-config model.toml --class pkg.mod.Name` writes one"
        in capsys.readouterr().err
    )


def test_where_nothing_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(1)}, "w.pt")
    assert run(["inspect", "w.pt", "--make-config", "model.toml"]) == 2
    assert "hint: name it with --class PKG.MOD.NAME" in capsys.readouterr().err
    for flags in (["--tree"], ["--diff", "w.pt"], ["--stats"], ["--app-dir", "."]):
        assert run(["inspect", "w.pt", "--make-config", "model.toml", *flags]) == 2
    assert run(["inspect", "w.pt", "--class", "a.B"]) == 2
    assert not Path("model.toml").exists()


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"architectures": ["A"]}, UsageError),
        ({"model_type": "bert", "architectures": ["os.system"]}, UsageError),
        ({"model_type": "bert", "architectures": [["A"]]}, UsageError),
        ({"model_type": "bert", "auto_map": {"AutoModel": "modeling.Net"}}, UsageError),
        ({"model_type": "bert", "a": {"_target_": "os.system"}}, UnsafeError),
        ({"model_type": "bert", "a": [{"b": {"_import_": "os.system"}}]}, UnsafeError),
        ({"model_type": "bert", "_target_": "os.system"}, UnsafeError),
    ],
)
def test_a_config_json_names_no_code(config: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        from_transformers(config, "config.json")


def test_what_toml_has_no_word_for_is_said() -> None:
    config = {"model_type": "bert", "pruned": None, "deep": {"er": None}, "big": 2**70, "list": [1, None]}
    document, notes = from_transformers(config, "config.json")
    assert document["model"]["class"] == "transformers:AutoModel.from_config"
    assert document["model"]["args"]["config"] == {
        "_target_": "transformers:AutoConfig.for_model",
        "model_type": "bert",
        "deep": {},
    }
    said = " ".join(notes)
    assert all(name in said for name in ("pruned", "deep.er", "big", "list"))


def test_a_model_of_images_has_pixels() -> None:
    config = {"model_type": "vit", "architectures": ["ViTModel"], "image_size": 32, "num_channels": 1}
    document, _ = from_transformers(config, "config.json")
    assert document["inputs"] == {"pixel_values": {"shape": [1, 1, 32, 32]}}


def test_a_config_json_that_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(1)}, "w.pt")
    Path("config.json").write_text("{")
    assert run(["inspect", "w.pt", "--make-config", "model.toml"]) == 3
    assert "config.json is not JSON" in capsys.readouterr().err
