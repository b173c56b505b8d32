"""ptsave keeps PyTorch models: save, load, inspect, convert, verify; and trainings while they run.

>>> ptsave.save("model.safetensors", model)
>>> model = ptsave.load("model.safetensors", model)
>>> checkpoint = ptsave.open("any.pt")

`import ptsave` imports nothing, neither torch nor numpy: each name below is imported when it is first used.
With `python -m ptsave` the current folder is where Python looks first, until `__main__` has put an end to it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ptsave.errors import PtsaveError as PtsaveError
    from ptsave.torch_layer.api import load as load
    from ptsave.torch_layer.api import save as save
    from ptsave.torch_layer.checkpoints import Checkpoints as Checkpoints
    from ptsave.torch_layer.data_loader import ResumableDataLoader as ResumableDataLoader
    from ptsave.torch_layer.opened import open as open
    from ptsave.torch_layer.training_files import read_training as read_training
    from ptsave.torch_layer.training_state import TrainingState as TrainingState

__version__ = "0.1.0"

_HOMES = {
    "Checkpoints": "ptsave.torch_layer.checkpoints",
    "PtsaveError": "ptsave.errors",
    "ResumableDataLoader": "ptsave.torch_layer.data_loader",
    "load": "ptsave.torch_layer.api",
    "open": "ptsave.torch_layer.opened",
    "read_training": "ptsave.torch_layer.training_files",
    "save": "ptsave.torch_layer.api",
    "TrainingState": "ptsave.torch_layer.training_state",
}
"""Public name → the module that it is imported from when it is first used."""

__all__ = [
    "Checkpoints",
    "PtsaveError",
    "ResumableDataLoader",
    "TrainingState",
    "__version__",
    "load",
    "open",
    "read_training",
    "save",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        return import_module("ptsave.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'ptsave' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "errors", *(name for name in globals() if name.startswith("__"))})
