"""open: a checkpoint of any format as a lazy mapping of tensors. Imports torch when a tensor is taken."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, KeysView, Mapping
from typing import TYPE_CHECKING, Any

from ptsave.core.address import Address, Location
from ptsave.core.finding import counted
from ptsave.core.names import escape, hint_for, html_table
from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.placeholders import placeholders, refuse
from ptsave.core.parts.select import left_out_of, select_model
from ptsave.core.record import Record
from ptsave.core.tree import as_state_dict
from ptsave.core.values.digest import recorded_digests
from ptsave.errors import UsageError, not_installed
from ptsave.formats import open_checkpoint
from ptsave.verbs.request import python_verb

if TYPE_CHECKING:
    import torch

    from ptsave.core.accounts import Extras


@python_verb
def open(path: str | os.PathLike[str] | Address) -> OpenCheckpoint:
    """Open whatever checkpoint `path` is, recognised by content: nothing in it runs, no tensor is read yet.

    >>> with ptsave.open("any.pt") as checkpoint:
    ...     weight = checkpoint["fc1.weight"]

    Raises: MissingFileError, UnknownFormatError, CorruptError, LimitError.
    """
    return OpenCheckpoint(path)


class OpenCheckpoint(Mapping[str, "torch.Tensor"]):
    """The tensors of a checkpoint by name, each read when it is asked for; a context manager.

    Tensors in nested data are named by their path: `model_state_dict.fc1.weight`. May be used from several
    threads. The file stays open, so what is read is what was opened, even when the path is saved over.
    """

    def __init__(self, path: str | os.PathLike[str] | Address) -> None:
        self._checkpoint = open_checkpoint(path)
        self._is_closed = False

    @property
    def path(self) -> Location:
        """Where it was opened."""
        return self._checkpoint.path

    @property
    def format(self) -> str:
        """`pt`, `safetensors`, …, as `ptsave inspect` calls it."""
        return self._checkpoint.format

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Name → `dtype`, `shape`, `strides` (elements), `num_bytes` and so on; reads no tensor."""
        return self._checkpoint.tensors

    @property
    def data(self) -> Mapping[str, Any]:
        """Path → each leaf that is not a tensor: plain values, and inert stand-ins for objects."""
        return self._checkpoint.data

    @property
    def tree(self) -> Any:
        """The whole, as it nests, with an entry of `tensors` where a tensor is."""
        return self._checkpoint.root

    @property
    def metadata(self) -> Mapping[str, str]:
        """Text beside the tensors: safetensors' `__metadata__`, and what `--metadata` put into the record."""
        return self._checkpoint.texts

    @property
    def record(self) -> Record | None:
        """What ptsave knew of the model when it was saved."""
        return self._checkpoint.record

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor, read into memory of its own, on the CPU; checked against its checksum and digest.

        Raises: KeyError; CorruptError for damaged bytes; LossyError for what is not a plain tensor.
        """
        return self._read({name: self._entry(name)})[name]

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.tensors[name]
        except KeyError:
            if name in self.data:
                raise KeyError(f"{name!r} is not a tensor: see .data[{name!r}]") from None
            raise KeyError(f"no tensor {name!r}; {hint_for(str(name), self.tensors, 'tensors')}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def keys(self) -> KeysView[str]:
        """The names; a notebook shows them, as those of a dict."""
        return self.tensors.keys()

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def state_dict(
        self, select: str | None = None, *, lazy: bool = False, extras: Extras = "fail"
    ) -> dict[str, Any]:
        """The model's state dict, for `load_state_dict`: found under well-known keys, without the prefixes of
        wrappers; or the one under the dotted key `select`. Tied tensors share their memory. With `lazy` they
        lie in the file's own pages, read when they are first used and unchecked, as in `ptsave.load`.

        With `extras` "drop", weights that the checkpoint holds and no state dict has are left out.

        Raises: UsageError where there is none; CorruptError; LossyError, too, for tensors that only stand in
        for weights, and where weights would be left out.
        """
        from ptsave.core.accounts import settle_left_out
        from ptsave.models.weights.tensors import to_torch

        selection = select_model(self._checkpoint, select)
        settle_left_out(left_out_of(self._checkpoint, selection.where), extras, [], [], str(self.path))
        refuse(placeholders(self._checkpoint.root, dict(selection.tensors)), (), str(self.path))
        first = {entry.view: name for name, entry in reversed(list(selection.tensors.items()))}
        entries = {name: selection.tensors[name].named(selection.original[name]) for name in first.values()}
        read = self._map(entries) if lazy else self._read(entries)
        state = {name: read[first[entry.view]] for name, entry in selection.tensors.items()}
        state |= {name: to_torch(value, name) for name, value in selection.extra.items()}
        if selection.others:
            warnings.warn(selection.sentence(), stacklevel=2)
        return as_state_dict(state, selection.metadata)

    def _read(self, entries: Mapping[str, TensorEntry]) -> dict[str, torch.Tensor]:
        self._check_open()
        try:
            from ptsave.models.weights.tensors import read_tensor, read_tensors
        except ImportError as error:
            problem = not_installed(error)
            if problem is None:
                raise
            problem.hint = f"{problem.hint}; ptsave.convert(path, 'arrays.npz') needs NumPy alone"
            raise problem from error
        digests = recorded_digests(entries.values(), self.record)
        if len(entries) == 1:
            ((name, entry),) = entries.items()
            return {name: read_tensor(entry, digests.tensors.get(entry.name), digests.algorithm)}
        return dict(read_tensors(entries, digests=digests.tensors, algorithm=digests.algorithm))

    def _map(self, entries: Mapping[str, TensorEntry]) -> dict[str, torch.Tensor]:
        from ptsave.models.weights.mapped import map_tensors

        self._check_open()
        return map_tensors(entries)

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError("the checkpoint is closed", str(self.path), "read inside `with ptsave.open(…)`")

    def close(self) -> None:
        """Close the file; tensors that were read stay."""
        self._is_closed = True
        self._checkpoint.close()

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ipython_key_completions_(self) -> list[str]:
        """What a notebook completes `checkpoint["` with."""
        return list(self.tensors)

    def _repr_html_(self) -> str:
        rows = ((e.name, e.dtype.name, list(e.shape), f"{e.num_bytes:,}") for e in self.tensors.values())
        return html_table(repr(self)[1:-1], ("name", "dtype", "shape", "bytes"), rows, len(self))

    def __repr__(self) -> str:
        tensors = counted(len(self), "tensor", "tensors")
        return f"<{self.format} checkpoint {escape(str(self.path))!r}, {tensors}>"
