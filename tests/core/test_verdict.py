"""Messages that count, in words for one and for many, put together from several ranks."""

from __future__ import annotations

import copy

from ptsave.core.verdict import Counted


def test_one_and_many_are_added_up_across_processes() -> None:
    one = Counted(1, "tensor lies there", "tensors lie there")
    assert one == "1 tensor lies there"
    sent = copy.deepcopy(one)  # as pickled, without a pickle
    assert sent.plus(one) == "2 tensors lie there"
    assert Counted(0, "tensor", "tensors") == "0 tensors"
