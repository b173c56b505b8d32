"""What is said of the dotted names in a pickle."""

from __future__ import annotations

import pytest

from ptsave.core.global_names import kind_of, listed
from ptsave.core.nodes import GlobalUse


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "builtins.eval",
        "torch.hub.load",
        "random._os.system",
        "torch.serialization.os.system",
        "operator.attrgetter",
        "urllib.request.urlopen",
        "functools.partial",
    ],
)
def test_what_runs(name: str) -> None:
    assert kind_of(name) == "runs"


def test_a_librarys_class() -> None:
    for name in ("torch.nn.modules.linear.Linear", "argparse.Namespace", "numpy.core.multiarray.scalar"):
        assert kind_of(name) == "library"


def test_all_else_is_unknown() -> None:
    for name in (
        "mypkg.Model",
        "torch.nn.functional.relu",
        "os",
        "",
        ".",
        "torch",
        "Linear",
        "torchx.Linear",
    ):
        assert kind_of(name) == ("runs" if name == "os" else "unknown")


def test_what_runs_comes_first() -> None:
    uses = [GlobalUse(f"pkg.A{i}", 1, "called") for i in range(7)] + [GlobalUse("os.system")]
    assert listed(uses).startswith("os.system, pkg.A0")
    assert listed(uses).endswith(" and 3 more")
    assert len(listed([GlobalUse("x" * 4000)])) < 100
