"""The signature of a TorchScript module's `forward`, as its code spells it.

Source: torch/csrc/jit/serialization/python_print.cpp (`printFunction`).
"""

from __future__ import annotations

import re

from ptsave.core.nodes import Port, Program

MAX_SIGNATURE_CHARS = 64 * 1024
"""Cap on how much of the code is looked at for one signature; a longer one is not told."""
_FORWARD = re.compile(r"def[ \t]+forward\(")
_PIECE = re.compile(
    r"""[^"'()\[\]{},]{1,4096}|"(?:[^"\\\n]|\\.){0,4096}"|'(?:[^'\\\n]|\\.){0,4096}'|[^"']""", re.DOTALL
)
_RETURNS = re.compile(r"\)[ \t]{0,100}->[ \t]{0,100}([^:\n]{1,4096}):")


def program_of(code: str, class_name: str) -> Program | None:
    """The program of a module whose class has the code `code`: what its `forward` takes and returns, without
    `self`. None where it has no `forward`."""
    line = rf"class[ \t]+{re.escape(class_name)}\b"
    begin = re.match(line, code) or re.search(rf"\n{line}", code)
    if begin is None:
        return None
    end = code.find("\nclass ", begin.end())
    methods = _FORWARD.finditer(code, begin.end(), end if end >= 0 else len(code))
    head = next((method for method in methods if code[method.start() - 1] in " \t"), None)
    if head is None:
        return None
    parameters, at = _parameters(code, head.end())
    returns = _RETURNS.match(code, at) if at >= 0 else None
    if returns is None:
        return None
    inputs = [_port(*one.split("=", 1)[0].partition(":")) for one in parameters[1:]]
    return Program("forward", inputs, [_port("", "", returns[1])])


def _port(name: str, _: str, type_name: str) -> Port:
    return Port(name.strip(), " ".join(type_name.split()))


def _parameters(code: str, at: int) -> tuple[list[str], int]:
    """The texts between commas from `at` to the bracket that closes; where that is, -1 where none does."""
    found: list[str] = []
    depth, last, end = 0, at, min(len(code), at + MAX_SIGNATURE_CHARS)
    while at < end and (piece := _PIECE.match(code, at, end)) is not None:
        mark = piece[0]
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            if not depth:
                return [*found, code[last:at]], at
            depth -= 1
        elif mark == "," and not depth:
            found.append(code[last:at])
            last = piece.end()
        at = piece.end()
    return [], -1
