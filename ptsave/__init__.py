"""ptsave keeps PyTorch models: save, load, inspect, convert, verify; and trainings while they run.

>>> ptsave.save("model.safetensors", model)
>>> model = ptsave.load("model.safetensors", model)
>>> checkpoint = ptsave.open("any.pt")
>>> ptsave.inspect("any.pt").num_bytes
>>> ptsave.convert("any.pt", "model.safetensors", select="model")
>>> ptsave.verify("model.safetensors").raise_for_no()

`import ptsave` imports nothing, neither torch nor numpy: each name below is imported when it is first used.
With `python -m ptsave` the current folder is where Python looks first, until `__main__` has put an end to it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ptsave.api.files import convert as convert
    from ptsave.api.files import inspect as inspect
    from ptsave.api.files import verify as verify
    from ptsave.api.models import load as load
    from ptsave.api.models import save as save
    from ptsave.errors import PtsaveError as PtsaveError
    from ptsave.models.opened import open as open
    from ptsave.training.data_loader import ResumableDataLoader as ResumableDataLoader
    from ptsave.training.foreign import read_training as read_training
    from ptsave.training.runs.checkpoints import Checkpoints as Checkpoints
    from ptsave.training.state import TrainingState as TrainingState

__version__ = "0.1.0"

_HOMES = {
    "Checkpoints": "ptsave.training.runs.checkpoints",
    "PtsaveError": "ptsave.errors",
    "ResumableDataLoader": "ptsave.training.data_loader",
    "convert": "ptsave.api.files",
    "inspect": "ptsave.api.files",
    "load": "ptsave.api.models",
    "open": "ptsave.models.opened",
    "read_training": "ptsave.training.foreign",
    "save": "ptsave.api.models",
    "TrainingState": "ptsave.training.state",
    "verify": "ptsave.api.files",
}
"""Public name → the module that it is imported from when it is first used."""

__all__ = [
    "Checkpoints",
    "PtsaveError",
    "ResumableDataLoader",
    "TrainingState",
    "__version__",
    "convert",
    "inspect",
    "load",
    "open",
    "read_training",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        import ptsave.errors as errors

        return errors
    if name not in _HOMES:
        from sys import modules

        raise AttributeError(f"module 'ptsave' has no attribute {name!r}", name=name, obj=modules[__name__])
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ImportError as error:
        from ptsave.errors import not_installed

        raise not_installed(error) or error from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "errors", *(name for name in globals() if name.startswith("__"))})
