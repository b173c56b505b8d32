"""Architectures of many kinds, each as a config: our own, of ptsave's examples, of torch, of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A class, its keyword arguments, and the tables of `[inputs]`."""

    target: str
    inputs: str
    args: dict[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ("pt2", "onnx")

    def toml(self) -> str:
        """The config."""
        args = "".join(f"{key} = {_toml(value)}\n" for key, value in self.args.items())
        return f'[model]\nclass = "{self.target}"\n[model.args]\n{args}{self.inputs}'


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def floats(name: str, *sizes: int, seed: int = 0) -> str:
    """A table of floating-point numbers; the first size is open."""
    return f'[inputs.{name}]\nshape = ["batch=2", {", ".join(map(str, sizes))}]\nseed = {seed}\n'


def numbers(name: str, *sizes: int | str, high: int, low: int = 0) -> str:
    """A table of whole numbers."""
    shown = ", ".join(f'"{size}"' if isinstance(size, str) else str(size) for size in sizes)
    return f'[inputs.{name}]\nshape = ["batch=2", {shown}]\ndtype = "int64"\nlow = {low}\nhigh = {high}\n'


def _of_transformers(model: str, config: str, inputs: str, **args: Any) -> Architecture:
    made = {"_target_": f"transformers.{config}", **args}
    return Architecture(f"transformers.{model}", inputs, {"config": made})


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = numbers("input_ids", 6, high=40)
ARCHITECTURES = {
    "simple": Architecture(
        "ptsave.examples.SimpleNet", floats("x", 6), {"input_size": 6, "hidden_size": 5, "output_size": 2}
    ),
    "conv with batch norm": Architecture(
        "ptsave.examples.ConvNet",
        floats("image", 3, 16, 16),
        {"in_channels": 3, "width": 8, "num_classes": 10, "dropout": 0.5},
    ),
    "transformer": Architecture(
        "ptsave.examples.TinyTransformer",
        numbers("tokens", "tokens=16", high=64),
        {"vocab_size": 64, "d_model": 32, "num_heads": 4, "num_layers": 2, "max_length": 16, "dropout": 0.1},
    ),
    "lstm": Architecture("tests.export.models.Lstm", floats("x", 7, 6)),
    "mixture of experts": Architecture("tests.export.models.Experts", floats("x", 6)),
    "dict outputs": Architecture("tests.export.models.Dict", floats("x", 6)),
    "pixel unshuffle": Architecture("tests.export.models.Unshuffle", floats("x", 3, 8, 8)),
    "mask by keyword": Architecture(
        "tests.export.models.Masked",
        floats("x", 5, 8) + '[inputs.mask]\nshape = ["batch=2", 5]\ndtype = "bool"\n',
    ),
    "encoder and decoder": Architecture(
        "torch.nn.Transformer",
        floats("src", 5, 16) + floats("tgt", 3, 16, seed=1),
        {
            "d_model": 16,
            "nhead": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "dim_feedforward": 32,
            "batch_first": True,
        },
    ),
    "two inputs": Architecture("tests.export.models.TwoInputs", floats("x", 4) + floats("y", 4, seed=1)),
    "llama-like decoder": Architecture("tests.export.nets.Decoder", numbers("tokens", "tokens=5", high=32)),
    "u-net": Architecture("tests.export.nets.UNet", floats("x", 3, 8, 8)),
    "depthwise and squeeze": Architecture("tests.export.nets.Mobile", floats("x", 3, 9, 9)),
    "gru": Architecture("tests.export.nets.Gru", numbers("tokens", 5, high=20)),
    "dilated waves": Architecture("tests.export.nets.Wave", floats("x", 4, 10)),
    "mixer with weight norm": Architecture("tests.export.nets.Mixer", floats("x", 3, 8, 8)),
    "embedding bag": Architecture(
        "tests.export.nets.Bag",
        numbers("tokens", 4, high=30) + numbers("mask", 4, low=1, high=3),
        formats=("pt2",),  # onnxruntime 1.32 dies of the loop that torch makes of it
    ),
    "nested arguments": Architecture(
        "tests.export.nets.Nested",
        '[inputs.batch.dict]\nx = {shape = ["batch=2", 4]}\ny = {shape = ["batch=2", 4]}\n'
        '[inputs.pair]\nlist = [{shape = ["batch=2", 4]}, {shape = ["batch=2", 4]}]\n'
        "[inputs.scale]\nvalue = 0.5\n",
    ),
    "bert": _of_transformers("BertModel", "BertConfig", TOKENS, vocab_size=40, **SMALL),
    "llama": _of_transformers(
        "LlamaForCausalLM",
        "LlamaConfig",
        TOKENS,
        vocab_size=40,
        num_key_value_heads=1,
        use_cache=False,
        **SMALL,
    ),
    "gpt-2": _of_transformers(
        "GPT2LMHeadModel",
        "GPT2Config",
        TOKENS,
        vocab_size=40,
        n_embd=16,
        n_layer=1,
        n_head=2,
        use_cache=False,
    ),
    "t5": _of_transformers(
        "T5ForConditionalGeneration",
        "T5Config",
        TOKENS + numbers("decoder_input_ids", 3, high=40),
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        use_cache=False,
    ),
    "vit": _of_transformers(
        "ViTModel", "ViTConfig", floats("pixel_values", 3, 8, 8), image_size=8, patch_size=4, **SMALL
    ),
    "whisper": _of_transformers(
        "WhisperModel",
        "WhisperConfig",
        floats("input_features", 8, 12) + numbers("decoder_input_ids", 3, high=40),
        vocab_size=40,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=6,
        max_target_positions=8,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "resnet": _of_transformers(
        "ResNetModel",
        "ResNetConfig",
        floats("pixel_values", 3, 16, 16),
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
    ),
}
