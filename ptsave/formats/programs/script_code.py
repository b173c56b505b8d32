"""What the code of a TorchScript archive says of its classes, found without running it.

Source: torch/csrc/jit/serialization/python_print.cpp, import_source.cpp (`importClass`), import.cpp
(`obj_loader`), torch/csrc/jit/frontend/lexer.h.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ptsave.core.nodes import GlobalUse, add_uses
from ptsave.errors import LimitError
from ptsave.formats.programs.operators import names_in
from ptsave.formats.zip.reader import ZipDirectory

MAX_CODE_BYTES = 32 * 1024 * 1024
"""Cap on the text of all classes together."""
MAX_CODE_NAMES = 250_000
"""Cap on the classes and the parameters and buffers that the code lists: each costs 400 bytes of memory."""
_CHARS_PER_NAME = 256
"""A longer name counts as several."""

OWN_PACKAGE = "__torch__."
"""The prefix of the names of an archive's own classes; no other class is looked up in its code.

Source: torch/csrc/jit/serialization/import_source.cpp."""

# Each always ends: the text is as hostile as the rest of the file. What it does not find is listed all the
# same, after what it finds.
_CLASS = re.compile(r"class[ \t]+(?P<name>\w{1,4096})[ \t]*(?:(?P<base>\([ \t]*\w{1,100}[ \t]*\))[ \t]*)?:")
_STATEMENT = re.compile(
    f"{_CLASS.pattern}"
    r"|__(?P<which>parameters|buffers)__\s{0,100}=\s{0,100}\["
    r"|__(?P<sets>setstate)__\b"
)
"""Each begins with a letter that is sought at once, whatever lies before it: see `_statements`."""
_ITEM = re.compile(
    r"""\s+|,|\#[^\n]*|\\\n"""
    r"""|"([^"\\\n]*(?:\\.[^"\\\n]*){0,4096})"|'([^'\\\n]*(?:\\.[^'\\\n]*){0,4096})'"""
)
_ESCAPE = re.compile(r"\\(.)")
_FIRST_LINE = re.compile(r"\n([ \t]*)[^ \t\n#]")
_BODY_END = re.compile(r"\n[^ \t\n#]")
_ATTRIBUTE = re.compile(
    r"^([ \t]+)(?:(\w+)(?:[ \t]|\\\n)*:[ \t]*([^\s=#][^\n=#]*)(?=[\n#]|\Z)"
    r"|__annotations__[ \t]*\[[ \t]*(?:"
    r""""([^"\\\n]*(?:\\.[^"\\\n]*){0,4096})"|'([^'\\\n]*(?:\\.[^'\\\n]*){0,4096})'"""
    r")[ \t]*\][ \t]*=)",
    re.MULTILINE,
)
"""A line that declares one; what has a value too (`name : Final[int] = 2`) is a constant of the class."""


@dataclass(frozen=True, slots=True)
class ModuleClass:
    """The attributes that a class in `code/` declares."""

    parameters: frozenset[str]
    buffers: frozenset[str]
    is_module: bool = True
    """Whether it may be a module; an object of another class is a value of the module that holds it."""
    sets_state: bool = False
    """Whether its code makes the attributes of what the pickle holds, while torch loads it."""


class Code(NamedTuple):
    """What an archive's code says, without being run."""

    classes: dict[str, ModuleClass]
    """By qualified name."""
    defined: set[str]
    """The names of all classes that it defines, which torch takes from there and imports from nowhere."""
    num_files: int
    uses: dict[str, GlobalUse]
    """The names in it that do more than compute."""


def _statements(text: str, pattern: re.Pattern[str] = _STATEMENT) -> Iterator[re.Match[str]]:
    """What `pattern` finds: classes at the beginning of a line, and the other names as whole words."""
    at = looked = 0
    while (found := pattern.search(text, at)) is not None:
        begin = found.start()
        if found["name"] is not None:
            line = text.rfind("\n", looked, begin) + 1  # what is further back is no blank
            is_one = (line > 0 or looked == 0) and not text[max(line, looked) : begin].strip(" \t")
        else:
            is_one = begin == 0 or not (text[begin - 1].isalnum() or text[begin - 1] == "_")
        if is_one:
            yield found
            at = looked = found.end()
        else:
            at = begin + 1
            looked = at


def read_code(directory: ZipDirectory, prefix: str) -> Code:
    """Raises: LimitError."""
    names = [name for name in directory.entries if name.startswith(prefix) and name.endswith(".py")]
    total = sum(directory.entries[name].num_bytes for name in names)
    where = str(directory.file.path)
    num_names = 0
    if total > MAX_CODE_BYTES:
        raise LimitError("code_bytes", MAX_CODE_BYTES, total, where)
    modules: dict[str, dict[str, frozenset[str]]] = {}
    others: set[str] = set()
    setting: set[str] = set()
    uses: dict[str, GlobalUse] = {}
    for name in names:
        file_module = name[len(prefix) : -len(".py")].replace("/", ".")
        text = directory.read(name, MAX_CODE_BYTES).decode("utf-8", "replace")
        add_uses(uses, {use: GlobalUse(use, 1, "called") for use in names_in(text, where)})
        lists: dict[str, frozenset[str]] = {}
        qualified = ""
        for found in _statements(text):
            which = found["which"]
            if found["sets"] is not None:
                setting.add(qualified)
                continue
            if which is not None:
                if which not in lists:  # each list of a class is read once: comments may hold many beginnings
                    lists[which] = _texts(text, found.end(), MAX_CODE_NAMES - num_names, where)
                    num_names += len(lists[which])
                continue
            lists = {}
            qualified = f"{file_module}.{found['name']}"
            num_names += 1 + len(qualified) // _CHARS_PER_NAME  # each has its file's name in it
            if num_names > MAX_CODE_NAMES:
                raise LimitError("code_names", MAX_CODE_NAMES, "more", where)
            if (found["base"] or "").strip("( \t)") == "Module":
                modules[qualified] = lists
            else:
                others.add(qualified)
    nothing: frozenset[str] = frozenset()
    known = {
        name: ModuleClass(
            lists.get("parameters", nothing), lists.get("buffers", nothing), sets_state=name in setting
        )
        for name, lists in modules.items()
    }
    known |= {name: ModuleClass(nothing, nothing, False, name in setting) for name in others - modules.keys()}
    return Code(known, {name for name in known if name.startswith(OWN_PACKAGE)}, len(names), uses)


UNDECLARED = ModuleClass(frozenset(), frozenset())
"""Of a class that the code does not define where it is looked for."""


def _texts(text: str, begin: int, most: int, where: str) -> frozenset[str]:
    """The strings from `begin` on up to what is neither one, nor space, comma, comment or line break.

    Raises: LimitError past `most`.
    """
    found = set()
    at = begin
    while (item := _ITEM.match(text, at)) is not None:
        at = item.end()
        quoted = item[1] if item[1] is not None else item[2]
        if quoted is not None:
            found.add(_ESCAPE.sub(r"\1", quoted))
            if len(found) > most:
                raise LimitError("code_names", MAX_CODE_NAMES, "more", where)
    return frozenset(found)


def lacking(
    directory: ZipDirectory, prefix: str, built: Mapping[str, Collection[Collection[object]]]
) -> Iterator[str]:
    """Say which objects lack an attribute that their class declares: torch takes each from the pickle.

    `built`: by class, the attributes of its objects, those of several once.
    """
    for name in {f"{prefix}{of.rpartition('.')[0].replace('.', '/')}.py": None for of in built}:
        if name not in directory.entries:
            continue
        text = directory.read(name, MAX_CODE_BYTES).decode("utf-8", "replace")
        module = name[len(prefix) : -len(".py")].replace("/", ".")
        begins = {  # of two classes with one name torch takes the last
            f"{module}.{found['name']}": found.end() for found in _statements(text, _CLASS)
        }
        for of in built.keys() & begins.keys():
            least = min(map(len, built[of]))
            for number, one in enumerate(_declared(text, begins[of])):
                if number == least or any(one not in state for state in built[of]):
                    why = "declares" if number < least else "declares, or declares another one twice"
                    yield f"a {of} lacks the attribute {one[:80]!r}, which its class {why}"
                    break


def _declared(text: str, begin: int) -> Iterator[str]:
    """The attributes that the class whose body begins at `begin` declares."""
    first = _FIRST_LINE.search(text, begin)
    end = _BODY_END.search(text, begin)
    for found in _ATTRIBUTE.finditer(text, begin, end.start() if end is not None else len(text)):
        indent, name, type_name, *keys = found.groups()
        if first is None or len(indent) != len(first[1]):
            continue  # in a function
        if name is None:
            yield _ESCAPE.sub(r"\1", keys[0] if keys[0] is not None else keys[1])
        elif type_name.count("(") == type_name.count(")") and not type_name.rstrip().endswith(","):
            yield name  # and no argument of a function
