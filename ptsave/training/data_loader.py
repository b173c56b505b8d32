"""A DataLoader that knows how far the training came, and goes on there with the very same batches.

A DataLoader with workers reads ahead, so neither its sampler nor its random numbers stand where the training
loop does. Here the order of an epoch and the randomness of a batch follow from the seed, the epoch and the
batch's place in it, and what counts is what the loop was given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ptsave.distributed.group import training_rank
from ptsave.errors import LossyError, UsageError
from ptsave.training.preemption import WorkerInit
from ptsave.training.seeded import MAX_SEED, Numbers, Seeded, key_of, mix

T_co = TypeVar("T_co", covariant=True)
CHUNK = 256
"""How many indices are drawn at once: the states of the generators are exchanged for each draw."""


class ResumableDataLoader(DataLoader[T_co]):
    """torch's DataLoader, with the same arguments, that can be resumed in the middle of an epoch.

    >>> loader = ResumableDataLoader(dataset, batch_size=32, shuffle=True, num_workers=4)
    >>> for epoch in range(loader.epoch, 10):
    ...     for batch in loader:
    ...         ...

    After `load_state_dict` the next loop over it begins at the batch that the saved loop would have been
    given next, and ends where the epoch ends. A loop that is left by `break` has ended its epoch. Iterating
    takes no number from torch's global generator. What is random in the dataset and comes from `random`,
    `numpy.random` or torch's default generator is the same for a batch whatever was read before it, and
    whatever the number of workers.
    """

    def __init__(
        self,
        dataset: Dataset[T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[list[Any]] | None = None,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        """As torch's: batches of `batch_size` items of `dataset`, in another order each epoch with `shuffle`,
        or in that of a sampler; `options` are all others that torch's has.

        `seed` decides the orders and the randomness of all epochs; without one it is `generator`'s, or
        the one of `torch.manual_seed`. A `sampler` or `batch_sampler` is asked anew each epoch, with random
        numbers that depend on the seed and the epoch alone, and `set_epoch` called where there is one.
        One that is an iterator, or holds one, goes on where the last loop left it, and so it is good for one
        loop, endless or not: the next raises UsageError. One that changes attributes of its own as it is
        drawn from is told of.

        Raises: UsageError for an IterableDataset, which has no order to go by.
        """
        if isinstance(dataset, IterableDataset):
            raise UsageError(
                "an IterableDataset has no order to go by",
                "ResumableDataLoader",
                "use torchdata's StatefulDataLoader, which TrainingState takes as data= too",
            )
        if shuffle and (sampler is not None or batch_sampler is not None):
            raise UsageError("a sampler decides the order: shuffle has no say", "ResumableDataLoader")
        if options.get("in_order") is False:
            raise UsageError("in_order=False hands out batches as chance has it", "ResumableDataLoader")
        generator = options.pop("generator", None)
        if seed is None:
            seed = generator.initial_seed() if generator is not None else torch.initial_seed()
        given = batch_sampler if batch_sampler is not None else sampler
        self._order = _Order(dataset, given, bool(shuffle), seed & MAX_SEED, batch_sampler is not None)
        self._is_restored = False
        self._num_restored = 0
        own: dict[str, Any] = {"generator": torch.Generator()}
        if batch_sampler is not None:
            own["batch_sampler"] = self._order
        else:
            own |= {"batch_size": batch_size, "sampler": self._order}
        super().__init__(dataset, **own, **options)

    @property
    def epoch(self) -> int:
        """The epoch that a loop over it is in, or is about to begin; the first is 0."""
        return self._order.epoch

    @property
    def position(self) -> int:
        """How many samples of the epoch (with a `batch_sampler`: batches) the loop was given."""
        return self._order.position

    def leave_finished_epoch(self) -> None:
        """Begin the next epoch if the loop was given all of this one.

        For trainers that mind the empty rest of an epoch. A loop of one's own is better without: after the
        rest, what it does at the end of an epoch is still to come.
        """
        order = self._order
        total = order.total if order.total is not None else order.length
        left = total - order.position
        if order.position and (left < (self.batch_size or 1) if self.drop_last else left == 0):
            order.set_epoch(order.epoch + 1)

    def __iter__(self) -> Any:
        order = self._order
        if order.is_open and not self._is_restored:  # the last loop was left before its end
            order.epoch, order.position = order.epoch + 1, 0
        order.check_begins_anew()
        self._is_restored = False
        order.is_open = True
        order.start = order.position
        # Workers begin with it; nothing depends on it but what a worker_init_fn makes of it.
        self.generator.manual_seed(mix(order.seed, order.epoch, 0))
        return _Loop(self, super().__iter__())

    def _get_iterator(self) -> Any:
        """torch's iterator, which reads through `Seeded`; `dataset` stays the user's own object."""
        return DataLoader._get_iterator(_Seen(self))  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, int]:
        """Where the loop is: plain integers, whose meaning does not depend on the number of workers."""
        order = self._order
        return {
            "epoch": order.epoch,
            "position": order.position,
            "seed": order.seed,
            "length": order.length,
            "shuffle": int(order.shuffle),
            "replicas": order.num_replicas,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, in the next loop.

        Where a DistributedSampler deals the samples to another number of ranks than there were, the position
        is the one that as many samples of the epoch lie before, rounded down: none is left out.

        Raises: LossyError when it is of other data, and nothing is changed then.
        """
        order = self._order
        values: dict[str, int] = {}
        for key in ("epoch", "position", "seed", "length", "shuffle", "replicas"):
            value = state.get(key)
            if type(value) is not int or not 0 <= value <= MAX_SEED:
                raise _misfit(f"{key} is {value!r:.40}, not a count", "it is the state of something else")
            values[key] = value
        if order.sampler is None and values["position"] > values["length"]:
            raise _misfit("is past the end of the data", "it is the state of something else")
        length, position = values["length"], values["position"]
        if (then := values["replicas"]) != (now := order.num_replicas):
            if abs(length * then - order.length * now) < max(then, now):  # but for what evens out the shares
                length = order.length
            position = min(position * then // now, length)
        for key, was, own in (
            ("length", length, order.length),
            ("shuffle", values["shuffle"], order.shuffle),
        ):
            if was != int(own):
                raise _misfit(
                    f"the {key} of the data is {int(own)} here and was {was}: the order is another",
                    "resume with the data that was saved, or leave data= out",
                )
        order.seed, order.epoch, order.position = values["seed"], values["epoch"], position
        order.total = None
        self._is_restored = True
        self._num_restored += 1


def _misfit(what: str, hint: str) -> LossyError:
    return LossyError(what, "ResumableDataLoader", hint)


class _Loop(Iterator[Any]):
    """torch's iterator over the batches, each of which is counted when it is handed out."""

    def __init__(self, loader: ResumableDataLoader[Any], batches: Any) -> None:
        self._loader = loader
        self._batches = batches
        self._num_restored = loader._num_restored
        self._epoch, self._position = loader._order.epoch, loader._order.start
        self._has_ended = False

    def __len__(self) -> int:
        return len(self._batches)

    def __next__(self) -> Any:
        if self._loader._num_restored != self._num_restored:
            raise UsageError(
                "the loader was restored after this loop over it began",
                "ResumableDataLoader",
                "resume first, then call iter() or begin the loop",
            )
        order, before = self._loader._order, self._num_received
        try:
            batch = next(self._batches)
        except StopIteration:
            if not self._has_ended:
                self._has_ended, order.is_open = True, False
                order.epoch, order.position, order.total = self._epoch + 1, 0, None
            raise
        except Exception:
            if self._num_received != before or before is None:
                self._count()  # a sample raised: the next batch comes after it, as with torch's own
            raise
        self._count()
        return batch

    @property
    def _num_received(self) -> int | None:
        """How many batches workers have answered, with values or with an error; None without workers."""
        return getattr(self._batches, "_rcvd_idx", None)

    def _count(self) -> None:
        order = self._loader._order
        self._position += self._loader.batch_size or 1
        if order.total is not None:
            self._position = min(self._position, order.total)
        order.epoch, order.position = self._epoch, self._position


class _Seen:
    """A loader as torch's iterators see it: with a dataset that seeds, and workers that show the user's."""

    def __init__(self, loader: ResumableDataLoader[Any]) -> None:
        self._loader = loader
        self.dataset = Seeded(loader.dataset)
        self.worker_init_fn = WorkerInit(_WorkerInit(loader.worker_init_fn))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _WorkerInit:
    """What a worker does first."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __call__(self, worker: int) -> None:
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, Seeded):
            object.__setattr__(info, "dataset", info.dataset.dataset)  # torch lets no one assign to it
        if self._own is not None:
            self._own(worker)


class _Order:
    """The sampler: the order of an epoch from `start` on, of samples or of batches, drawn as it is needed."""

    def __init__(
        self, dataset: Any, sampler: Iterable[Any] | None, shuffle: bool, seed: int, by_batch: bool
    ) -> None:
        self.sampler = sampler
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self.start = 0
        """Of the loop that is about to begin."""
        self.is_open = False
        """Whether a loop over the epoch began, and did not end."""
        self.total: int | None = None
        """How many there are in the epoch, once its end was seen: a sampler's length may say less."""
        self._dataset = dataset
        self._by_batch = by_batch
        self._changed: list[str] = []
        """Attributes of the sampler that are others than before it was drawn from."""
        self._has_told = False

    @property
    def num_replicas(self) -> int:
        """To how many ranks the sampler deals out the samples; 1 where it is none that does."""
        return int(getattr(self.sampler, "num_replicas", 1))

    @property
    def length(self) -> int:
        """What the sampler says that it has; 0 where it does not say."""
        try:
            return len(self)
        except (TypeError, NotImplementedError):
            return 0

    def set_epoch(self, epoch: int) -> None:
        """Begin that epoch, unless it is the one that it is in: what trainers call before each."""
        if epoch != self.epoch:
            self.epoch, self.position, self.start, self.is_open = epoch, 0, 0, False
            self.total = None

    def check_begins_anew(self) -> None:
        """See that the sampler draws the order of an epoch whatever loops there were before.

        Raises: UsageError where it goes on from the one before: that cannot be done again by a resume.
        """
        if not self.epoch:
            return
        for one in self._samplers():
            held = [one, *getattr(one, "__dict__", {}).values()]
            if any(isinstance(value, Iterator) for value in held):
                what = f"{type(one).__name__} goes on where the last loop left it, and no resume could do so"
                raise UsageError(
                    what,
                    "ResumableDataLoader",
                    "keep to one loop over it, or let iter() begin the order anew",
                )
        if self._changed and not self._has_told:
            self._has_told = True
            warnings.warn(
                f"the sampler changes its {', '.join(self._changed)} as it is drawn from: where the order of "
                "the next loop depends on that, it is another after a resume",
                stacklevel=3,
            )

    def _samplers(self) -> list[Any]:
        """The user's sampler, and the one in it where it makes batches."""
        inner = getattr(self.sampler, "sampler", None)
        return [one for one in (self.sampler, inner) if one is not None]

    def _numbers_of_samplers(self) -> dict[str, Any]:
        """What of the samplers counts: their attributes that are numbers, but for those that we set."""
        return {
            name: value
            for one in self._samplers()
            for name, value in getattr(one, "__dict__", {}).items()
            if isinstance(value, (int, float)) and not (name == "epoch" and hasattr(one, "set_epoch"))
        }

    def __len__(self) -> int:
        return len(self._dataset if self.sampler is None else self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        seed, epoch, position = mix(self.seed, self.epoch, training_rank()), self.epoch, self.start
        for indices, is_last in self._drawn(position):
            if is_last and self.epoch == epoch:
                self.total = position + len(indices)
            for index in indices:
                yield (
                    [key_of(i, position, seed) for i in index]
                    if self._by_batch
                    else key_of(index, position, seed)
                )
                position += 1

    def _drawn(self, start: int) -> Iterator[tuple[list[Any], bool]]:
        """The epoch from `start` on, some at a time, and whether they are its last.

        They are the same for the same seed and epoch, on every rank.
        """
        seed = mix(self.seed, self.epoch, 0)
        if self.sampler is not None:
            yield from self._of_sampler(start, seed)
            return
        length = len(self._dataset)
        order = (
            torch.randperm(length, generator=torch.Generator().manual_seed(seed)) if self.shuffle else None
        )
        for first in range(start, length, CHUNK):
            end = min(first + CHUNK, length)
            yield list(range(first, end)) if order is None else order[first:end].tolist(), end == length

    def _of_sampler(self, start: int, seed: int) -> Iterator[tuple[list[Any], bool]]:
        """What the user's sampler draws, with random numbers that are its own and nobody else's."""
        if callable(set_epoch := getattr(self.sampler, "set_epoch", None)):
            set_epoch(self.epoch)
        for one in self._samplers():
            if isinstance(own := getattr(one, "generator", None), torch.Generator):
                own.manual_seed(seed)
            if one is not self.sampler and callable(set_epoch := getattr(one, "set_epoch", None)):
                set_epoch(self.epoch)
        before = self._numbers_of_samplers()
        numbers = Numbers(seed)
        with numbers.drawn():
            drawn = islice(iter(self.sampler), start, None)  # type: ignore[arg-type]
            ahead = list(islice(drawn, 1))
        while ahead:
            with numbers.drawn():  # one more than is given, so that the last are known to be
                ahead += islice(drawn, CHUNK)
            now = self._numbers_of_samplers()
            self._changed = [name for name in now if now[name] != before.get(name)]
            given, ahead = (ahead[:-1], ahead[-1:]) if len(ahead) > CHUNK else (ahead, [])
            yield given, not ahead
