"""What a checkpoint says of the training that it interrupts: epoch, optimizers, schedulers, scaler, RNG."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ptsave.core.candidates import MODEL_KEYS, is_state_dict
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.select import select_model
from ptsave.core.training_kinds import STATE_KEYS
from ptsave.core.tree import is_scalar
from ptsave.errors import AmbiguousError, UsageError
from ptsave.verbs.training_parts import (
    MAX_SHOWN,
    OptimizerState,
    Part,
    ScalerState,
    SchedulerState,
    in_words,
    number,
    part_of,
)

MAX_DEPTH = 8
"""How deep a part of the training state may lie."""
MAX_VISITS = 300_000
"""How many nodes are looked at; a file that nests more says nothing that a person would read."""

PROGRESS_KEYS = frozenset(
    {
        *("epoch", "epochs", "current_epoch", "start_epoch", "epoch_idx", "global_step", "global_steps"),
        *("step", "steps", "iteration", "iterations", "iter", "it", "n_iter", "num_updates", "updates"),
        *("batch_idx", "global_samples", "samples_seen", "tokens_seen"),
    }
)
"""Keys of how far the training came."""
_METRIC = re.compile(
    r"(?i)(^|[._\-/])(best|loss|acc|acc1|acc5|top1|top5|accuracy|fitness|score|metrics?|f1|map|auc|iou|miou"
    r"|psnr|ssim|fid|bleu|rouge|wer|cer|ppl|perplexity|mse|mae|rmse)($|[._\-/])"
)
_SETTINGS = frozenset(
    {
        *("args", "arg", "cfg", "config", "hparams", "hyper_parameters", "hyperparameters", "opt", "options"),
        *("train_args", "model_args", "model_config", "datamodule_hyper_parameters", "loops"),
    }
)
"""Keys that hold what was wished for: `epochs` below them is no progress."""
_RNG_KEY = re.compile(r"(?i)(^|[_.])rng|random_?state|manual_seed|generator_state")


@dataclass(frozen=True)
class Training:
    """The state of a training."""

    progress: Mapping[str, int | float]
    """Path → how far it came: epoch, step, iteration."""
    metrics: Mapping[str, int | float]
    """Path → a loss, an accuracy, the best score."""
    optimizers: tuple[OptimizerState, ...] = ()
    schedulers: tuple[SchedulerState, ...] = ()
    scalers: tuple[ScalerState, ...] = ()
    rng: tuple[str, ...] = ()
    """Paths of the states of random number generators."""
    model_key: str | None = None
    """The path that the model's state dict lies under; None when there is none."""

    @property
    def sentences(self) -> list[str]:
        """The same for a person, a line each."""
        lines = [
            ", ".join(f"{path} {in_words(value)}" for path, value in numbers.items())
            for numbers in (self.progress, self.metrics)
            if numbers
        ]
        lines += [optimizer.sentence for optimizer in self.optimizers]
        lines += [scheduler.sentence for scheduler in self.schedulers]
        lines += [scaler.sentence for scaler in self.scalers]
        if self.rng:
            lines.append("states of random number generators: " + ", ".join(self.rng))
        if self.model_key:
            lines.append(f"the model's state dict is under {self.model_key!r}")
        return lines


def describe_training(checkpoint: Checkpoint) -> Training | None:
    """What `checkpoint` says of a training, or None when it says nothing (a model's weights alone).

    Reads single numbers (an optimizer's `step`, a metric that is a tensor), nothing else.
    """
    search = _Search()
    search.run(_nested(checkpoint))
    for key, text in checkpoint.metadata.items():
        if key in PROGRESS_KEYS and text.isascii() and text.isdecimal() and len(text) < 20:
            search.progress.setdefault(key, int(text))
    found = Training(
        dict(islice(search.progress.items(), MAX_SHOWN)),
        dict(islice(search.metrics.items(), MAX_SHOWN)),
        tuple(part for part in search.parts if isinstance(part, OptimizerState)),
        tuple(part for part in search.parts if isinstance(part, SchedulerState)),
        tuple(part for part in search.parts if isinstance(part, ScalerState)),
        tuple(search.rng[:MAX_SHOWN]),
    )
    if found == Training({}, {}):
        return None
    try:
        return replace(found, model_key=select_model(checkpoint).where)
    except (UsageError, AmbiguousError):
        return found


def optimizer_nodes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Path → state dict of each optimizer in `checkpoint`, as it nests."""
    search = _Search()
    search.run(_nested(checkpoint))
    pairs = zip(search.parts, search.nodes, strict=True)
    return {part.where: node for part, node in pairs if isinstance(part, OptimizerState)}


def state_dict_nodes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Path → state dict (or pickled module) of each model in `checkpoint`, the one to load first.

    Of a flat file, they are the tensors that are no optimizer's.
    """
    search, root = _Search(), _nested(checkpoint)
    search.run(root)
    found = dict(search.models)
    if root is not checkpoint.root:
        found = _flat_models({name: leaf for name, leaf in root.items() if isinstance(leaf, TensorEntry)})
    try:
        first = select_model(checkpoint).where
    except (UsageError, AmbiguousError):
        return found
    return {where: found[where] for where in sorted(found, key=lambda where: where != first)}


def _flat_models(tensors: Mapping[str, TensorEntry]) -> dict[str, Any]:
    """Those under each of the well-known keys, where all weights are under one; else all together."""
    models: dict[str, Any] = {}
    for name, entry in tensors.items():
        key, _, rest = name.partition(".")
        if rest and key in MODEL_KEYS:
            models.setdefault(key, {})[rest] = entry
        elif entry.dtype.is_float:
            return {"": tensors}
    return models


@dataclass
class _Search:
    """A walk over the containers of a tree, nearest the root first, each once."""

    progress: dict[str, int | float] = field(default_factory=dict)
    metrics: dict[str, int | float] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    """What each part was made of."""
    rng: list[str] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)
    """Path → what holds weights: a state dict, a module."""

    def run(self, root: Any) -> None:
        queue: deque[tuple[tuple[str, ...], Any]] = deque([((), root)] if _is_container(root) else ())
        seen = {id(root)}
        budget = MAX_VISITS
        while queue:
            path, node = queue.popleft()
            if (part := part_of(".".join(path), node)) is not None:
                self.parts.append(part)
                self.nodes.append(node)
                continue
            is_model = _is_model(node)
            if is_model or (isinstance(node, Opaque) and node.shared):
                self.models[".".join(path)] = node
            for key, child in _children(node):
                is_weight = is_model and isinstance(child, TensorEntry)
                if is_weight and child.dtype.name != "uint8":
                    continue
                budget -= 1
                if budget < 0:
                    return
                where = (*path, str(key))
                if _is_rng(where, child):
                    self.rng.append(".".join(where))
                elif not _is_container(child):
                    if not is_weight:
                        self._take_number(where, child)
                elif isinstance(child, Opaque) and child.shared:
                    self.models[".".join(where)] = child
                elif id(child) not in seen and len(path) < MAX_DEPTH:
                    seen.add(id(child))
                    queue.append((where, child))

    def _take_number(self, path: tuple[str, ...], leaf: Any) -> None:
        """Take `leaf` down where its key says that it counts or measures something."""
        above = {part.lower() for part in path[:-1]}
        if len(path) > 4 or above & _SETTINGS or (above and path[0] in MODEL_KEYS):
            return
        name = ".".join(path)
        is_progress = path[-1].lower() in PROGRESS_KEYS and len(path) <= 3
        if (is_progress or _METRIC.search(name)) and (value := number(leaf)) is not None:
            (self.progress if is_progress else self.metrics).setdefault(name, value)


def _is_model(node: Any) -> bool:
    """Whether `node` is a state dict with weights, whose scalar tensors (`step`) are buffers of a model."""
    return (
        isinstance(node, dict)
        and is_state_dict(node)
        and any(isinstance(value, TensorEntry) and value.shape for value in node.values())
    )


def _is_container(node: Any) -> bool:
    """Whether something may lie in `node`: not in a module, and not in a list of plain values."""
    if isinstance(node, (list, tuple)):
        return not all(map(is_scalar, node))
    if isinstance(node, Opaque):
        return not (node.shared or node.is_call_of_scalars)
    return isinstance(node, dict)


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, (list, tuple)):
        yield from enumerate(node)
    elif isinstance(node, Opaque):
        yield from node.children()


def _is_rng(path: tuple[str, ...], node: Any) -> bool:
    """Whether `node` is the state of a random number generator, by its shape or, failing that, its key.

    Source: torch.get_rng_state (5056 bytes), torch.cuda.get_rng_state (16 bytes), random.getstate (a
    version, 625 integers, a float or None), numpy.random.get_state (a generator's name, an array, …).
    """
    has_rng_key = _RNG_KEY.search(path[-1]) is not None
    if isinstance(node, TensorEntry):
        if node.dtype.name != "uint8" or len(node.shape) != 1:
            return False
        return node.shape == (5056,) or (node.shape == (16,) and "cuda" in path[-1].lower()) or has_rng_key
    if isinstance(node, dict):
        return "bit_generator" in node and "state" in node
    if not isinstance(node, (list, tuple)) or len(node) < 1:
        return False
    first, second = node[0], node[1] if len(node) > 1 else None
    if isinstance(first, TensorEntry):
        return all(_is_rng(path, item) for item in node)
    if isinstance(first, str):
        return first == "MT19937" and len(node) == 5
    return len(node) == 3 and isinstance(second, (list, tuple)) and len(second) == 625


def _nested(checkpoint: Checkpoint) -> Any:
    """The tree; of a flat one (safetensors), with the parts of optimizers put together again."""
    root = checkpoint.root
    if not isinstance(root, dict) or not all(isinstance(leaf, TensorEntry) for leaf in root.values()):
        return root
    extras = checkpoint.record.extras if checkpoint.record is not None else None
    if not isinstance(extras, dict):
        extras = {}
    if not extras and not any("state." in str(name) for name in root):
        return root
    tree: dict[str, Any] = {}
    for name, leaf in [*root.items(), *extras.items()]:
        head, _, key = str(name).rpartition(".")
        above, is_state, param = f".{head}".partition(".state.")
        if is_state and key in STATE_KEYS:
            _inside(_inside(_inside(tree, above[1:]), "state"), param)[key] = leaf
            continue
        above, is_group, group = f".{head}".partition(".param_groups.")
        if is_group:
            _inside(_inside(_inside(tree, above[1:]), "param_groups"), group)[key] = leaf
        elif isinstance(leaf, TensorEntry):
            tree[name] = leaf
        else:
            _inside(tree, head)[key] = leaf
    return tree


def _inside(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """The dict under `key`, made where it is missing (and dropped where a tensor is in its place)."""
    inner = tree.setdefault(key, {}) if key else tree
    return inner if isinstance(inner, dict) else {}
