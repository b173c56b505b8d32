"""Random numbers that follow from a place in the training: of a sampler, and of the samples of a batch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ptsave.models.seeding import turn

MAX_SEED = 2**63 - 1


class Key:
    """What a worker is asked for: an index, and of which epoch and batch it is."""

    index: Any
    position: int
    """In the epoch."""
    seed: int
    """Of the epoch."""


class _Number(int, Key):
    """An integer key that is its own index, for callers that do not know `Key`: trainers rebuild loaders."""


class _Text(str, Key):
    """A text key that is its own index, for callers that do not know `Key`."""


class _Other(Key):
    """Any other index."""


def key_of(index: Any, position: int, seed: int) -> Any:
    """The key that asks a worker for the sample at `index`."""
    kind = type(index)
    key: Any = _Number(index) if kind is int else _Text(index) if kind is str else _Other()
    key.index, key.position, key.seed = index, position, seed
    return key


class Numbers:
    """The random numbers of `random`, `numpy.random` and torch on the CPU, as if nobody else drew any."""

    def __init__(self, seed: int) -> None:
        with _seeded_here(seed):
            self._states = _states()

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """In the block, they are what is drawn."""
        with _put_aside():
            _set_states(self._states)
            yield
            self._states = _states()


class Seeded(Dataset[Any]):
    """A dataset whose random numbers, for each batch, follow from the batch's place in the epoch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        with _seeded(mix(key.seed, key.position, 1)):
            return self.dataset[key.index]

    def __getitems__(self, keys: list[Key]) -> Any:
        indices = [key.index for key in keys]
        with _seeded(mix(keys[0].seed, keys[0].position, 1) if keys else 0):
            fetch = getattr(self.dataset, "__getitems__", None)
            return fetch(indices) if callable(fetch) else [self.dataset[index] for index in indices]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed`; in the main process, which has its own, only meanwhile."""
    if get_worker_info() is not None:
        _seed(seed)
        yield
    else:
        with _seeded_here(seed):
            yield


@contextmanager
def _seeded_here(seed: int) -> Iterator[None]:
    """Random numbers from `seed` meanwhile, on the CPU."""
    with _put_aside():
        _seed(seed)
        yield


@contextmanager
def _put_aside() -> Iterator[None]:
    """The states of the process's generators are afterwards what they were."""
    with turn:
        states = _states()
        try:
            yield
        finally:
            _set_states(states)


def _states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_states(states: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the devices as well


def mix(*numbers: int) -> int:
    """One number of 63 bits from some, the same everywhere."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & MAX_SEED
