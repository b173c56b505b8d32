"""ResumableDataLoader: what is left of an epoch is the same whenever it is read, and by however many."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

import ptsave
from ptsave.errors import LossyError, UsageError

State = dict[str, int]


class Noisy(Dataset[Any]):
    """Samples that draw from every generator."""

    classes = 7

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> torch.Tensor:
        numbers = [index, random.random(), np.random.rand(), torch.rand((), dtype=torch.float64).item()]
        return torch.tensor(numbers, dtype=torch.float64)


class Batched(Noisy):
    """A dataset that reads a batch at once."""

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [self[index] for index in indices]


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(9)


class HoldsOne:
    """A sampler that goes on, as mmengine's InfiniteSampler does."""

    def __init__(self) -> None:
        self.indices = iter(range(100))

    def __iter__(self) -> Iterator[int]:
        for index in self.indices:
            yield index % 23


class Counts:
    """A sampler that counts on from loop to loop."""

    num_drawn = 0

    def __iter__(self) -> Iterator[int]:
        for _ in range(8):
            self.num_drawn += 1
            yield self.num_drawn


class Restarts:
    """An endless sampler that begins anew, as detectron2's TrainingSampler does."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(23).tolist()


def loader(**options: Any) -> ptsave.ResumableDataLoader[Any]:
    given = {"dataset": Noisy(), "batch_size": 4, "shuffle": True, "seed": 3, **options}
    return ptsave.ResumableDataLoader(**given)


def take(source: ptsave.ResumableDataLoader[Any], number: int) -> list[torch.Tensor]:
    """The next batches, however many epochs they are."""
    batches: list[torch.Tensor] = []
    while len(batches) < number:
        for batch in source:
            batches.append(batch)
            if len(batches) == number:
                break
    return batches


def same(own: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(own) == len(other) and all(map(torch.equal, own, other))


@pytest.mark.parametrize("stop", [1, 5, 6, 7, 12])
@pytest.mark.parametrize("dataset", [Noisy(), Batched()], ids=["samples", "batches"])
def test_what_is_left_is_the_same(stop: int, dataset: Dataset[Any]) -> None:
    whole = take(loader(dataset=dataset), 16)
    first = loader(dataset=dataset)
    taken = take(first, stop)
    second = loader(dataset=dataset, seed=99)
    second.load_state_dict(first.state_dict())
    assert same(whole, taken + take(second, 16 - stop))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(2, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("is_persistent", [False, True])
def test_the_number_of_workers_changes_nothing(workers: tuple[int, int], is_persistent: bool) -> None:
    """They read ahead: their number of batches in flight is no part of the state."""
    options = [{"num_workers": n, "persistent_workers": is_persistent and n > 0} for n in workers]
    first = loader(**options[0])
    taken = take(first, 8)
    second = loader(**options[1])
    second.load_state_dict(first.state_dict())
    assert same(take(loader(), 16), taken + take(second, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"drop_last": True},
        {"batch_size": None},
        {"shuffle": None, "sampler": WeightedRandomSampler(torch.rand(23), 17)},
        {"shuffle": None, "sampler": RandomSampler(range(23), generator=torch.Generator())},
        {"shuffle": None, "sampler": torch.utils.data.DistributedSampler(Noisy(), 2, 1)},
        {"shuffle": None, "batch_size": 1, "batch_sampler": BatchSampler(RandomSampler(range(23)), 5, False)},
    ],
    ids=["in order", "drop last", "single", "weighted", "with generator", "distributed", "batch sampler"],
)
def test_other_orders(options: dict[str, Any]) -> None:
    whole = take(loader(**options), 13)
    torch.rand(5)
    first = loader(**options)
    taken = take(first, 6)
    second = loader(**options)
    second.load_state_dict(first.state_dict())
    assert same(whole, taken + take(second, 7))


def test_epochs_differ_and_hold_every_sample_once() -> None:
    source = loader()
    epochs = [torch.cat(list(source))[:, 0].tolist() for _ in range(3)]
    assert len(source) == 6
    assert source.epoch == 3
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_epoch_that_was_read_to_its_last_batch_ends_first() -> None:
    """What comes after the loop (a scheduler's step) is still to be done: it was saved inside the loop."""
    first = loader()
    saved = [first.state_dict() for _ in first][-1]
    assert saved["position"] == 23
    second = loader()
    second.load_state_dict(saved)
    assert second.epoch == 0
    assert list(second) == []
    assert second.epoch == 1
    assert same(take(second, 2), take(first, 2))


@pytest.mark.parametrize(("drop_last", "number"), [(False, 6), (True, 5)])
def test_a_finished_epoch_is_left_on_request(drop_last: bool, number: int) -> None:
    source = loader(drop_last=drop_last)
    source.leave_finished_epoch()
    for done in range(1, number + 1):
        batches = iter(source)
        for _ in range(done):
            next(batches)
        epoch = source.epoch
        source.leave_finished_epoch()
        assert source.epoch - epoch == (done == number)
        assert source.position == (0 if done == number else 4 * done)


def test_iterating_takes_no_number_of_the_global_generators() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    take(loader(), 8)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())


def test_the_seed_is_torchs_unless_one_is_named() -> None:
    torch.manual_seed(5)
    first = ptsave.ResumableDataLoader(Noisy(), 4, True)
    torch.rand(3)
    assert same(take(first, 3), take(loader(seed=5), 3))
    with_generator = ptsave.ResumableDataLoader(Noisy(), 4, True, generator=torch.Generator().manual_seed(5))
    assert same(take(loader(seed=5), 3), take(with_generator, 3))


def test_it_is_a_dataloader_of_the_dataset() -> None:
    source = loader()
    assert isinstance(source, DataLoader)
    assert source.batch_size == 4
    assert len(source.dataset) == 23  # type: ignore[arg-type]
    assert source.dataset.classes == 7  # type: ignore[attr-defined]
    assert source.dataset[3][0] == 3
    dataset = Noisy()
    assert loader(dataset=dataset).dataset is dataset
    with pytest.raises(AttributeError):
        _ = source.dataset.missing  # type: ignore[attr-defined]


class Settable(Dataset[Any]):
    """Samples that say what was set on the dataset."""

    offset = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index + self.offset


def set_offset(_: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert info is not None
    assert type(info.dataset) is Settable
    info.dataset.offset = 100


@pytest.mark.parametrize("context", [None, pytest.param("spawn", marks=pytest.mark.slow)])
def test_what_is_set_on_the_dataset_reaches_it(context: str | None) -> None:
    source = loader(dataset=Settable(), shuffle=False)
    source.dataset.offset = 10  # type: ignore[attr-defined]
    assert torch.cat(list(source)).tolist() == list(range(10, 18))
    options = {"num_workers": 1, "worker_init_fn": set_offset, "multiprocessing_context": context}
    workers = loader(dataset=Settable(), shuffle=False, **options)
    assert torch.cat(list(workers)).tolist() == list(range(100, 108))
    assert workers.worker_init_fn is set_offset


class Raises(Settable):
    def __getitem__(self, index: int) -> int:
        if index == 5:
            raise ValueError("a bad sample")
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_passed_over_as_torch_does(workers: int) -> None:
    def batches(source: Any) -> tuple[list[Any], list[int]]:
        found: list[Any] = []
        positions = []
        iterator = iter(source)
        while True:
            try:
                found.append(next(iterator).tolist())
            except ValueError:
                found.append("raised")
            except StopIteration:
                return found, positions
            positions.append(getattr(source, "position", 0))

    options = {"batch_size": 2, "num_workers": workers}
    own, positions = batches(loader(dataset=Raises(), shuffle=False, **options))
    assert own == [[0, 1], [2, 3], "raised", [6, 7]]
    assert own == batches(DataLoader(Raises(), **options))[0]
    assert positions == [2, 4, 6, 8]


class Infinite(torch.utils.data.Sampler[int]):
    """As detectron2's TrainingSampler: it has no length and no end."""

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(7)
        while True:
            yield from torch.randperm(23, generator=generator).tolist()


class Renewed(Infinite):
    """As mmengine's InfiniteSampler: no end, and the length of the data; draws from the global generators."""

    def __init__(self) -> None:
        self.indices = super().__iter__()

    def __len__(self) -> int:
        return 23

    def __iter__(self) -> Iterator[int]:
        for index in self.indices:
            yield (index + random.randrange(23) + int(torch.randint(23, ()))) % 23


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Infinite, Renewed])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_without_an_end(sampler: type[Infinite], workers: int) -> None:
    def make() -> ptsave.ResumableDataLoader[Any]:
        return loader(sampler=sampler(), shuffle=None, num_workers=workers)

    def some(iterator: Iterator[Any], number: int) -> list[torch.Tensor]:
        return [next(iterator) for _ in range(number)]

    whole = some(iter(make()), 36)
    source = make()
    started = iter(source)
    first = some(started, 20)
    assert (source.epoch, source.position) == (0, 80)
    source.leave_finished_epoch()
    resumed = make()
    resumed.load_state_dict(source.state_dict())
    random.random()
    assert same(whole, first + some(iter(resumed), 16))


class Counted(torch.utils.data.Sampler[int]):
    """How many indices were asked for."""

    def __init__(self) -> None:
        self.drawn = 0

    def __len__(self) -> int:
        return 200_000_000

    def __iter__(self) -> Iterator[int]:
        for index in range(len(self)):
            self.drawn += 1
            yield index % 23


class Large(Noisy):
    def __len__(self) -> int:
        return 200_000_000


def test_indices_are_drawn_as_they_are_needed() -> None:
    sampler = Counted()
    tracemalloc.start()
    try:
        take(loader(sampler=sampler, shuffle=None), 3)
        take(loader(dataset=Large(), shuffle=False), 3)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert 12 <= sampler.drawn < 1000


def test_a_sampler_has_random_numbers_of_its_own() -> None:
    """Whatever the training draws between two batches, and however many are drawn at once."""

    class Global(torch.utils.data.Sampler[int]):
        def __len__(self) -> int:
            return 700

        def __iter__(self) -> Iterator[int]:
            return (random.randrange(23) for _ in range(700))

    whole = take(loader(sampler=Global(), shuffle=None), 175)
    source = loader(sampler=Global(), shuffle=None)
    first = []
    for batch in source:
        first.append(batch)
        random.seed(1)
        if len(first) == 100:
            break
    resumed = loader(sampler=Global(), shuffle=None)
    resumed.load_state_dict(source.state_dict())
    assert same(whole, first + list(resumed))


def test_another_loader_made_of_its_parts_gives_the_samples() -> None:
    """As trainers do that put loaders together anew."""
    source = loader(dataset=Settable(), shuffle=False)
    again = DataLoader(source.dataset, batch_sampler=source.batch_sampler)
    assert torch.cat(list(again)).tolist() == list(range(8))


def test_a_loop_that_was_left_is_followed_by_the_next_epoch() -> None:
    source = loader()
    take(source, 2)
    assert (source.epoch, source.position) == (0, 8)
    assert len(list(source)) == 6
    assert source.epoch == 2


def test_a_loop_that_began_before_the_state_came_is_stopped() -> None:
    source = loader()
    batches = iter(source)
    next(batches)
    source.load_state_dict(loader().state_dict())
    with pytest.raises(UsageError, match="restored after this loop"):
        next(batches)


def test_trainers_that_set_the_epoch_say_nothing_new() -> None:
    source, plain = loader(), loader()
    for epoch in range(3):
        source.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        assert same(list(source), list(plain))
    taken = take(source, 2)
    other = loader()
    other.load_state_dict(source.state_dict())
    other.sampler.set_epoch(3)  # type: ignore[union-attr]
    rest = list(other)
    source.sampler.set_epoch(4)  # type: ignore[union-attr]
    assert source.epoch == 4
    assert same(taken + rest, list(plain))
    assert same(list(source), list(plain))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 24}, "the length of the data is 23 here and was 24"),
        ({"shuffle": 0}, "the shuffle of the data is 1 here and was 0"),
        ({"position": 24}, "past the end"),
        ({"position": -1}, "position is -1"),
        ({"epoch": None}, "epoch is None"),
        ({"seed": 2.0}, r"seed is 2\.0"),
        ({"epoch": True}, "epoch is True"),
    ],
)
def test_the_state_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    source = loader()
    before = source.state_dict()
    with pytest.raises(LossyError, match=message):
        source.load_state_dict(before | change)
    assert source.state_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": Endless(), "shuffle": None}, "no order to go by"),
        ({"sampler": [1, 2]}, "shuffle has no say"),
        ({"in_order": False, "num_workers": 1}, "as chance has it"),
    ],
)
def test_what_has_no_order_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loader(**options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torchdata's own
def test_torchdatas_loader_is_taken_as_well() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", exc_type=ImportError)

    def make() -> tuple[Any, ptsave.TrainingState]:
        source = stateful.StatefulDataLoader(Batched(), 4, shuffle=True)
        return source, ptsave.TrainingState(model=torch.nn.Linear(1, 1), data=source)

    first, training = make()
    batches = iter(first)
    next(batches)
    state = training.state_dict()
    second, other = make()
    other.load_state_dict(state)
    assert [batch[:, 0].tolist() for batch in second] == [batch[:, 0].tolist() for batch in batches]


@pytest.mark.slow
def test_workers_that_are_spawned() -> None:
    first = loader(num_workers=1, multiprocessing_context="spawn")
    assert same(take(first, 2), take(loader(), 2))


# --- samplers over several loops --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: iter(range(20)), HoldsOne], ids=["iterator", "holds one"])
def test_a_sampler_that_goes_on_is_good_for_one_loop(make: Callable[[], Any]) -> None:
    first = loader(shuffle=None, sampler=make())
    batches = list(islice(first, 3))
    second = loader(shuffle=None, sampler=make())
    second.load_state_dict(first.state_dict())
    whole = list(islice(loader(shuffle=None, sampler=make()), 5))
    rest = list(islice(second, 2))
    assert same([*batches, *rest], whole)
    for one in (first, second):
        with pytest.raises(UsageError, match="goes on where the last loop left it"):
            iter(one)


@pytest.mark.parametrize("stop", [2, 8, 13])
def test_an_endless_sampler_that_begins_anew_is_exact_in_every_loop(stop: int) -> None:
    def loops(source: ptsave.ResumableDataLoader[Any], number: int) -> list[torch.Tensor]:
        """The next batches, in loops of six."""
        batches: list[torch.Tensor] = []
        while len(batches) < number:
            for batch in source:
                batches.append(batch)
                if source.position == 24 or len(batches) == number:
                    break
        return batches

    whole = loops(loader(shuffle=None, sampler=Restarts()), 20)
    first = loader(shuffle=None, sampler=Restarts())
    taken = loops(first, stop)
    second = loader(shuffle=None, sampler=Restarts(), seed=99)
    second.load_state_dict(first.state_dict())
    assert second.epoch == (stop - 1) // 6
    assert same([*taken, next(iter(second))], whole[: stop + 1])


def test_a_sampler_that_counts_on_is_told_of() -> None:
    source = loader(shuffle=None, sampler=Counts())
    assert len(list(source)) == 2
    with pytest.warns(UserWarning, match="changes its num_drawn"):
        iter(source)
