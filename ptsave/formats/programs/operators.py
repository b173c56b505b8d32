"""The operators that a program in a checkpoint names: most compute, some read and write files.

torch runs the program of a TorchScript archive and of a .pt2 in an interpreter of its own, of whose operators
a few do more than compute: `torch.save` writes any file, `torch.from_file` reads one, and writes one where it
is shared. They are told, and so are operators of libraries that are not known to compute only.

Source: torch/csrc/jit/frontend/lexer.h (literals and comments), parser.cpp (literals one after the other),
ir_emitter.cpp (`prim::getattr`), torch/csrc/jit/serialization/import_source.cpp (what `torch` and `ops` are).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ptsave.errors import CorruptError, LimitError

MAX_CODE_TOKENS = 1_000_000
"""Cap on the literals, comments and telling names in one text of code."""

RUNNING = {
    "save": "torch.save",
    "from_file": "torch.from_file",
    "rpc_async": "torch.distributed.rpc.rpc_async",
    "rpc_remote": "torch.distributed.rpc.remote",
    "rpc_sync": "torch.distributed.rpc.rpc_sync",
}
"""The operators of torch that read or write files, or run something on another host, by their own names."""

NAMESPACES = frozenset(
    """
    _caffe2 _quantized aten detectron2 executorch export fbgemm flash_attn higher_order inductor
    inductor_prims mkl mkldnn mkldnn_prepacked onednn onnx onnx_symbolic prepacked prim prims pyg
    quantization quantized quantized_decomposed rngprims sparse static_runtime torch_cluster
    torch_scatter torch_sparse torch_spline_conv torchao torchaudio torchvision vulkan vulkan_prepack
    xformers xnnpack
    """.split()  # noqa: SIM905
)
"""Namespaces whose operators only compute, except those in RUNNING: torch's own and its libraries'."""

MAX_ESCAPES = 100_000
"""Cap on the escapes in one literal."""
_LONGER = max(map(len, RUNNING)) + 1
_TELLING = re.compile(rf"(?<!\w)(?:ops|getattr|{'|'.join(RUNNING)})\b", re.ASCII)
_TOKEN = re.compile(
    rf"""
    (?P<literal>
        \"\"\" [^"\\]* (?:(?:\\.|"(?!""))[^"\\]*){{0,{MAX_ESCAPES}}} \"\"\"
      | ''' [^'\\]* (?:(?:\\.|'(?!''))[^'\\]*){{0,{MAX_ESCAPES}}} '''
      | (?!\"\"\") " [^"\\\n]* (?:\\.[^"\\\n]*){{0,{MAX_ESCAPES}}} "
      | (?!''') ' [^'\\\n]* (?:\\.[^'\\\n]*){{0,{MAX_ESCAPES}}} '
    )
    | (?P<open>["'])
    | (?P<comment>\#[^\n]*)
    | (?<!\w) (?P<name>{"|".join(RUNNING)}) \b
    | (?<![\w.]) (?P<ops>ops) \b (?:[ \t\n\\]{{0,100}}\.[ \t\n\\]{{0,100}}(?P<namespace>\w{{1,100}}))?
    """,
    re.ASCII | re.DOTALL | re.VERBOSE,
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def is_plain(namespace: str, name: str) -> bool:
    """Whether the operator `namespace::name` is known to compute, and to do nothing else."""
    return namespace in NAMESPACES and name not in RUNNING


def names_in(text: str, where: str) -> Iterator[str]:
    """The dotted names of functions in TorchScript code that do more than compute.

    An attribute of the same name is told, too. `where` names the file for messages.

    Raises: CorruptError, LimitError.
    """
    if _TELLING.search(text) is None:
        return
    by_text = "getattr" in text
    spelled, end = "", 0
    """What the literals before `end` spell together: `getattr(torch, "sa" "ve")`."""
    for number, token in enumerate(_TOKEN.finditer(text)):
        if number >= MAX_CODE_TOKENS:
            raise LimitError("code_tokens", MAX_CODE_TOKENS, "more", where)
        kind = token.lastgroup
        if kind == "name":
            yield RUNNING[token["name"]]
        elif kind in ("ops", "namespace") and token["namespace"] not in NAMESPACES:
            yield f"torch.ops.{token['namespace'] or '*'}"
        elif kind in ("literal", "comment") and by_text:
            if text[end : token.start()].strip(" \t\n\\"):
                spelled = ""
            end = token.end()
            if kind == "literal":
                spelled = (spelled + _spelled(token["literal"]))[:_LONGER]
                if spelled in RUNNING:
                    yield RUNNING[spelled]
        elif kind == "open":
            raise CorruptError(
                f"the code has a literal that does not end within {MAX_ESCAPES} escapes", where
            )


def _spelled(literal: str) -> str:
    """The text of a literal; escapes that no name needs are left as they are."""
    quotes = 3 if literal[:3] in ('"""', "'''") else 1
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), literal[quotes:-quotes])
