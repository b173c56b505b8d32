"""The smallest fault that `verify` finds in each kind of model of the tests, as a table in docs/behaviour.md.

    python scripts/smallest_faults.py            # rewrites the table
    python scripts/smallest_faults.py --print    # prints it

For each model a behaviour is recorded, and its weights are changed by x = 2**-k: all of the largest tensor by
that factor, its largest element by that part of its root mean square, and the last tensor by that factor.
A row has the smallest x that is a no when all else is as it was (same code and environment). There, every
change of an output at all is a warning, too. A tensor that such a change cannot be seen in (it is normalised,
all zeros, or not used) is passed over for the next; those that no change of either kind shows in are listed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import tomllib
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ptsave.config.input_tables import parse_inputs  # noqa: E402
from ptsave.config.model import ConfigPlace  # noqa: E402
from ptsave.core.behaviour import Behaviour  # noqa: E402
from ptsave.models.behaviour.observe import observe  # noqa: E402
from ptsave.models.behaviour.replay import Replay, replay  # noqa: E402
from ptsave.models.inputs import make_inputs  # noqa: E402
from ptsave.models.weights.lazy import settle  # noqa: E402
from tests.models.verify import zoo  # noqa: E402
from tests.models.verify.test_zoo import MODELS  # noqa: E402

PAGE = ROOT / "docs" / "behaviour.md"
START, END = "<!-- smallest faults -->\n", "<!-- end -->\n"
COARSEST, FINEST = -6, 26
"""Changes from 2**6 to 2**-26 are tried: float32 has 24 bits."""
NAMES = 3
"""How many names are listed in a cell."""
HEAD = (
    "| model | largest tensor × (1 + x) | one element by x of its RMS | last tensor × (1 + x) | unseen |",
    "|---|---|---|---|---|",
)
Change = Callable[[torch.Tensor, float], None]


def scale(tensor: torch.Tensor, size: float) -> None:
    """All elements."""
    tensor.mul_(1 + size)


def poke(tensor: torch.Tensor, size: float) -> None:
    """The largest element; of zeros, the first by `size` itself."""
    largest = torch.unravel_index(tensor.abs().argmax(), tensor.shape)
    tensor[largest] += size * (float(tensor.double().square().mean().sqrt()) or 1.0)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", dest="prints")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = "\n".join([*HEAD, *(_shown(row(name, text)) for name, text in MODELS.items())]) + "\n"
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
    spec = parse_inputs(tomllib.loads(text)["inputs"], ConfigPlace("zoo"), Path())
    arguments = make_inputs(spec, model)
    settle(model, arguments, seed=0)
    model.eval()
    recorded = Behaviour.from_json(observe(model, spec, "cpu").to_json(), "zoo")

    def replayed(tensor: torch.Tensor, change: Change, power: int) -> Replay:
        with changed(tensor, change, 2.0**-power):
            return replay(model, make_inputs(spec, model), recorded, "cpu")

    tensors = weights(model)
    found = {
        (name, change): replayed(tensor, change, COARSEST)
        for name, tensor in tensors.items()
        for change in (scale, poke)
    }
    by_size = sorted(tensors, key=lambda name: -tensors[name].numel())
    cells = []
    for names, change in ((by_size, scale), (by_size, poke), ([*tensors][::-1], scale)):
        chosen = next(name for name in names if not found[name, change].is_same)
        tensor = tensors[chosen]
        cells.append(smallest(lambda k, t=tensor, c=change: not replayed(t, c, k).is_same))  # type: ignore[misc]
    unseen = [name for name in tensors if found[name, scale].is_same and found[name, poke].is_same]
    silent = {name: why(found[name, poke]) for name in unseen}
    dtype = str(tensors[by_size[0]].dtype).removeprefix("torch.")
    return f"| {name} ({dtype}) | {' | '.join(cells)} | {listed(silent)} |"


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point tensors of the state dict that have arithmetic, each once."""
    named: dict[int, tuple[str, torch.Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if value.is_floating_point() and value.numel() and value.dtype.itemsize > 1:
            named.setdefault(value.data_ptr(), (name, value))
    return dict(named.values())


def why(found: Replay) -> str:
    """Why a change is no no."""
    if found.is_bitwise_equal and found.first_unequal is None:
        return "not used"
    if all(excess.is_within_noise for excess in found.excesses.values()):
        return "normalised"
    return "explained by rounding"


def listed(silent: Mapping[str, str]) -> str:
    """Names by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in silent.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    more = {reason: len(names) - NAMES for reason, names in reasons.items()}
    return "; ".join(
        f"{reason}: {', '.join(names[:NAMES])}" + (f" and {more[reason]} more" if more[reason] > 0 else "")
        for reason, names in reasons.items()
    )


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
    low, high = COARSEST, FINEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_found(middle) else (low, middle - 1)
    return f"{2.0**-low:.1e}"


if __name__ == "__main__":
    main()
