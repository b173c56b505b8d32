"""OmegaConf containers in a pickle: their keys and values, without what OmegaConf keeps beside them.

Source: omegaconf/basecontainer.py (`__getstate__`, `_content`), omegaconf/nodes.py (`_val`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptsave.core.nodes import Opaque

CONTAINERS = ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig")


class ConfigContainer(Opaque):
    """A `DictConfig` or `ListConfig`; interpolations (`${model.dim}`) stay as they were written."""

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    @property
    def num_parts(self) -> int:
        return 1 + len(self.state["_content"])

    def children(self) -> Iterator[tuple[Any, Any]]:
        content = self.state["_content"]
        for key, node in content.items() if isinstance(content, dict) else enumerate(content):
            yield key, _value(node)


def is_container(name: str, state: Any) -> bool:
    """Whether an object of the class `name` with this state is a container that holds something.

    One that is None, missing or an interpolation as a whole has a word in place of its contents.
    """
    return name in CONTAINERS and isinstance(state, dict) and isinstance(state.get("_content"), (dict, list))


def _value(node: Any) -> Any:
    is_node = type(node) is Opaque and node.name.startswith("omegaconf.nodes.")
    if is_node and isinstance(node.state, dict) and "_val" in node.state:
        return node.state["_val"]
    return node
