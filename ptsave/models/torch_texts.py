"""What torch says in text alone: the only place that reads its messages. Tests check each against torch.

torch raises a RuntimeError for nearly everything, so that only the message tells one cause from another.
"""

from __future__ import annotations

_LOADING_FAILED = "Error(s) in loading state_dict"
_NOT_COPIED = ", an exception occurred : "
_OF_GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer")
_TIMED_OUT = ("imed out", "wait timeout after")


def loading_errors(error: RuntimeError) -> list[str] | None:
    """What strict `load_state_dict` has against a state dict, one text each; None where it is another error.

    Source: torch.nn.Module.load_state_dict.
    """
    text = str(error)
    return text.splitlines()[1:] if text.startswith(_LOADING_FAILED) else None


def is_about(text: str, name: str) -> bool:
    """Whether one of the `loading_errors` says that the tensor `name` has another shape.

    Source: torch.nn.Module._load_from_state_dict.
    """
    return f" {name}:" in text


def is_not_copied(text: str) -> bool:
    """Whether one of the `loading_errors` says that a value could not be copied, as none without memory can.

    Source: torch.nn.Module._load_from_state_dict.
    """
    return _NOT_COPIED in text


def is_of_gloo(error: BaseException) -> bool:
    """Whether a collective broke, or ended after its time.

    Source: the messages of third_party/gloo (transport/tcp), each of which names a file of gloo.
    """
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OF_GLOO)


def has_timed_out(error: BaseException) -> bool:
    """Whether a collective, or the store of torchrun, ended after its time.

    Source: third_party/gloo (transport/tcp/unbound_buffer.cc), torch/csrc/distributed/c10d/TCPStore.cpp.
    """
    return any(text in str(error) for text in _TIMED_OUT)
