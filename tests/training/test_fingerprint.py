"""What differs has another fingerprint, and what is equal the same, wherever it lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptsave.training.fingerprint import MIXED_WORDS, item_of, mixed

BASE = torch.arange(40, dtype=torch.float32)
DIFFERENT: list[Any] = [
    *(BASE, BASE.reshape(8, 5), BASE.double(), BASE.int(), BASE + 0.5, -BASE, BASE.flip(0)),
    *(torch.zeros(2), -torch.zeros(2), torch.zeros(0), torch.zeros(0, 1), torch.zeros(2, device="meta")),
    *(torch.ones(2).to_sparse(), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)),
    *(None, 0, 0.0, -0.0, False, "", "0", b"", [], (), {}, [[]], [()], {"a": 1}, {"a": 1.0}, {"b": 1}),
    *([1, [2]], [[1], 2], [1, 2], (1, 2), {1: 2}, {"1": 2}, float("nan"), [BASE], {"a": BASE}, "\ud800"),
]


def test_what_differs_has_another() -> None:
    assert len({item_of(value, "").digest for value in DIFFERENT}) == len(DIFFERENT)


def test_what_is_equal_has_the_same() -> None:
    wide = torch.stack([BASE, BASE]).t()[:, 0]
    for value in (BASE.clone(), wide, torch.nn.Parameter(BASE), torch.cat([BASE, BASE])[40:]):
        assert item_of(value, "") == item_of(BASE, "")
    z = torch.randn(3, dtype=torch.complex64)
    assert item_of(z.conj(), "") == item_of(z.conj().resolve_conj(), "")
    assert item_of(BASE, "").num_bytes == 160
    assert item_of([BASE, {"a": BASE}], "").num_bytes == 320


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 8 * MIXED_WORDS + 13])
def test_what_a_device_mixes_sees_every_bit(size: int) -> None:
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    whole = mixed(data)
    assert mixed(torch.cat([torch.zeros(3, dtype=torch.uint8), data])[3:]) == whole
    assert mixed(torch.cat([data, torch.zeros(1, dtype=torch.uint8)])) != whole
    seen = {whole}
    places = {0, size // 2, size - 1} if size else set()
    for place in places:
        for bit in range(8):
            data[place] ^= 1 << bit
            seen.add(mixed(data))
            data[place] ^= 1 << bit
    assert len(seen) == 1 + 8 * len(places)


def test_what_a_device_mixes_goes_by_place() -> None:
    """Two signs that are turned, or two words that change places, do not make up for each other."""
    data = torch.randn(64, dtype=torch.float64)
    turned, swapped = data.clone(), data.clone()
    turned[[3, 9]] *= -1
    swapped[[3, 9]] = swapped[[9, 3]]
    assert len({mixed(one.view(torch.uint8)) for one in (data, turned, swapped)}) == 3
