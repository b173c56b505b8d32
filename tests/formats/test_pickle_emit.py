"""What is emitted is a pickle that every tool can follow."""

from __future__ import annotations

import io
import pickletools

from ptsave.formats.pickle_emit import Call, Emitter


def test_no_memo_index_is_given_out_twice() -> None:
    same = ("torch.strided",)
    root = [Call("torch", "Size", same), Call("torch", "Size", same), (1, 2), (3, 4)]
    pickle = Emitter(lambda emitter, tensor: None).pickle(root)
    listing = io.StringIO()
    pickletools.dis(pickle, listing)  # raises where an index is defined again
    assert listing.getvalue().count("BINPUT") == 6
