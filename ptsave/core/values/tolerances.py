"""How far two values of a dtype may be apart and still be called close."""

from __future__ import annotations

TOLERANCES = {
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
    "complex32": (1e-3, 1e-5),
    "complex64": (1.3e-6, 1e-5),
    "complex128": (1e-7, 1e-7),
}
"""dtype → (rtol, atol). Source: torch.testing.assert_close."""


def tolerance(a: str, b: str, rtol: float | None = None, atol: float | None = None) -> tuple[float, float]:
    """(rtol, atol) for values of the dtypes `a` and `b`: the coarser one's, where none are given.

    Whole numbers, and floats that torch has no tolerance for, are to be equal.
    """
    own_rtol, own_atol = max(TOLERANCES.get(name, (0.0, 0.0)) for name in (a, b))
    return own_rtol if rtol is None else rtol, own_atol if atol is None else atol
