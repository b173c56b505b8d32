"""Writing a program and its weights: checked under a temporary name, and only then renamed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from ptsave.core.address import Address, Location
from ptsave.errors import RefusedError
from ptsave.export.target import RecordOf, Target
from ptsave.formats.base import WriteOptions
from ptsave.storage import atomic
from ptsave.storage.opening import replacing_file
from ptsave.storage.temporary import remove_litter, temporary_files

DATA = ".data"
"""The suffix of the file of weights, after the program's name: `model.onnx.data`."""
COPY_BYTES = 8 * 1024 * 1024


def write_program(
    where: Location,
    target: Target,
    record: RecordOf | None,
    options: WriteOptions,
    check: Callable[[Path], None],
) -> None:
    """Write a program, have `check` look at what was written, and only then give it its name.

    Weights in a file of their own get an unused name, which nothing refers to before the program has its own.
    The old weights are removed after that.

    Raises: what writing and checking raise; the old files are there then.
    """
    if isinstance(where, Address):
        _send(where, target, record, options, check)
        return
    where = atomic.resolved(where)
    _remove_leftovers(where, target)
    old = _data_beside(where)
    has_old = where.exists()
    data = _fresh(where, old) if target.needs_data else None
    is_done = False
    try:
        made: list[Path] = []
        with atomic.replacing_file(
            where,
            0,
            overwrite=options.overwrite,
            sync=options.sync,
            before_rename=lambda: check(made[0]),
        ) as output:
            made.append(output.path)
            if data is None:
                target.write(output.path, record, None, "")
            else:
                with atomic.replacing_file(data, target.num_bytes, sync=options.sync) as weights:
                    target.write(output.path, record, weights.path, data.name)
            target.complete(output.path, record)
        is_done = True
    finally:
        if data is not None and not is_done:
            data.unlink(missing_ok=True)
    for path in old if has_old else ():
        path.unlink(missing_ok=True)


def _send(
    where: Address,
    target: Target,
    record: RecordOf | None,
    options: WriteOptions,
    check: Callable[[Path], None],
) -> None:
    """Write a program in a folder of this machine, and send it to `where` once it was checked."""
    if target.needs_data and options.overwrite:
        what = "a program and its weights are two objects, which cannot be replaced in one step"
        raise RefusedError(what, str(where), "name an address where there is nothing yet")
    with TemporaryDirectory() as folder:
        path = Path(folder) / where.name
        data = path.with_name(f"{path.name}{DATA}") if target.needs_data else None
        target.write(path, record, data, data.name if data is not None else "")
        target.complete(path, record)
        check(path)
        if data is not None:
            _copy(data, where.parent / data.name, options)
        _copy(path, where, options)


def _copy(path: Path, where: Location, options: WriteOptions) -> None:
    size = path.stat().st_size
    with replacing_file(where, size, overwrite=options.overwrite) as output, path.open("rb") as file:
        output.reserve()
        for offset in range(0, size, COPY_BYTES):
            output.write_at(offset, file.read(COPY_BYTES))


def _data_beside(where: Path) -> list[Path]:
    """The files of weights that belong to the program `where`, by their names."""
    pattern = re.compile(re.escape(where.name + DATA) + r"(?:\.\d+)?")
    return [path for path in where.parent.iterdir() if pattern.fullmatch(path.name)]


def _remove_leftovers(where: Path, target: Target) -> None:
    """Remove weights that a killed writer had given their name already: only its temporary program has it."""
    atomic.check_parent(where, str(where))
    temporary = temporary_files(where.parent, re.compile(re.escape(where.name)))
    named = {path: target.data_names(path) for path in temporary}
    remove_litter(where)
    gone = {name for path, names in named.items() if not path.exists() for name in names}
    if gone and where.exists():
        gone -= target.data_names(where)
    for path in _data_beside(where):
        if path.name in gone:
            path.unlink(missing_ok=True)


def _fresh(where: Path, taken: list[Path]) -> Path:
    """The first of `model.onnx.data`, `model.onnx.data.2`, … that is not taken."""
    names = {path.name for path in taken}
    name, number = f"{where.name}{DATA}", 2
    while name in names:
        name, number = f"{where.name}{DATA}.{number}", number + 1
    return where.with_name(name)
