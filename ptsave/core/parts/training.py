"""Finding the parts of a training in a tree: the one place that says what is the model, the step and so on.

`inspect` and `verify` look into files with it, `read_training` and TrainingState take what it finds.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.parts.candidates import MODEL_KEYS, Candidate, choose, is_average, is_state_dict
from ptsave.core.parts.kinds import STATE_KEYS
from ptsave.core.tree import are_scalars, dotted
from ptsave.core.values.numbers import has_values, scalar
from ptsave.errors import AmbiguousError, UnreadableError

MAX_DEPTH = 8
"""How deep a part of the training state may lie."""
MAX_VISITS = 300_000
"""How many nodes are looked at; a file that nests more says nothing that a person would read."""

ALIASES: dict[str, tuple[str, ...]] = {
    part: tuple(keys.split())
    for part, keys in {
        "optimizer": "optimizer_state_dict optimizer optimizer_states optimizers optim opt optimizer_state "
        "optim_state_dict opt_state_dict optimizers_state_dict",
        "scheduler": "scheduler_state_dict lr_scheduler_state_dict scheduler lr_scheduler lr_schedulers "
        "schedulers lr_sched scheduler_state lr_scheduler_state schedulers_state_dict param_schedulers",
        "scaler": "scaler_state_dict scaler grad_scaler amp_scaler grad_scaler_state_dict loss_scaler "
        "MixedPrecision MixedPrecisionPlugin NativeMixedPrecisionPlugin amp",
        "data": "data_state_dict sampler_state_dict dataloader_state_dict loader_state_dict dataloader "
        "train_dataloader data_loader",
    }.items()
}
"""Part → the keys that training code keeps it under, ours first.

Source: PyTorch's tutorial (`epoch`, `model_state_dict`, …); lightning.pytorch's checkpoint_connector.py
(`optimizer_states`, `lr_schedulers`, the precision plugin's class); timm, detectron2, fairseq, ultralytics.
"""
STEPS_DONE = "steps_done"
"""Our own key of how many steps were done; `step` is the number of the last one, counted from 0."""
STEP_KEYS = (
    *(STEPS_DONE, "step", "global_step", "iteration", "iter", "it", "n_iter", "num_updates", "global_steps"),
    *("iter_num", "num_steps", "steps", "iterations", "updates"),
)
"""Keys of the number of steps, the likeliest first."""
PROGRESS_KEYS = frozenset(
    {
        *("epoch", "epochs", "current_epoch", "start_epoch", "epoch_idx", "batch_idx", "global_samples"),
        *("samples_seen", "tokens_seen", *STEP_KEYS[1:]),
    }
)
"""Keys of how far the training came."""
_OF_DETECTRON2 = ("trainer", "_trainer", "iteration")
"""Where detectron2's trainer has its `iteration` a second time."""
RAW, AVERAGING = "current_model_state", "averaging_state"
"""Keys of a Lightning checkpoint whose `state_dict` is an average: the weights that are trained, and the rest
of the average. Source: lightning/pytorch/callbacks/weight_averaging.py (`on_save_checkpoint`)."""

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
"""Keys that hold what was wished for: `epochs` below them is not progress."""
_RNG_KEY = re.compile(r"(?i)(^|[_.])rng|random_?state|manual_seed|generator_state")
_FOLLOWS = re.compile(r"(?i)(^|[._-])(teacher|target|momentum)([._-]|$)")
"""Names of networks that may follow the one that is trained."""

Place = tuple[Any, ...]
"""The keys that lead to a part."""
Fields = Mapping[Any, Any]


@dataclass
class Parts:
    """What a training consists of, each by its place, nearest the root first."""

    optimizers: dict[Place, Any] = field(default_factory=dict)
    schedulers: dict[Place, Any] = field(default_factory=dict)
    scalers: dict[Place, Any] = field(default_factory=dict)
    models: dict[Place, Any] = field(default_factory=dict)
    """What holds weights: a state dict, a pickled module."""
    rng: list[Place] = field(default_factory=list)
    """States of random number generators."""
    progress: dict[Place, int | float] = field(default_factory=dict)
    """How far it came: epoch, step, iteration."""
    metrics: dict[Place, int | float] = field(default_factory=dict)
    """A loss, an accuracy, the best score."""

    @property
    def has_more_than_models(self) -> bool:
        found = (self.optimizers, self.schedulers, self.scalers, self.rng, self.progress, self.metrics)
        return any(found)

    def of(self, kind: str) -> dict[Place, Any]:
        """The optimizers, schedulers or scalers; nothing for any other part."""
        kinds = {"optimizer": self.optimizers, "scheduler": self.schedulers, "scaler": self.scalers}
        return kinds.get(kind, {})


def nested(root: Any, extras: Any) -> Any:
    """The tree `root`; of a flat one (safetensors), with the parts of optimizers put together again.

    `extras`: what the record has of the leaves that a flat file cannot hold.
    """
    if not isinstance(extras, dict):
        extras = {}
    if not isinstance(root, dict) or not all(
        isinstance(leaf, TensorEntry) or name in extras for name, leaf in root.items()
    ):
        return root
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


def find_parts(root: Any) -> Parts:
    """Every part of a training in the tree `root`, by what it looks like, whatever its key."""
    parts = Parts()
    _Search(parts).run(root)
    return parts


def find_model(root: Any, claimed: Collection[str] = ()) -> Candidate | None:
    """The weights that are trained: never an average of them, nor what lies under a key in `claimed`.

    A teacher or a target network is only taken where there is nothing that it may follow. None where there
    are none.

    Raises: AmbiguousError naming those that it may be.
    """
    if not isinstance(root, dict) or is_state_dict(root):
        found = choose(root, "")
        return found[0] if found is not None else None
    if RAW in root and AVERAGING in root:
        return Candidate(RAW, root[RAW], True)
    left = {key: node for key, node in root.items() if key not in claimed and not is_average(str(key))}
    leading = {key: node for key, node in left.items() if not _FOLLOWS.search(str(key))}
    found = choose(leading, "") or choose(left, "")
    return found[0] if found is not None and not is_average(found[0].where) else None


def find_part(root: Fields, parts: Parts, name: str, claimed: Collection[Place]) -> Place | None:
    """Where the optimizer, the scheduler, the scaler, the data or another part called `name` lies in `root`.

    Keys come first, but what looks like it wins over what only is called so. An object that was pickled
    whole is nothing that could be given back, and what lies at the `claimed` places is another's.

    Raises: AmbiguousError where there are several, and nothing says which is meant.
    """
    filled = [(key,) for key, node in root.items() if _is_filled(node) and not _is_claimed((key,), claimed)]
    if (own := (f"{name}_state_dict",)) in filled:
        return own
    plain = (place for place, node in parts.of(name).items() if place and isinstance(node, dict))
    like_it = [place for place in plain if not _is_claimed(place, claimed)]
    keys = [(key,) for key in ALIASES.get(name, _names(name)) if (key,) in filled]
    for chosen in (*([place for place in like_it if place[:1] == key] for key in keys), like_it):
        if (place := _all_of(root, chosen)) is not None:
            return place
    if like_it:
        raise AmbiguousError(
            f"there are {len(like_it)} of them: {', '.join(map(dotted, like_it[:6]))}",
            name,
            f"give each under its key: {name}={{{str(like_it[0][0])!r}: …}}",
        )
    if not keys and name not in ALIASES and is_average(name):
        keys = [place for place in filled if is_average(str(place[0]))]
        return keys[0] if len(keys) == 1 else None
    return keys[0] if keys else None


def _is_claimed(place: Place, claimed: Collection[Place]) -> bool:
    """Whether `place` is another part's, or lies in one, or has one in it."""
    return any(place[: len(other)] == other or other[: len(place)] == place for other in claimed)


def _names(name: str) -> tuple[str, ...]:
    """The keys of a part that is called `name`."""
    return (
        f"{name}_state_dict",
        name,
        f"{name}_state",
        f"state_dict_{name}",
        f"model_{name}",
        f"{name}_model",
    )


def _is_filled(node: Any) -> bool:
    return isinstance(node, (dict, list, tuple)) and len(node) > 0


def _all_of(root: Fields, places: list[Place]) -> Place | None:
    """The place of the lone one of `places`, or of the container that holds all of them and nothing else."""
    if len(places) == 1 and not isinstance(at(root, places[0][:-1]), (list, tuple)):
        return places[0]
    above = {place[:-1] for place in places}
    if len(above) != 1 or above == {()}:
        return None
    (place,) = above
    return place if len(at(root, place)) == len(places) else None


def at(root: Any, place: Place) -> Any:
    """What lies at `place`."""
    for key in place:
        root = root[key] if isinstance(root, (dict, list, tuple)) else dict(root.children())[key]
    return root


def steps_done(parts: Parts, of_optimizers: Collection[int] = ()) -> int | None:
    """How many steps of the optimizer the training has done; None where it does not say.

    `of_optimizers`: how many its optimizers have counted themselves. Where that is one more than the file's
    number, the number is the index of the last step. detectron2's `iteration` is one, too, which its trainer
    or the scheduler tells: maskrcnn-benchmark's files have the same keys, and the number of steps.

    Source: detectron2/engine/defaults.py ("the training iteration that just finished"), train_loop.py
    (`TrainerBase.state_dict`, `after_step` comes before the last increment), tools/plain_train_net.py;
    maskrcnn_benchmark/engine/trainer.py (`iteration = iteration + 1`).
    """
    counts = {place: n for place, n in parts.progress.items() if type(n) is int and n >= 0}
    order = {key: i for i, key in enumerate(STEP_KEYS)}
    found = [place for place in counts if place[-1] in order and len(place) == 1]
    found.sort(key=lambda place: order[place[-1]])
    found += [place for place in counts if place[-1] in order and len(place) > 1]
    if not found:
        return None
    place, count = found[0], counts[found[0]]
    if place == (STEPS_DONE,):
        return count
    of_schedulers = [fields_of(node).get("last_epoch") for node in parts.schedulers.values()]
    is_index = count + 1 in of_optimizers
    if place[-1] == "iteration":
        is_index |= counts.get(_OF_DETECTRON2) == count or any(
            type(n) is int and n == count + 1 for n in of_schedulers
        )
    return count + 1 if is_index else count


@dataclass
class _Search:
    """A walk over the containers of a tree, nearest the root first, each once."""

    parts: Parts

    def run(self, root: Any) -> None:
        queue: deque[tuple[Place, Any]] = deque([((), root)] if _is_container(root) else ())
        seen = {id(root)}
        budget = MAX_VISITS
        parts = self.parts
        while queue:
            path, node = queue.popleft()
            if (kind := _kind_of(node)) is not None:
                parts.of(kind)[path] = node
                continue
            is_model = _is_model(node)
            if is_model or (isinstance(node, Opaque) and node.shared):
                parts.models[path] = node
            for key, child in _children(node):
                is_weight = is_model and isinstance(child, TensorEntry)
                if is_weight and child.dtype.name != "uint8":
                    continue
                budget -= 1
                if budget < 0:
                    return
                where = (*path, key)
                if _is_rng(str(key), child):
                    parts.rng.append(where)
                elif not _is_container(child):
                    if not is_weight:
                        self._take_number(where, child)
                elif isinstance(child, Opaque) and child.shared:
                    parts.models[where] = child
                elif id(child) not in seen and len(path) < MAX_DEPTH:
                    seen.add(id(child))
                    queue.append((where, child))

    def _take_number(self, place: Place, leaf: Any) -> None:
        """Take `leaf` down where its key says that it counts or measures something."""
        if leaf is None or isinstance(leaf, (str, bytes)):
            return
        path = list(map(str, place))
        above = {part.lower() for part in path[:-1]}
        if len(path) > 4 or above & _SETTINGS or (above and path[0] in MODEL_KEYS):
            return
        if any(map(_RNG_KEY.search, above)):  # accelerate's `step` there counts batches, anew in each epoch
            return
        is_progress = path[-1].lower() in PROGRESS_KEYS or path[-1] == STEPS_DONE
        is_progress = is_progress and len(path) <= 3
        if (is_progress or _METRIC.search(".".join(path))) and (value := number(leaf)) is not None:
            (self.parts.progress if is_progress else self.parts.metrics)[place] = value


def _kind_of(node: Any) -> str | None:
    """Which part of a training `node`, a container, is as a whole."""
    fields = fields_of(node)
    if _is_optimizer(fields):
        return "optimizer"
    if {"_last_lr", "_schedulers", "base_lrs", "_step_count", "num_bad_epochs"} & fields.keys() and (
        "last_epoch" in fields or "_schedulers" in fields
    ):
        return "scheduler"
    return "scaler" if {"scale", "growth_factor", "backoff_factor"} <= fields.keys() else None


def has_param_groups(node: Any) -> bool:
    """Whether `node` is a dictionary with an optimizer's groups of parameters."""
    return isinstance(node, dict) and isinstance(node.get("param_groups"), (list, tuple, dict))


def _is_optimizer(fields: Fields) -> bool:
    if has_param_groups(fields):
        return True
    states = fields_of(fields.get("state"))
    return any(STATE_KEYS & set(map(str, fields_of(state))) for state in islice(states.values(), 4))


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
        return not are_scalars(node)
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


def _is_rng(key: str, node: Any) -> bool:
    """Whether `node` is the state of a random number generator, by its shape or, failing that, its key.

    Source: torch.get_rng_state (5056 bytes), torch.cuda.get_rng_state (16 bytes), random.getstate (a
    version, 625 integers, a float or None), numpy.random.get_state (a generator's name, an array, …).
    """
    has_rng_key = _RNG_KEY.search(key) is not None
    if isinstance(node, TensorEntry):
        if node.dtype.name != "uint8" or len(node.shape) != 1:
            return False
        return node.shape == (5056,) or (node.shape == (16,) and "cuda" in key.lower()) or has_rng_key
    if isinstance(node, dict):
        return "bit_generator" in node and "state" in node
    if not isinstance(node, (list, tuple)) or len(node) < 1:
        return False
    first, second = node[0], node[1] if len(node) > 1 else None
    if isinstance(first, TensorEntry):
        return all(isinstance(item, TensorEntry) and _is_rng(key, item) for item in node)
    if isinstance(first, str):
        return first == "MT19937" and len(node) == 5
    return len(node) == 3 and isinstance(second, (list, tuple)) and len(second) == 625


def fields_of(node: Any) -> Fields:
    """A dict, or what an Opaque object holds by name; empty for all else."""
    if isinstance(node, dict):
        return node
    if isinstance(node, Opaque) and not node.shared:
        return {key: value for key, value in node.children() if isinstance(key, str) or node.state is None}
    return {}


def number(value: Any) -> int | float | None:
    """`value` as a number: itself, a NumPy scalar, or the element of a tensor of one; None otherwise.

    Integers past 64 bits are no one's epoch, and too long to print.
    """
    if isinstance(value, Opaque) and value.name.startswith("numpy.") and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, TensorEntry) and value.num_elements == 1 and has_values(value):
        try:
            value = scalar(value)
        except UnreadableError:
            # To describe the rest is worth more; `verify --checks bytes` names what is damaged.
            return None
    if isinstance(value, bool) or (isinstance(value, int) and value.bit_length() > 64):
        return None
    return value if isinstance(value, (int, float)) else None
