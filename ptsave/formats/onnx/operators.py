"""The operators of ONNX models: most compute, a few run Python or compiled code that the model names.

An ONNX file holds no code of its own. A runtime takes an operator of a domain that it does not know from a
library that somebody has registered, and does there whatever that does; so these are told.

Source: onnx/defs/schema.h and onnxruntime/core/graph/constants.h (domains); onnxruntime's
docs/ContribOperators.md and orttraining (operators that run Python, Triton or compiled code).
"""

from __future__ import annotations

STANDARD = frozenset(("", "ai.onnx"))
"""The two names of the standard's own domain."""
DOMAINS = STANDARD | frozenset(
    """
    ai.onnx.ml ai.onnx.preview ai.onnx.preview.training ai.onnx.training com.microsoft
    com.microsoft.experimental com.microsoft.nchwc com.ms.internal.nhwc
    """.split()  # noqa: SIM905
)
"""The domains whose operators only compute, except those in RUNNING."""
RUNNING = frozenset(("ATen", "EPContext", "PyOp", "PythonOp", "PythonOpGrad", "TritonOp"))
"""The operators of these domains that run Python, Triton, any operator of torch, or a compiled model."""


def named(domain: str, op_type: str) -> str:
    """An operator's name: `Gemm`, `com.microsoft.Gelu`."""
    return op_type if domain in STANDARD else f"{domain}.{op_type}"


def is_plain(domain: str, op_type: str) -> bool:
    """Whether an operator is known to compute, and to do nothing else."""
    return domain in DOMAINS and op_type not in RUNNING
