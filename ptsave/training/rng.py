"""The states of the random number generators, as plain data and tensors that `weights_only` loads.

`python` is `random.getstate()`, `numpy` is `np.random.get_state()` with its array as a list, `torch` is
`torch.get_rng_state()`, `cuda` is `torch.cuda.get_rng_state_all()`, `mps` is `torch.mps.get_rng_state()`:
each goes back through the `set` function beside it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ptsave.errors import LossyError


def capture() -> dict[str, Any]:
    """The states of now. A device whose generator was never used has none."""
    name, words, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), [int(word) for word in words], *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def check(states: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`states` as the generators take them, and in words what of them cannot be given back here.

    Raises: LossyError for what is not the state of its generator.
    """
    ready: dict[str, Any] = {}
    notes = []
    for name, value in states.items():
        try:
            if name == "python":
                ready[name] = python_state(value)
            elif name == "numpy":
                ready[name] = numpy_state(value)
            elif name == "torch":
                ready[name] = _bytes(value)
                torch.Generator().set_state(ready[name])
            elif name == "cuda":
                found = [_bytes(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
                num_devices = torch.cuda.device_count()
                if len(found) != num_devices:
                    notes.append(
                        f"rng_state: has {len(found)} CUDA generators, there are {num_devices} devices"
                    )
                ready[name] = found[:num_devices]
            elif name == "mps" and torch.backends.mps.is_available():
                ready[name] = _bytes(value)
            else:
                notes.append(f"rng_state: no generator here for {name!r}")
        except (TypeError, ValueError, LookupError, RuntimeError, OverflowError) as error:
            raise LossyError(
                f"the state of the generator {name!r} is malformed: {error}",
                f"rng_state.{name}",
                "the file is damaged, or something else is under that key",
            ) from error
    notes += [
        f"rng_state: has no state of {name!r}" for name in ("python", "numpy", "torch") if name not in states
    ]
    return ready, notes


def restore(ready: Mapping[str, Any]) -> None:
    """Give the states that `check` passed back to the generators."""
    if "python" in ready:
        random.setstate(ready["python"])
    if "numpy" in ready:
        np.random.set_state(ready["numpy"])
    if "torch" in ready:
        torch.set_rng_state(ready["torch"])
    for device, state in enumerate(ready.get("cuda", ())):
        torch.cuda.set_rng_state(state, device)
    if "mps" in ready:
        torch.mps.set_rng_state(ready["mps"])


def python_state(value: Sequence[Any]) -> tuple[Any, ...]:
    """What `random.setstate` takes.

    Raises: TypeError, ValueError.
    """
    version, words, gauss = value
    state = (int(version), tuple(int(word) for word in words), gauss)
    random.Random().setstate(state)
    return state


def numpy_state(value: Any) -> tuple[Any, ...]:
    """What `np.random.set_state` takes, from either of its spellings.

    Raises: TypeError, ValueError, KeyError, OverflowError.
    """
    if isinstance(value, Mapping):  # get_state(legacy=False)
        inner = value["state"]
        value = (value["bit_generator"], inner["key"], inner["pos"], value["has_gauss"], value["gauss"])
    name, words, *rest = value
    words = np.asarray(
        words if not isinstance(words, torch.Tensor) else words.cpu().tolist(), dtype=np.uint32
    )
    state = (str(name), words, *rest)
    np.random.RandomState().set_state(state)
    return state


def _bytes(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.uint8:
        raise TypeError(f"a {type(value).__name__} where a tensor of bytes is expected")
    return value.cpu()
