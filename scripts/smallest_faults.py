"""The smallest fault that `verify` finds in each kind of model of the tests, as a table in docs/behaviour.md.

    python scripts/smallest_faults.py            # rewrites the table
    python scripts/smallest_faults.py --print    # prints it

For each model a behaviour is recorded, and its weights are changed by x = 2**-k: all of the largest tensor
by that factor, its largest element by that part of its root mean square, and the last tensor by that factor.
A row has the smallest x that is a no when all else is as it was (same code and environment). There, every
change of an output at all is a warning, too.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tomllib
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ptsave.core.behaviour import Behaviour  # noqa: E402
from ptsave.input_specs import parse_inputs  # noqa: E402
from ptsave.specs import Place  # noqa: E402
from ptsave.torch_layer.inputs import make_inputs  # noqa: E402
from ptsave.torch_layer.lazy import settle  # noqa: E402
from ptsave.torch_layer.observe import observe  # noqa: E402
from ptsave.torch_layer.replay import replay  # noqa: E402
from tests.torch_layer import zoo  # noqa: E402
from tests.torch_layer.test_zoo import MODELS  # noqa: E402

PAGE = ROOT / "docs" / "behaviour.md"
START, END = "<!-- smallest faults -->\n", "<!-- end -->\n"
FINEST = 26
"""No change below 2**-26 is tried: float32 has 24 bits."""
Change = Callable[[torch.Tensor, float], None]


def scale(tensor: torch.Tensor, size: float) -> None:
    """All elements."""
    tensor.mul_(1 + size)


def poke(tensor: torch.Tensor, size: float) -> None:
    """The largest element."""
    flat = tensor.view(-1)
    flat[flat.abs().argmax()] += size * tensor.float().square().mean().sqrt().to(tensor.dtype)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", dest="prints")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "| model | largest tensor × (1 + x) | one element by x of its RMS | last tensor × (1 + x) |",
        "|---|---|---|---|",
        *(_shown(row(name, text)) for name, text in MODELS.items()),
    ]
    table = "\n".join(lines) + "\n"
    if arguments.prints:
        print(table)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(before + START + "\n" + table + "\n" + END + rest.partition(END)[2], encoding="utf-8")


def row(name: str, text: str) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    kind = getattr(zoo, name)
    model: nn.Module = kind().eval()
    spec = parse_inputs(tomllib.loads(text)["inputs"], Place("zoo"), Path())
    arguments = make_inputs(spec, model)
    settle(model, arguments, seed=0)
    model.eval()
    document = observe(model, spec, "cpu").to_json()
    recorded = Behaviour.from_json(document, "zoo")
    floats = [p for p in model.parameters() if p.is_floating_point() and p.numel() and p.dtype.itemsize > 1]
    if not floats:
        return f"| {name} | no weights | no weights | no weights |"
    largest = max(floats, key=lambda p: p.numel())
    dtype = str(largest.dtype).removeprefix("torch.")

    def is_found(tensor: torch.Tensor, change: Change, power: int) -> bool:
        with changed(tensor, change, 2.0**-power):
            found = replay(model, make_inputs(spec, model), recorded, "cpu")
        return not found.is_same

    cells = [
        smallest(lambda k, t=tensor, c=change: is_found(t, c, k))  # type: ignore[misc]
        for tensor, change in ((largest, scale), (largest, poke), (floats[-1], scale))
    ]
    return f"| {name} ({dtype}) | {' | '.join(cells)} |"


def _shown(line: str) -> str:
    print(line, file=sys.stderr, flush=True)
    return line


@contextmanager
def changed(tensor: torch.Tensor, change: Change, size: float) -> Iterator[None]:
    """The tensor with a change, which is taken back."""
    before = tensor.detach().clone()
    with torch.no_grad():
        change(tensor.data, size)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.data.copy_(before)


def smallest(is_found: Callable[[int], bool]) -> str:
    """The smallest size that is found, by bisection: larger faults are found where smaller ones are."""
    low, high = 0, FINEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_found(middle) else (low, middle - 1)
    return f"{2.0**-low:.1e}" if low else "none"


if __name__ == "__main__":
    main()
