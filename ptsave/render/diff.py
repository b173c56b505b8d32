"""What `inspect --diff` prints."""

from __future__ import annotations

from ptsave.core.address import Location
from ptsave.core.names import escape
from ptsave.render import as_json
from ptsave.render.terminal import Mode, document, out, table
from ptsave.render.words import count, value
from ptsave.verbs.diff import Diff, describe


def show_differences(mode: Mode, result: Diff, a: Location, b: Location) -> None:
    """What `inspect --diff` prints."""
    if mode.json:
        document(as_json.differences(result, a, b, iter))
        return
    if prefix := result.prefix:
        where = b if result.only_in_b[0].startswith(prefix) else a
        what = f"begins {count(len(result.only_in_a), 'name')} in {escape(str(where))} alone: not compared"
        rows = [("~", escape(f"{prefix}*"), what)]
    else:
        rows = [("-", escape(name), f"only in {escape(str(a))}") for name in result.only_in_a]
        rows += [("+", escape(name), f"only in {escape(str(b))}") for name in result.only_in_b]
    rows += [("~", escape(t.name), escape(describe(t))) for t in result.different]
    rows += [
        ("~", escape(", ".join(names)), "share memory in the first only") for names in result.ties_broken
    ]
    rows += [("~", escape(", ".join(names)), "share memory in the second only") for names in result.ties_new]
    rows += [("-", escape(path), f"data only in {escape(str(a))}") for path in result.data_only_in_a]
    rows += [("+", escape(path), f"data only in {escape(str(b))}") for path in result.data_only_in_b]
    rows += [("~", escape(d.path), f"{value(d.a)} against {value(d.b)}") for d in result.data_changed]
    if not mode.quiet:
        table(rows)
    same = len(result.tensors) - len(result.different)
    if result.is_same:
        out(f"same: {count(same, 'tensor')} bitwise equal")
    else:
        out(f"different: {count(len(rows), 'difference')}, {count(same, 'tensor')} bitwise equal")
