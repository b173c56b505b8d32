"""Writing several safetensors files and the index that says which tensor is where.

Source: huggingface_hub `serialization/_base.py` (`split_state_dict_into_shards_factory`) and `_torch.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import KEY
from ptsave.errors import LossyError, Option
from ptsave.formats.base import WriteOptions, Written
from ptsave.formats.folder_files import INDEX, shard_names, superfluous
from ptsave.formats.safetensors.sharded_read import MAX_INDEX_BYTES
from ptsave.formats.safetensors.write import (
    MAX_HEADER_BYTES,
    PAGE_BYTES,
    Layout,
    all_digests,
    header_bytes,
    lay_out,
    most_described_bytes,
    overlap_notes,
    refuse_unwritable,
    tensor_moves,
)
from ptsave.formats.stored import (
    Distinct,
    carried_metadata,
    check_readable,
    check_record,
    distinct,
    last_check,
    record_text,
    source_path,
    with_source_checks,
    write_pieces,
)
from ptsave.storage.move import Move, check_back, move
from ptsave.storage.opening import check_folder_destination, replacing_folder

MAX_SHARDS = 20_000
"""Cap on the files of one checkpoint, as the reader has it."""
_SHARD_METADATA = {"format": "pt"}


def write(checkpoint: Checkpoint, destination: Location, options: WriteOptions) -> Written:
    """Write the tensors of `checkpoint` as a folder of safetensors files of up to `options.shard_bytes`.

    A tensor that is larger has a file to itself. Tied tensors are stored once; the record, which lies in the
    index, names the aliases. In a folder that holds a checkpoint already the new shards get new names, since
    a reader that has read the old index must never find new bytes under an old name.

    Raises: LossyError when the format cannot hold something; ExistsError; WriteError; CorruptError.
    """
    check_folder_destination(destination, overwrite=options.overwrite)
    refuse_unwritable(checkpoint, "safetensors-sharded")
    stored = distinct(checkpoint.tensors)
    if not stored.kept:
        raise LossyError(
            "safetensors-sharded needs at least one tensor", source_path(checkpoint), "choose another format"
        )
    layouts = [lay_out(shard) for shard in split(stored.kept, options.shard_bytes)]
    if len(layouts) > MAX_SHARDS:
        raise LossyError(
            f"{len(layouts)} shards are more than the {MAX_SHARDS} that are read back",
            str(destination),
            ("raise ", Option("shard_size")),
        )
    check_record(checkpoint, stored.aliases, options)
    headers = [header_bytes(layout, _SHARD_METADATA) for layout in layouts]
    sizes = [len(head) + layout.data_bytes for head, layout in zip(headers, layouts, strict=True)]
    where = source_path(checkpoint)
    moves: dict[str, Move] = {}
    with replacing_folder(
        destination,
        sum(sizes),
        overwrite=options.overwrite,
        sync=options.sync,
        before_commit=partial(last_check, checkpoint, options),
    ) as folder:
        names = folder.fresh(partial(shard_names, len(layouts)))
        for name, layout, head, size in zip(names, layouts, headers, sizes, strict=True):
            mine = tensor_moves(checkpoint, stored, layout, len(head), options)
            with folder.data_file(name, size) as output:
                spans = move(with_source_checks(list(mine.values())), output, where, options.progress)
                spans += write_pieces(output, [(0, head)], "the header")
                if options.check:
                    check_back(spans, output, options.progress)
            moves |= mine
        digests = all_digests(checkpoint, stored, moves, options)
        index = _index(checkpoint, stored, dict(zip(names, layouts, strict=True)), digests, options)
        old = superfluous(folder.taken, [INDEX, *names])
        folder.commit((INDEX, index), old=old)
    return Written(sum(sizes) + len(index), overlap_notes(stored), output.checked)


def split(entries: Mapping[str, TensorEntry], shard_bytes: int) -> list[dict[str, TensorEntry]]:
    """The tensors in order, a new shard where the next one would not fit, or its header be more than is read;
    one that never fits is alone."""
    shards: list[dict[str, TensorEntry]] = []
    shard: dict[str, TensorEntry] = {}
    filled = header = 0
    for name, entry in entries.items():
        if entry.num_bytes > shard_bytes:
            shards.append({name: entry})
            continue
        described = most_described_bytes(name, entry)
        if filled + entry.num_bytes > shard_bytes or header + described > MAX_HEADER_BYTES - PAGE_BYTES:
            shards.append(shard)
            shard, filled, header = {}, 0, 0
        shard[name] = entry
        filled += entry.num_bytes
        header += described
    return [*shards, shard] if shard else shards


def _index(
    checkpoint: Checkpoint,
    stored: Distinct,
    layouts: Mapping[str, Layout],
    digests: Mapping[str, str],
    options: WriteOptions,
) -> bytes:
    metadata: dict[str, Any] = {"total_size": sum(layout.data_bytes for layout in layouts.values())}
    metadata |= carried_metadata(checkpoint)
    for alias, kept in stored.aliases.items():
        metadata.setdefault(alias, kept)
    text = record_text(checkpoint, digests, stored.aliases, options, keeps_metadata=True)
    if text is not None:
        metadata[KEY] = json.loads(text)
    shard_of = {name: file_name for file_name, layout in layouts.items() for name in layout.entries}
    weight_map = {name: shard_of[name] for name in stored.kept}
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2).encode() + b"\n"
    hint = (Option("no_record", True), " makes it shorter")
    check_readable("the index", index, "index_bytes", MAX_INDEX_BYTES, source_path(checkpoint), hint)
    return index
