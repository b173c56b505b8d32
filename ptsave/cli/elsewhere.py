"""What other tools call a command or a flag, and what ptsave has for it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from ptsave.errors import quoted

COMMANDS = {
    **dict.fromkeys(("diff", "compare"), "ptsave inspect A --diff B"),
    **dict.fromkeys(
        (
            *("show", "info", "ls", "list", "cat", "view", "stats", "tree", "keys", "head", "params", "size"),
            *("print", "dump", "describe", "summary", "open", "read", "shapes", "count"),
        ),
        "ptsave inspect PATH",
    ),
    "help": "ptsave --help",
    "version": "ptsave --version",
    **dict.fromkeys(("hash", "digest", "checksum", "same"), "ptsave verify PATH --against OTHER"),
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
    **dict.fromkeys(("--map-location", "--map_location"), "--device"),
    **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
    "--cpu": "--device cpu",
    "--no-strict": "--allow-missing GLOB, --allow-unexpected GLOB",
    "--values": "--stats",
}
"""Flag → one that some of the commands have, with what to give it."""
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
    elif flag in FLAGS and FLAGS[flag].split()[0] in flags:
        hint = f"did you mean {FLAGS[flag]}? {help_line}"
    return (found[1], hint) if hint else (message, help_line)
