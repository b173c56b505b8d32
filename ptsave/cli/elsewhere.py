"""What other tools call a command or a flag, and what ptsave has for it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from ptsave.errors import quoted
from ptsave.verbs.request import FLAGS

COMMANDS = {
    **dict.fromkeys(("diff", "compare"), "ptsave inspect A --diff B"),
    **dict.fromkeys(
        (
            *("show", "info", "ls", "list", "cat", "view", "keys", "size"),
            *("print", "dump", "describe", "open", "read", "shapes"),
        ),
        "ptsave inspect PATH",
    ),
    **dict.fromkeys(("params", "count", "summary"), "ptsave inspect PATH --params"),
    "tree": "ptsave inspect PATH --tree",
    "stats": "ptsave inspect PATH --stats",
    "head": "ptsave inspect PATH --limit 10",
    "help": "ptsave --help",
    "version": "ptsave --version",
    "same": "ptsave verify PATH --against OTHER",
    **dict.fromkeys(("hash", "digest", "checksum"), "ptsave verify PATH --verbose"),
    "sign": "ptsave convert SRC DST --sign KEY.pem",
    **dict.fromkeys(("download", "pull", "get"), "ptsave convert hf://OWNER/REPO DST"),
    **dict.fromkeys(("to-safetensors", "to_safetensors"), "ptsave convert SRC DST.safetensors"),
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
_VALUES = ("--values", "--value", "--data")
_NOTATIONS = ("--format", "--csv", "--yaml", "--jsonl")
_OUTPUT = ("-o", "--output", "--out")
_NAMED = re.compile(r"(No such (?:command '(?P<command>.+?)'|option: (?P<flag>\S+)))")
_PATH = re.compile(r".*[./\\]", re.DOTALL)


def meant(message: str, flags: Collection[str], help_line: str) -> tuple[str, str]:
    """What to say of a usage error in Typer's words, and the hint; `flags`: those of the command at hand.

    Typer's own proposals go where there is a better one.
    """
    found = _NAMED.match(message)
    if found is None:
        return message, help_line
    command, flag = found["command"] or "", found["flag"] or ""
    hint = ""
    if command in COMMANDS:
        hint = f"did you mean `{COMMANDS[command]}`?"
    elif _PATH.match(command) or (command and os.path.lexists(command)):
        hint = f"a command comes before the path: did you mean `ptsave inspect {quoted(command)}`?"
    elif flag in _OUTPUT:
        hint = f"the last path is what is written; {help_line}"
    elif flag in _VALUES and "--stats" in flags:
        hint = "--stats sums each tensor up; in Python, ptsave.open(PATH)[NAME] is one of them"
    elif flag in _NOTATIONS and "--format" not in flags and "--json" in flags:
        hint = f"did you mean --json? {help_line}"
    elif flag in FLAGS and FLAGS[flag].split()[0] in flags:
        hint = f"did you mean {FLAGS[flag]}? {help_line}"
    return (found[1], hint) if hint else (message, help_line)
