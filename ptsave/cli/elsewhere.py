"""What other tools call a command or a flag, and what ptsave has for it."""

from __future__ import annotations

import re
from collections.abc import Collection

COMMANDS = {
    **dict.fromkeys(("diff", "compare"), "ptsave inspect A --diff B"),
    **dict.fromkeys(("show", "info", "ls", "list", "cat", "view", "stats", "tree"), "ptsave inspect PATH"),
    **dict.fromkeys(("check", "validate", "test", "fsck"), "ptsave verify PATH"),
    **dict.fromkeys(("scan", "audit"), "ptsave verify PATH --checks safe"),
    **dict.fromkeys(("merge", "join"), "ptsave convert A B MERGED"),
    **dict.fromkeys(("shard", "split"), "ptsave convert SRC FOLDER --shard-size 5GB"),
    **dict.fromkeys(("extract", "strip"), "ptsave convert SRC DST --select model"),
    **dict.fromkeys(("cast", "quantize"), "ptsave convert SRC DST --dtype bfloat16"),
    **dict.fromkeys(("copy", "cp"), "ptsave convert SRC DST"),
    "rename": "ptsave convert SRC DST --rename REGEX=TO",
    "export": "ptsave convert SRC DST.onnx -c CONFIG",
    "init": "ptsave inspect PATH --make-config model.toml",
}
"""Command → a line that does it."""
FLAGS = {
    **dict.fromkeys(("--force", "-f", "--yes", "-y"), "--overwrite"),
    **dict.fromkeys(("--half", "--fp16"), "--dtype float16"),
    "--bf16": "--dtype bfloat16",
    "--max-shard-size": "--shard-size",
    **dict.fromkeys(("--exclude", "--skip", "--remove"), "--drop"),
    **dict.fromkeys(("--include", "--keep"), "--only"),
    **dict.fromkeys(("--key", "--prefix"), "--select"),
    **dict.fromkeys(("--grep", "--names", "--keys", "--match"), "--filter"),
    **dict.fromkeys(("--parameters", "--summary", "--count"), "--params"),
    **dict.fromkeys(("--top", "--head"), "--limit"),
    "--histogram": "--stats",
    **dict.fromkeys(("--compare", "--other"), "--diff"),
    **dict.fromkeys(("--html", "--output-report"), "--report FILE.html"),
    **dict.fromkeys(("--to", "--type"), "--format"),
}
"""Flag → one that some of the commands have, with what to give it."""
_OUTPUT = ("-o", "--output", "--out")
_NAMED = re.compile(r"No such (?:command|option):? '?([\w-]+)")


def meant(message: str, flags: Collection[str], help_line: str) -> str:
    """The hint for a usage error in Typer's words; `flags`: those of the command at hand."""
    found = _NAMED.match(message)
    name = found[1] if found is not None else ""
    if name in COMMANDS:
        return f"did you mean `{COMMANDS[name]}`?"
    if name in _OUTPUT:
        return f"the last path is what is written; {help_line}"
    if name in FLAGS and FLAGS[name].split()[0] in flags:
        return f"did you mean {FLAGS[name]}? {help_line}"
    return help_line
